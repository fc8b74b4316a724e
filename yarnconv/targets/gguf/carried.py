"""The RoPE that an existing GGUF carries, in the plan's terms: what llama.cpp would compute with, by name.

Keys and tensors decide. What this tool recorded of the plan only gives its name to frequencies and magnitudes
that the keys have exactly: a larger base does not say of which original context it was made.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from yarnconv.errors import BadInput, Inexpressible
from yarnconv.rope.identify import LLAMA3
from yarnconv.rope.profiles import Profile, recognise
from yarnconv.rope.request import RopeRequest
from yarnconv.rope.scaling import Linear, Llama3, Scaling, Stretched, Unscaled, Yarn, is_dynamic
from yarnconv.rope.spelling import ConfigRope
from yarnconv.rope.tables import buckets, magnitude
from yarnconv.rope_plan import RopePlan, plan_artefact
from yarnconv.targets.gguf.reader import GgufFile
from yarnconv.targets.gguf.rope import (
    MAGNITUDE_TOLERANCE,
    RopeEncoding,
    carries,
    runtime_magnitudes,
)
from yarnconv.targets.gguf.rope_keys import RUNTIME_COEFFICIENT, RopeKeys
from yarnconv.targets.gguf.rope_reading import read_encoding
from yarnconv.targets.record import RECORD_KEY, read_record, recorded_scaling

MAXIMUM_LAYERS = 512  # llama.cpp's LLAMA_MAX_LAYERS
SCALING_TYPES = ("none", "linear", "yarn", "longrope")  # any other aborts llama.cpp

LLAMA3_TOLERANCE = 1e-5  # converters compute the divisors in float32; the sets differ by a factor of 4
MODEL_TYPES = {"qwen3moe": "qwen3_moe"}  # where llama.cpp's name is not transformers'


@dataclass(frozen=True, slots=True, kw_only=True)
class CarriedRope:
    """What a GGUF carries. context: the one that it states; maximum: the one without the scaling. notes: on
    how it was understood. recorded: what this tool wrote down of it, whether or not it is so.
    """

    rope: ConfigRope
    context: int
    maximum: int
    layers: int
    head_dim: int
    profile: Profile | None
    notes: tuple[str, ...]
    recorded: Scaling | None


def positive(artefact: GgufFile, name: str, largest: int, default: int | None = None) -> int:
    """A key of the architecture's own. Raises BadInput where it is missing or not from 1 to `largest`."""
    key = f"{artefact.architecture}.{name}"
    value = artefact.scalar(key, int, default)
    if value is None:
        raise BadInput(f"the key {key} is missing", where=artefact.path.name)
    if not 0 < value <= largest:
        raise BadInput(f"is {value}, not between 1 and {largest}", where=f"{artefact.path.name}: {key}")
    return int(value)


def head_dim_of(artefact: GgufFile) -> int:
    """Dimensions of a head of queries and keys; of latent attention before they are absorbed."""
    largest = 2**20
    for name in ("attention.key_length_mla", "attention.key_length"):
        if f"{artefact.architecture}.{name}" in artefact.packed:
            return positive(artefact, name, largest)
    key = f"{artefact.architecture}.attention.head_count"
    if len(artefact.packed.get(key, b"")) > 16 + 8 * MAXIMUM_LAYERS:  # a list's head, and 64 bits for each
        raise BadInput(f"is more than {MAXIMUM_LAYERS} numbers", where=f"{artefact.path.name}: {key}")
    heads = artefact.value(key)
    if isinstance(heads, list):  # one for each layer; some have none
        heads = max((one for one in heads if isinstance(one, int)), default=None)
    if not isinstance(heads, int) or heads <= 0:
        raise BadInput("neither the size nor the number of heads is given", where=artefact.path.name)
    return positive(artefact, "embedding_length", 2**31) // heads


def _shortest(value: float) -> float:
    """What a float32 was rounded from, as far as anyone writes numbers: 3.9 for 3.9000000953674316."""
    with np.errstate(over="ignore"):  # to infinity, which no scaling takes
        return float(str(np.float32(value)))


def _yarn(encoding: RopeEncoding, theta: float, rotary_dim: int, keys: RopeKeys) -> Yarn:
    factor = _shortest(encoding.factor or 1.0)
    on_cos, whole = runtime_magnitudes(encoding, keys)
    attention_factor: float | None = on_cos
    if math.isclose(on_cos, magnitude(factor, RUNTIME_COEFFICIENT), rel_tol=MAGNITUDE_TOLERANCE):
        attention_factor = None
    elif math.isclose(on_cos, 1.0, rel_tol=MAGNITUDE_TOLERANCE):
        attention_factor = 1.0
    mscale_all_dim = None
    if keys.log_multiplier == "mistral3" and encoding.log_multiplier and encoding.attention_factor == 1.0:
        return Yarn(  # a pair too, of which it takes the first for 1
            **_common(encoding, theta, rotary_dim, keys),
            factor=factor,
            mscale=1.0,
            mscale_all_dim=_shortest(encoding.log_multiplier),
        )
    if keys.latent and factor > 1.0 and not math.isclose(whole, 1.0, rel_tol=MAGNITUDE_TOLERANCE):
        mscale_all_dim = _shortest((whole - 1.0) / (RUNTIME_COEFFICIENT * math.log(factor)))
        if attention_factor == 1.0:  # DeepSeek's pair, which follows the factor
            return Yarn(
                **_common(encoding, theta, rotary_dim, keys),
                factor=factor,
                mscale=mscale_all_dim,
                mscale_all_dim=mscale_all_dim,
                softmax_mscale=True,
            )
    return Yarn(
        **_common(encoding, theta, rotary_dim, keys),
        factor=factor,
        attention_factor=attention_factor,
        mscale_all_dim=mscale_all_dim,
        softmax_mscale=keys.latent,
    )


def _common(encoding: RopeEncoding, theta: float, rotary_dim: int, keys: RopeKeys) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "theta": theta,
        "rotary_dim": rotary_dim,
        "original_context": encoding.original_context_length,
    }
    if keys.betas:
        fields |= {"beta_fast": encoding.beta_fast, "beta_slow": encoding.beta_slow}
    return fields


def _named_divisors(encoding: RopeEncoding, theta: float, rotary_dim: int) -> Llama3:
    """Llama 3's own scaling, recognised by its divisors. Raises Inexpressible for any other set."""
    assert encoding.rope_freqs is not None
    for factor, low, high, original in LLAMA3:
        scaling = Llama3(
            theta=theta,
            rotary_dim=rotary_dim,
            original_context=original,
            factor=factor,
            low_freq_factor=low,
            high_freq_factor=high,
        )
        plain = buckets(Unscaled(theta=theta, rotary_dim=rotary_dim))[0].inv_freq
        divisors = plain / buckets(scaling)[0].inv_freq
        with np.errstate(all="ignore"):
            if np.allclose(encoding.rope_freqs, divisors, rtol=LLAMA3_TOLERANCE, atol=0.0):
                return scaling
    raise Inexpressible(
        "its frequencies stand in the tensor rope_freqs, and which scaling they are of is not known",
        where="rope_freqs.weight",
        fix="Convert from the checkpoint instead.",
    )


def _named(encoding: RopeEncoding, rotary_dim: int, keys: RopeKeys) -> Scaling:
    """The scaling that keys and tensors are of, by themselves."""
    theta, factor = _shortest(encoding.freq_base), _shortest(encoding.factor or 1.0)
    if encoding.rope_freqs is not None:
        if encoding.scaling_type in {"linear", "yarn"} and factor != 1.0:
            raise Inexpressible(
                f"the tensor rope_freqs and the scaling type {encoding.scaling_type} act at once",
                where="rope_freqs.weight",
                fix="Convert from the checkpoint instead.",
            )
        return _named_divisors(encoding, theta, rotary_dim)
    if encoding.scaling_type == "yarn":
        return _yarn(encoding, theta, rotary_dim, keys)
    if not all(math.isclose(m, 1.0, rel_tol=MAGNITUDE_TOLERANCE) for m in runtime_magnitudes(encoding, keys)):
        raise Inexpressible(
            "it carries an attention temperature without YaRN, for which there is no method",
            where=f"{keys.name}.rope.scaling.attn_factor",
            fix="Convert from the checkpoint instead.",
        )
    if encoding.scaling_type == "linear" and factor != 1.0:
        return Linear(
            theta=theta,
            rotary_dim=rotary_dim,
            original_context=encoding.original_context_length or 0,
            factor=factor,
        )
    return Unscaled(theta=theta, rotary_dim=rotary_dim)


def _recorded(artefact: GgufFile, rotary_dim: int, keys: RopeKeys) -> tuple[Scaling | None, bool | None]:
    """(the scaling that this tool recorded, whether the model was trained with it), if that can be read."""
    text = artefact.scalar(RECORD_KEY, str)
    try:
        record = read_record(text) if text else {}
    except BadInput:
        return None, None
    finetuned = record.get("finetuned")
    scaling = recorded_scaling(record, rotary_dim, latent=keys.latent)
    return scaling, finetuned if isinstance(finetuned, bool) and scaling is not None else None


def _with_linear_original(
    encoding: RopeEncoding, artefact: GgufFile, context: int
) -> tuple[RopeEncoding, tuple[str, ...]]:
    """With the original context under linear scaling, for which there need be no key; and what to say."""
    factor = _shortest(encoding.factor or 1.0)
    key = f"{artefact.architecture}.rope.scaling.original_context_length"
    if key in artefact.packed or not 1.0 < factor < context:
        return encoding, ()
    original = round(context / factor)
    return replace(encoding, original_context_length=original), (
        f"The file does not say which context the model was trained with: {context} positions by its linear "
        f"factor of {factor:g} are {original}. If it was another, give --original-context.",
    )


def check_readable(artefact: GgufFile, encoding: RopeEncoding, rotary_dim: int) -> None:
    """Refuse what no runtime reads."""
    prefix = f"{artefact.architecture}.rope"
    if encoding.scaling_type not in SCALING_TYPES:
        raise BadInput(
            f"is {encoding.scaling_type!r:.80}, at which llama.cpp aborts",
            where=f"{artefact.path.name}: {prefix}.scaling.type",
            fix=f"It knows {', '.join(SCALING_TYPES)}.",
        )
    if encoding.rope_freqs is not None and encoding.rope_freqs.shape != (rotary_dim // 2,):
        raise BadInput(
            f"has {len(encoding.rope_freqs)} divisors, not {rotary_dim // 2}",
            where=f"{artefact.path.name}: rope_freqs.weight",
        )


def _refuse_other_layers(artefact: GgufFile, encoding: RopeEncoding, keys: RopeKeys) -> None:
    """What would not be what it seems."""
    prefix = f"{artefact.architecture}.rope"
    if keys.finetuned_is_switch and artefact.scalar(f"{prefix}.scaling.finetuned", bool, True) is False:
        raise Inexpressible("its RoPE is switched off", where=f"{prefix}.scaling.finetuned")
    sliding_base = artefact.scalar(f"{prefix}.freq_base_swa", float, encoding.freq_base)
    if keys.sliding == "alike" and sliding_base != encoding.freq_base:
        raise Inexpressible(
            "its layers with a sliding window have a RoPE of their own, which llama.cpp would scale as well",
            where=f"{prefix}.freq_base_swa",
        )


def _by_keys(
    artefact: GgufFile, encoding: RopeEncoding, rotary_dim: int, keys: RopeKeys, context: int
) -> tuple[Scaling, tuple[str, ...]]:
    """The scaling that keys and tensors are of, and what to say of it."""
    notes: tuple[str, ...] = ()
    if encoding.scaling_type == "linear":
        encoding, notes = _with_linear_original(encoding, artefact, context)
    try:
        return _named(encoding, rotary_dim, keys), notes
    except BadInput as error:
        where = f"{artefact.path.name}: {artefact.architecture}.rope"
        raise BadInput(error.what, where=where, fix=error.fix) from None


def read_carried(artefact: GgufFile, keys: RopeKeys) -> CarriedRope:
    """Raises BadInput for keys that no runtime could read, Inexpressible for a RoPE that has no name."""
    context = positive(artefact, "context_length", 2**31 - 1)
    head_dim = head_dim_of(artefact)
    rotary_dim = positive(artefact, "rope.dimension_count", head_dim, head_dim)
    encoding = read_encoding(artefact, keys)
    check_readable(artefact, encoding, rotary_dim)
    _refuse_other_layers(artefact, encoding, keys)
    recorded, finetuned = _recorded(artefact, rotary_dim, keys)
    scaling, notes = recorded, () if keys.remark is None else (keys.remark,)
    if scaling is None or is_dynamic(scaling) or not carries(encoding, buckets(scaling)[-1], keys):
        scaling, said = _by_keys(artefact, encoding, rotary_dim, keys, context)
        notes, finetuned = (*notes, *said), None
    key = f"{artefact.architecture}.rope.scaling.finetuned"
    rope = ConfigRope(groups={None: scaling}, finetuned=artefact.scalar(key, bool, finetuned))
    model_type = MODEL_TYPES.get(artefact.architecture, artefact.architecture)
    return CarriedRope(
        rope=rope,
        context=context,
        maximum=scaling.original_context if isinstance(scaling, Stretched) else context,
        layers=positive(artefact, "block_count", MAXIMUM_LAYERS),
        head_dim=head_dim,
        profile=recognise({"model_type": model_type, "max_position_embeddings": context}, rope),
        notes=notes,
        recorded=recorded,
    )


def plan_carried(carried: CarriedRope, request: RopeRequest) -> RopePlan:
    """The plan of a GGUF's extension; with nothing asked, the plan that it carries."""
    plan = plan_artefact(
        carried.rope,
        request,
        carried.profile if request.use_profile else None,
        maximum=carried.maximum,
        layers=carried.layers,
        head_dim=carried.head_dim,
    )
    notes = carried.notes
    if request.asks_for_something and plan.target_context < carried.context:
        notes = (
            f"The file states a context of {carried.context} positions; by this plan it reaches "
            f"{plan.target_context}.",
            *notes,
        )
    return replace(plan, warnings=(*notes, *plan.warnings))
