"""The numbers that llama.cpp makes of a GGUF's RoPE keys and tensors, whether or not they have a name."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from yarnconv.errors import BadInput
from yarnconv.rope.observation import Observation
from yarnconv.rope.tables import Float64Array, plain_inv_freq
from yarnconv.targets.gguf.reader import GgufFile
from yarnconv.targets.gguf.rope import (
    FREQUENCY_TOLERANCE,
    LONGROPE_LONG,
    LONGROPE_SHORT,
    ROPE_FREQS,
    RopeEncoding,
    runtime_inv_freq,
    runtime_magnitudes,
)
from yarnconv.targets.gguf.rope_keys import RopeKeys


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedGroup:
    """Layers that turn alike. observations: of longrope two, for a context up to the original one and above.
    source: what says so.
    """

    layers: str
    source: str
    observations: tuple[Observation, ...]


def _observation(inv_freq: Float64Array, attention_factor: float, whole: float = 1.0) -> Observation:
    return Observation(
        inv_freq=inv_freq,
        uncertainty=np.full(len(inv_freq), FREQUENCY_TOLERANCE),
        attention_factor=attention_factor,
        softmax_multiplier=whole**2,
    )


def _divisors(artefact: GgufFile, name: str, pairs: int) -> Float64Array | None:
    stored = artefact.tensors.get(name)
    if stored is None:
        return None
    values = stored.rows(slice(None))[0].astype(np.float64)
    if values.shape != (pairs,):
        raise BadInput(f"has {len(values)} divisors, not {pairs}", where=f"{artefact.path.name}: {name}")
    return np.asarray(values)


def _longrope(
    artefact: GgufFile, encoding: RopeEncoding, rotary_dim: int, attention_factor: float
) -> ObservedGroup | None:
    """By its two tensors, of which llama.cpp takes one by the size of its context."""
    pairs = rotary_dim // 2
    long, short = (_divisors(artefact, name, pairs) for name in (LONGROPE_LONG, LONGROPE_SHORT))
    if long is None or short is None:
        return None
    plain = plain_inv_freq(float(np.float32(encoding.freq_base)), rotary_dim)
    with np.errstate(all="ignore"):
        both = tuple(_observation(plain / divisors, attention_factor) for divisors in (short, long))
    return ObservedGroup(layers="all layers", source=f"{LONGROPE_SHORT}, {LONGROPE_LONG}", observations=both)


def _sliding(
    artefact: GgufFile, encoding: RopeEncoding, rotary_dim: int, keys: RopeKeys
) -> ObservedGroup | None:
    """Layers with a window that turn by themselves."""
    own, given = encoding.freq_base_sliding, encoding.attention_factor
    # those apart take the base of all others, and no key says another: it is read and not used
    base = encoding.freq_base if own is None else own
    if keys.sliding == "alike" and own is not None:  # scaled like all others
        on_cos, whole = runtime_magnitudes(encoding, keys)
        with np.errstate(all="ignore"):
            inv_freq = runtime_inv_freq(replace(encoding, freq_base=base), rotary_dim)
        observation = _observation(inv_freq, on_cos, whole)
    elif keys.sliding in {"tempered", "apart"}:
        tempered = given if keys.sliding == "tempered" and given else 1.0
        observation = _observation(plain_inv_freq(float(np.float32(base)), rotary_dim), tempered)
    else:
        return None
    key = f"{artefact.architecture}.rope.freq_base_swa"
    by_key = keys.window_base and key in artefact.packed
    return ObservedGroup(
        layers="layers with a sliding window",
        source=key if by_key else f"llama.cpp's {keys.name} architecture",
        observations=(observation,),
    )


def observe(
    artefact: GgufFile, encoding: RopeEncoding, rotary_dim: int, keys: RopeKeys
) -> Iterator[ObservedGroup]:
    """What each kind of layer turns by, the extended ones first."""
    on_cos, whole = runtime_magnitudes(encoding, keys)
    longrope = _longrope(artefact, encoding, rotary_dim, on_cos)
    sliding = _sliding(artefact, encoding, rotary_dim, keys)
    if longrope is not None:
        yield longrope
        return
    with np.errstate(all="ignore"):
        inv_freq = runtime_inv_freq(encoding, rotary_dim)
    source = "its keys" if encoding.rope_freqs is None else ROPE_FREQS
    yield ObservedGroup(
        layers="all layers" if sliding is None else "layers that see the whole context",
        source=source,
        observations=(_observation(inv_freq, on_cos, whole),),
    )
    if sliding is not None:
        yield sliding
