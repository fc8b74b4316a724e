"""What TensorRT made of the graph, held against the plan: the read-back.

It also looks for what TensorRT takes without a word and computes otherwise: an attention that masks from the
upper left (wrong beside a cache), one without a mask, an input that was baked in.
"""

import math
from collections.abc import Iterator

from yarnconv.model.description import ModelDescription
from yarnconv.rope_plan import RopePlan
from yarnconv.targets.facts import FactComparison
from yarnconv.targets.onnx.operators import ROPE_CONTEXT
from yarnconv.targets.onnx.rope import is_dynamic
from yarnconv.targets.onnx.rope_comparison import compare_rope
from yarnconv.targets.tensorrt.builder import Network, NetworkAttention

# a scale is multiplied in as two square roots, each rounded to the graph's type: of fp16 2^-11, of bf16 2^-8
SCALE_ROUNDING = 2.0**-7


def input_names(layers: int, *, dynamic: bool) -> list[str]:
    """What an engine takes."""
    caches = [f"past_key_values.{i}.{which}" for i in range(layers) for which in ("key", "value")]
    return ["input_ids", "attention_mask", "position_ids", *([ROPE_CONTEXT] if dynamic else []), *caches]


def output_names(layers: int) -> list[str]:
    """What an engine gives."""
    return ["logits", *(f"present.{i}.{which}" for i in range(layers) for which in ("key", "value"))]


def _compare_names(key: str, expected: list[str], found: list[str], missing: str) -> FactComparison:
    gone, more = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    said = [f"{name} {missing}" for name in gone[:3]] + [f"{name} too many" for name in more[:3]]
    return FactComparison(
        key=key,
        expected=f"{len(expected)} {key}",
        found=", ".join(said) or f"{len(found)} {key}",
        agrees=not gone and not more,
    )


def _described(attention: NetworkAttention, scale: float, turns: tuple[int, ...]) -> str:
    """For people; a scale that is the expected one but for rounding counts as that."""
    close = math.isclose(attention.scale, scale, rel_tol=SCALE_ROUNDING)
    kind = "masked from the upper left" if attention.causal else "masked by the graph"
    said = f"{kind if attention.mask or attention.causal else 'not masked'}, scores times " + (
        f"{scale:.6g}" if close else f"{attention.scale:.6g}"
    )
    if attention.turns != turns:
        said += ", queries, keys and values rotated {} times, not {}".format(
            *(" and ".join(map(str, numbers)) for numbers in (attention.turns, turns))
        )
    return said if attention.needed else f"{said}, and nothing is made of it"


def _compare_attentions(
    rope: RopePlan, model: ModelDescription, network: Network
) -> Iterator[FactComparison]:
    multiplier = rope.main_group.buckets[-1].softmax_multiplier
    rotated = {layer for group in rope.groups if group.scaling is not None for layer in group.layers}
    for index, layer in enumerate(model.layers):
        scale = multiplier / math.sqrt(layer.attention.head_dim)
        turns = (1, 1, 0) if index in rotated else (0, 0, 0)
        found = [_described(a, scale, turns) for a in network.attentions if a.layer == index]
        expected = f"masked by the graph, scores times {scale:.6g}"
        yield FactComparison(
            key=f"attention of layer {index}",
            expected=expected,
            found="; ".join(found) or "none",
            agrees=found == [expected],
        )


def _compare_shapes(model: ModelDescription, network: Network) -> Iterator[FactComparison]:
    """Of the caches and the logits."""
    found = {tensor.name: tensor.shape for tensor in (*network.inputs, *network.outputs)}
    for index, layer in enumerate(model.layers):
        wanted = (-1, layer.attention.key_value_heads, -1, layer.attention.head_dim)
        for which in ("key", "value"):
            shape = found.get(f"past_key_values.{index}.{which}")
            if shape != wanted:
                key = f"cache of layer {index}"
                yield FactComparison(key=key, expected=str(wanted), found=str(shape), agrees=False)
    width = found.get("logits", (0,))[-1]
    yield FactComparison(
        key="width of the logits",
        expected=str(model.vocab_size),
        found=str(width),
        agrees=width == model.vocab_size,
    )


def compare_network(
    rope: RopePlan, model: ModelDescription, network: Network, max_context: int
) -> tuple[FactComparison, ...]:
    """Every input and output, attention, rotation and table of a network.

    max_context: positions of the tables.
    """
    layers = len(model.layers)
    dynamic = is_dynamic(rope.main_group, rope.original_context, max_context)
    by_layer = {attention.layer: attention.rotations for attention in network.attentions}
    rotations = [by_layer.get(index, (None, None)) for index in range(layers)]
    inputs = [tensor.name for tensor in network.inputs if tensor.name not in network.unused]
    outputs = [tensor.name for tensor in network.outputs]
    return (
        _compare_names("inputs", input_names(layers, dynamic=dynamic), inputs, "is unused or baked in"),
        _compare_names("outputs", output_names(layers), outputs, "is missing"),
        *_compare_shapes(model, network),
        *_compare_attentions(rope, model, network),
        *compare_rope(rope, model, rotations, network.tables, max_context),
    )
