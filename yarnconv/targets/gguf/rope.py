"""The plan's RoPE in llama.cpp's terms, or the reason why there is no exact way to say it.

llama.cpp derives its frequencies from a few keys (`llama-context.cpp`, `ggml_rope_yarn_corr_dims`): betas are
32 and 1 for most architectures, the correction range is always rounded, and under type yarn it multiplies cos
and sin by attn_factor * (1 + 0.1 ln s). So candidates are tried in order of plainness, each is judged by the
frequencies and magnitudes the runtime will make of it, and the first that gives the plan's is taken.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from yarnconv.errors import Inexpressible
from yarnconv.rope.scaling import (
    DynamicNtk,
    DynamicYarn,
    Linear,
    LongRope,
    NtkAware,
    Scaling,
    Unscaled,
    Yarn,
    method_name,
)
from yarnconv.rope.tables import (
    Float32Array,
    Float64Array,
    RopeTables,
    correction_range,
    magnitude,
    ntk_base,
    plain_inv_freq,
)
from yarnconv.rope_plan import RopePlan
from yarnconv.targets.gguf.file_format import Metadata
from yarnconv.targets.gguf.rope_keys import (
    RUNTIME_BETA_FAST,
    RUNTIME_BETA_SLOW,
    RUNTIME_COEFFICIENT,
    RopeKeys,
)
from yarnconv.targets.gguf.rope_refusals import (
    refuse_dynamic,
    refuse_enlarged,
    refuse_frequencies,
    refuse_tempered,
)

# freq_base and factor are stored as float32 (6e-8 relative); a rounded correction dimension that
# differs moves a frequency by 1e-3 and more. Measured: right encodings differ by at most 3e-7.
FREQUENCY_TOLERANCE = 2e-6
# of a product of two or three numbers that are stored as float32
MAGNITUDE_TOLERANCE = 1e-6

ROPE_FREQS = "rope_freqs.weight"
# longrope's two sets: phi3 and phimoe turn by them whatever the type, and have files without any
LONGROPE_LONG, LONGROPE_SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
LONGROPE_TENSORS = (LONGROPE_LONG, LONGROPE_SHORT)
CONTEXT_STEP = 256  # llama.cpp rounds the size of its context up to a multiple


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeEncoding:
    """RoPE keys (without the `{architecture}.rope.` prefix) and the frequency tensor, if any.

    rope_freqs: float32[rotary_dim/2], divisors of the plain frequencies.
    short_divisors, long_divisors: likewise, longrope's; the short ones up to original_context_length.
    beta_fast, beta_slow, log_multiplier: only for architectures that read them.
    freq_base_sliding: of layers with a sliding window, where they have one of their own by a key.
    note: what a reader of the file should know, where its keys do not say what they seem to.
    """

    freq_base: float
    scaling_type: str | None = None
    factor: float | None = None
    original_context_length: int | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    log_multiplier: float | None = None
    freq_base_sliding: float | None = None
    rope_freqs: Float32Array | None = None
    short_divisors: Float32Array | None = None
    long_divisors: Float32Array | None = None
    note: str | None = None

    @property
    def tensors(self) -> dict[str, Float32Array]:
        """Those that it has, by name."""
        named = {
            ROPE_FREQS: self.rope_freqs,
            LONGROPE_LONG: self.long_divisors,
            LONGROPE_SHORT: self.short_divisors,
        }
        return {name: divisors for name, divisors in named.items() if divisors is not None}

    def write(self, metadata: Metadata, architecture: str, finetuned: bool | None) -> None:
        """Set the keys. A plain model gets none of the scaling keys. finetuned: None leaves that one out."""
        prefix = f"{architecture}.rope"
        metadata.float32(f"{prefix}.freq_base", self.freq_base)
        if self.freq_base_sliding is not None:
            metadata.float32(f"{prefix}.freq_base_swa", self.freq_base_sliding)
        if self.scaling_type is not None:
            metadata.string(f"{prefix}.scaling.type", self.scaling_type)
        if self.factor is not None:
            metadata.float32(f"{prefix}.scaling.factor", self.factor)
        if self.original_context_length is not None:
            metadata.uint32(f"{prefix}.scaling.original_context_length", self.original_context_length)
        if self.attention_factor is not None:
            metadata.float32(f"{prefix}.scaling.attn_factor", self.attention_factor)
        for name in ("beta_fast", "beta_slow", "log_multiplier"):
            if (value := getattr(self, name)) is not None:
                metadata.float32(f"{prefix}.scaling.yarn_{name}", value)
        if finetuned is not None and self.scaling_type is not None:
            metadata.boolean(f"{prefix}.scaling.finetuned", finetuned)


def _runtime_factor(encoding: RopeEncoding) -> float:
    if encoding.scaling_type in {"linear", "yarn"} and encoding.factor is not None:
        return float(np.float32(encoding.factor))
    return 1.0


def runtime_magnitudes(encoding: RopeEncoding, keys: RopeKeys) -> tuple[float, float]:
    """(on cos and sin, on queries and keys as a whole) that llama.cpp makes of an encoding; the square of the
    second is the softmax multiplier (`llama-context.cpp`; `src/models/deepseek2.cpp`).
    """

    def m(mscale: float) -> float:
        return magnitude(factor, RUNTIME_COEFFICIENT, mscale)

    factor = _runtime_factor(encoding)
    given = 1.0 if encoding.attention_factor is None else encoding.attention_factor
    log_multiplier = encoding.log_multiplier or 0.0
    if keys.latent:
        log_multiplier /= RUNTIME_COEFFICIENT
    on_cos, whole = given, given * m(1.0)
    if encoding.scaling_type == "yarn":
        above = m(log_multiplier if keys.log_multiplier == "deepseek2" else 1.0)
        on_cos = whole = given * (above / m(log_multiplier) if log_multiplier else m(1.0))
    return on_cos, whole * m(log_multiplier) if keys.latent else 1.0


def runtime_inv_freq(encoding: RopeEncoding, rotary_dim: int) -> Float64Array:
    """The frequencies llama.cpp makes of an encoding: float64[rotary_dim/2], radians per position."""
    theta = float(np.float32(encoding.freq_base))
    plain = plain_inv_freq(theta, rotary_dim)
    if encoding.rope_freqs is not None:
        plain = plain / encoding.rope_freqs.astype(np.float64)
    factor = _runtime_factor(encoding)
    if encoding.scaling_type != "yarn" or encoding.original_context_length is None:
        return plain / factor
    low, high = correction_range(
        Yarn(
            theta=theta,
            rotary_dim=rotary_dim,
            original_context=encoding.original_context_length,
            factor=factor,
            beta_fast=RUNTIME_BETA_FAST if encoding.beta_fast is None else encoding.beta_fast,
            beta_slow=RUNTIME_BETA_SLOW if encoding.beta_slow is None else encoding.beta_slow,
        )
    )
    pairs = np.arange(rotary_dim // 2, dtype=np.float64)
    interpolated = np.clip((pairs - low) / max(0.001, high - low), 0.0, 1.0)
    return plain / factor * interpolated + plain * (1.0 - interpolated)


def _yarn_keys(scaling: Yarn, tables: RopeTables, original_context: int, keys: RopeKeys) -> RopeEncoding:
    # The runtime multiplies by its own 1 + 0.1 ln s, whatever is asked: divide it out beforehand.
    automatic = magnitude(scaling.factor, RUNTIME_COEFFICIENT)
    encoding = RopeEncoding(
        freq_base=scaling.theta,
        scaling_type="yarn",
        factor=scaling.factor,
        original_context_length=original_context,
        attention_factor=tables.attention_factor / automatic,
        beta_fast=scaling.beta_fast if keys.betas else None,
        beta_slow=scaling.beta_slow if keys.betas else None,
    )
    return _with_latent_temperature(encoding, tables, keys) if keys.latent else encoding


def _with_latent_temperature(encoding: RopeEncoding, tables: RopeTables, keys: RopeKeys) -> RopeEncoding:
    """Multi-head latent attention: llama.cpp multiplies queries and keys as a whole too, by what it puts on
    cos and sin and by 1 + log_multiplier ln s. The pair of keys that undoes what is not wanted of it.
    """
    on_cos, whole = tables.attention_factor, math.sqrt(tables.softmax_multiplier)
    factor = _runtime_factor(encoding)
    if factor == 1.0:
        return encoding
    automatic = magnitude(factor, RUNTIME_COEFFICIENT)
    if encoding.scaling_type == "linear":
        return replace(encoding, log_multiplier=(whole / automatic - 1.0) / math.log(factor))
    if whole == on_cos:
        return encoding
    return replace(
        encoding,
        attention_factor=on_cos if keys.log_multiplier == "deepseek2" else whole / automatic,
        log_multiplier=(whole / on_cos - 1.0) / math.log(factor),
    )


def _equivalent_original_context(scaling: Yarn) -> int | None:
    """An original context whose rounded correction range under betas 32 and 1 is the scaling's.

    c(r) <= n reads L <= 2 pi r theta^(2n/D), so each end of the range bounds L from both sides.
    """
    if not scaling.truncate:
        return None
    low, high = correction_range(scaling)

    def context(rotations: float, dimension: float) -> float:
        exponent = 2.0 * dimension / scaling.rotary_dim
        return 2.0 * math.pi * rotations * math.pow(scaling.theta, exponent)

    smallest = max(context(RUNTIME_BETA_FAST, low) if low > 0 else 1.0, context(RUNTIME_BETA_SLOW, high - 1))
    largest = context(RUNTIME_BETA_FAST, low + 1)
    if high < scaling.rotary_dim - 1:
        largest = min(largest, context(RUNTIME_BETA_SLOW, high))
    candidate = math.floor((smallest + largest) / 2)
    return candidate if smallest < candidate < largest and candidate < 2**32 else None


def _longrope_keys(scaling: LongRope, tables: RopeTables) -> RopeEncoding:
    """Both sets. llama.cpp takes the long one where its context is larger than the original one, as a
    request here declares its own; its temperature is one number for both, and so is the scaling's.
    """
    original = scaling.original_context
    largest = original // CONTEXT_STEP * CONTEXT_STEP
    short = (
        f"up to {largest} positions (-c {largest}) they are the short ones"
        if largest
        else f"it rounds that up to {CONTEXT_STEP}, so that the short ones are never chosen"
    )
    return RopeEncoding(
        freq_base=scaling.theta,
        scaling_type="longrope",
        original_context_length=original,
        attention_factor=None if tables.attention_factor == 1.0 else tables.attention_factor,
        short_divisors=np.asarray(scaling.short_factor, np.float32),
        long_divisors=np.asarray(scaling.long_factor, np.float32),
        note=(
            "The context that llama.cpp is started with chooses the frequencies of all requests: "
            f"{short}, above the long ones."
        ),
    )


def _candidates(scaling: Scaling, tables: RopeTables, keys: RopeKeys) -> Iterator[RopeEncoding]:
    if isinstance(scaling, Unscaled):
        yield RopeEncoding(freq_base=scaling.theta)
    elif isinstance(scaling, Linear):
        linear = RopeEncoding(freq_base=scaling.theta, scaling_type="linear", factor=scaling.factor)
        yield _with_latent_temperature(linear, tables, keys) if keys.latent else linear
    elif isinstance(scaling, NtkAware):
        yield RopeEncoding(freq_base=ntk_base(scaling))
    elif isinstance(scaling, Yarn):
        own = _yarn_keys(scaling, tables, scaling.original_context, keys)
        yield own
        if keys.log_multiplier == "mistral3" and scaling.mscale == 1.0 and scaling.mscale_all_dim:
            # as llama.cpp's converter spells such a pair, of which its runtime takes the first for 1
            yield replace(own, attention_factor=None, log_multiplier=scaling.mscale_all_dim)
    elif isinstance(scaling, LongRope) and keys.longrope:
        yield _longrope_keys(scaling, tables)
        return
    if keys.rope_freqs and not isinstance(scaling, Unscaled):
        plain = plain_inv_freq(scaling.theta, scaling.rotary_dim)
        yield RopeEncoding(
            freq_base=scaling.theta,
            scaling_type=None if tables.attention_factor == 1.0 else "none",
            attention_factor=None if tables.attention_factor == 1.0 else tables.attention_factor,
            rope_freqs=(plain / tables.inv_freq).astype(np.float32),
            note=(
                f"{method_name(scaling)} is carried by the tensor rope_freqs: llama.cpp's keys cannot "
                "say these frequencies."
            ),
        )
    own_betas = isinstance(scaling, Yarn) and (
        (scaling.beta_fast, scaling.beta_slow) == (RUNTIME_BETA_FAST, RUNTIME_BETA_SLOW)
    )
    # with the runtime's own betas the true original context says it: no other may stand for it
    if (
        isinstance(scaling, Yarn)
        and not own_betas
        and not keys.betas
        and (original := _equivalent_original_context(scaling)) is not None
    ):
        yield replace(
            _yarn_keys(scaling, tables, original, keys),
            note=(
                f"original_context_length is written as {original}, not {scaling.original_context}: "
                f"with llama.cpp's fixed betas of 32 and 1 it gives the same frequencies as betas of "
                f"{scaling.beta_fast:g} and {scaling.beta_slow:g}."
            ),
        )


def _difference(encoding: RopeEncoding, tables: RopeTables) -> Float64Array:
    """Relative, of each frequency that the runtime makes of an encoding: float64[rotary_dim/2]."""
    if encoding.long_divisors is not None:  # the tables are those of the longest context
        theta = float(np.float32(encoding.freq_base))
        made = plain_inv_freq(theta, 2 * len(tables.inv_freq)) / encoding.long_divisors
    else:
        made = runtime_inv_freq(encoding, 2 * len(tables.inv_freq))
    return np.asarray(np.abs(made / tables.inv_freq - 1.0))


def carries(encoding: RopeEncoding, tables: RopeTables, keys: RopeKeys) -> bool:
    """Whether an architecture makes exactly these frequencies and magnitudes of an encoding."""
    wanted = tables.attention_factor, math.sqrt(tables.softmax_multiplier)
    return bool(_difference(encoding, tables).max() <= FREQUENCY_TOLERANCE) and all(
        math.isclose(made, asked, rel_tol=MAGNITUDE_TOLERANCE)
        for made, asked in zip(runtime_magnitudes(encoding, keys), wanted, strict=True)
    )


def exact_encodings(plan: RopePlan, keys: RopeKeys) -> tuple[RopeEncoding, ...]:
    """Every known way to say a plan's main scaling exactly to an architecture of llama.cpp, the plainest
    first. What its other layers turn by is judged in `layered_rope`.

    Raises Inexpressible where there is none.
    """
    scaling = plan.main
    if isinstance(scaling, DynamicYarn | DynamicNtk) or (isinstance(scaling, LongRope) and not keys.longrope):
        raise refuse_dynamic(plan, keys)
    tables = plan.main_group.buckets[-1]
    if tables.softmax_multiplier != 1.0 and not keys.latent:
        raise Inexpressible(
            f"llama.cpp's {keys.name} architecture has no key for a softmax scale",
            where="mscale_all_dim",
        )
    candidates = list(_candidates(scaling, tables, keys))
    exact = [encoding for encoding in candidates if carries(encoding, tables, keys)]
    if keys.sliding == "tempered":
        tempered = [e for e in exact if not _is_one(e.attention_factor)]
        exact = [e for e in exact if _is_one(e.attention_factor)]
        if tempered and not exact:
            raise refuse_tempered(keys)
    if keys.sliding == "apart" and isinstance(scaling, NtkAware):
        raise refuse_enlarged(keys)
    if exact:
        return tuple(exact)
    worst = _difference(candidates[0], tables) if candidates else np.zeros(0)
    raise refuse_frequencies(scaling, worst, keys, FREQUENCY_TOLERANCE)


def _is_one(value: float | None) -> bool:
    return value is None or math.isclose(value, 1.0, rel_tol=MAGNITUDE_TOLERANCE)


def encode_rope(plan: RopePlan, keys: RopeKeys) -> RopeEncoding:
    """The plainest exact encoding. Raises Inexpressible where there is none."""
    return exact_encodings(plan, keys)[0]
