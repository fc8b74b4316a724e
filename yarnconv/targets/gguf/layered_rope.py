"""The RoPE of all of a plan's layers in llama.cpp's terms: what the extended ones turn by, exactly, and that
the others turn by what the architecture gives them, or not at all.
"""

from collections.abc import Iterator
from dataclasses import replace

from yarnconv.errors import Inexpressible
from yarnconv.plan import ConversionPlan
from yarnconv.rope.scaling import Unscaled, method_name
from yarnconv.rope_plan import RopeGroup
from yarnconv.targets.gguf.refusals import slides
from yarnconv.targets.gguf.rope import RopeEncoding, exact_encodings
from yarnconv.targets.gguf.rope_keys import RopeKeys, rope_keys
from yarnconv.targets.gguf.runtime import RuntimeArchitecture

BY_TYPE = "rope_parameters by layer type"


def keys_of_plan(plan: ConversionPlan, runtime: RuntimeArchitecture) -> RopeKeys:
    """What the architecture reads of RoPE, in a file of this model."""
    keys = rope_keys(runtime.name)
    some = any(slides(layer.attention) for layer in plan.description.layers)
    return keys if some else keys.without_windows()


def _refuse(keys: RopeKeys, what: str) -> Inexpressible:
    return Inexpressible(f"llama.cpp's {keys.name} architecture {what}", where=BY_TYPE)


def _sliding_base(plan: ConversionPlan, group: RopeGroup, keys: RopeKeys) -> float | None:
    """The base that layers with a window have by a key; None where no key says it. group: theirs.

    Raises Inexpressible where they are to turn otherwise than the architecture has it.
    """
    scaling, main = group.scaling, plan.rope.main
    if keys.sliding not in {"tempered", "apart"}:
        if scaling != main:
            raise _refuse(keys, "reads one RoPE for all layers")
        return None
    if not isinstance(scaling, Unscaled):
        raise _refuse(
            keys,
            "never scales layers with a sliding window, and theirs is scaled by "
            f"{'nothing' if scaling is None else method_name(scaling)}",
        )
    if scaling.rotary_dim != main.rotary_dim:
        raise _refuse(keys, "turns as many dimensions of every layer")
    if keys.sliding == "apart":
        if scaling.theta != main.theta:
            raise _refuse(
                keys,
                f"has one base for all layers, not {main.theta:g} and {scaling.theta:g}",
            )
        return None
    return scaling.theta


def _groups(plan: ConversionPlan, keys: RopeKeys) -> Iterator[float]:
    """Judge the group of each layer that turns; the bases that are to be said by a key."""
    layers = plan.description.layers
    for group in plan.rope.groups:
        if group.scaling is None:
            continue  # which layers have no RoPE is of the structure
        sliding = [slides(layers[index].attention) for index in group.layers]
        if not all(sliding) and group.scaling != plan.rope.main:
            raise _refuse(keys, "reads one RoPE for all layers without a window")
        if any(sliding) and (base := _sliding_base(plan, group, keys)) is not None:
            yield base


def _counting(encodings: tuple[RopeEncoding, ...], context: int) -> tuple[RopeEncoding, ...]:
    """Those in which queries grow with their position in this context: one key says it, and the original
    context of YaRN and of longrope as well.
    """
    kept = tuple(
        replace(encoding, original_context_length=context)
        for encoding in encodings
        if encoding.original_context_length in {None, context}
    )
    if not kept:
        raise Inexpressible(
            f"queries grow with their position in contexts of {context}, the scaling is of an original "
            f"context of {encodings[0].original_context_length}, and one key of llama.cpp says both",
            where="original_max_position_embeddings",
            fix=f"Give no --original-context, or {context}.",
        )
    return kept


def layered_encodings(plan: ConversionPlan, runtime: RuntimeArchitecture) -> tuple[RopeEncoding, ...]:
    """Every known way to say a plan exactly to an architecture of llama.cpp, the plainest first.

    Raises Inexpressible where there is none.
    """
    keys = keys_of_plan(plan, runtime)
    bases = set(_groups(plan, keys))
    encodings = exact_encodings(plan.rope, keys)
    for base in bases:  # of one type of layers, so that there is one at most
        encodings = tuple(replace(encoding, freq_base_sliding=base) for encoding in encodings)
    growth = plan.description.layers[0].attention.query_growth
    return encodings if growth is None else _counting(encodings, growth.context)
