"""What TensorRT made of the graph, held against the plan: the read-back.

It also looks for what TensorRT takes without a word and computes otherwise: an attention that masks from the
upper left (wrong beside a cache), one without a mask, an input that was baked in.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from yarnconv.model.description import AttentionDescription, ModelDescription
from yarnconv.rope_plan import RopePlan
from yarnconv.targets.facts import FactComparison
from yarnconv.targets.onnx.operators import ROPE_CONTEXT
from yarnconv.targets.onnx.rope import is_dynamic, lay_out_tables
from yarnconv.targets.onnx.rope_comparison import compare_rope
from yarnconv.targets.tensorrt.builder import Network, NetworkAttention

# a scale is multiplied in as two square roots, each rounded to the graph's type: of fp16 2^-11, of bf16 2^-8
SCALE_ROUNDING = 2.0**-7
NUMBER_ROUNDING = 2.0**-20  # of a number of the config in float32


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """What a layer's attention should be. scales: of the scores, with what RoPE multiplies them by, of each
    bucket where those differ. turns: how often its queries, keys and values are rotated.
    """

    attention: AttentionDescription
    scales: tuple[float, ...]
    turns: tuple[int, ...]


def _near(number: float, wanted: float | None, rounding: float) -> float | None:
    """The wanted number where another is that one but for rounding."""
    return wanted if wanted is not None and math.isclose(number, wanted, rel_tol=rounding) else number


def _said(
    mask: str,
    scales: Sequence[float],
    window: int | None,
    softcap: float | None,
    sinks: bool,
    growth: tuple[float, ...] | None,
) -> str:
    """For people."""
    said = f"{mask}, scores times {', '.join(f'{scale:.6g}' for scale in scales)}"
    said += " beside sinks" if sinks else ""
    said += "" if softcap is None else f", capped at {softcap:.6g}"
    said += "" if window is None else f", over {window} positions"
    return said if growth is None else f"{said}, queries growing by {growth[0]:.6g} every {growth[1]:g}"


def _expected(wanted: _Wanted) -> str:
    attention, growth = wanted.attention, wanted.attention.query_growth
    grows = None if growth is None else (growth.beta, growth.context)
    own = attention.window, attention.softcap, attention.sinks, grows
    return _said("masked by the graph", wanted.scales, *own)


def _described(found: NetworkAttention, wanted: _Wanted) -> str:
    """For people; numbers that are the expected ones but for rounding count as those."""
    attention, growth = wanted.attention, wanted.attention.query_growth
    kind = "masked from the upper left" if found.causal else "masked by the graph"
    grows = found.growth
    if grows is not None and growth is not None:
        pairs = zip(grows, (growth.beta, growth.context), strict=True)
        grows = tuple(_near(own, other, NUMBER_ROUNDING) or 0.0 for own, other in pairs)  # type: ignore[assignment]
    said = _said(
        kind if found.mask or found.causal else "not masked",
        [
            _near(scale, expected, SCALE_ROUNDING) or 0.0
            for scale, expected in zip_longest(found.scales, wanted.scales)
            if scale is not None
        ],
        found.window,
        None if found.softcap is None else _near(found.softcap, attention.softcap, NUMBER_ROUNDING),
        found.sinks,
        grows,
    )
    if found.turns != wanted.turns:
        said += ", queries, keys and values rotated {} times, not {}".format(
            *(" and ".join(map(str, numbers)) for numbers in (found.turns, wanted.turns))
        )
    return said if found.needed else f"{said}, and nothing is made of it"


def _compare_attentions(
    rope: RopePlan, model: ModelDescription, network: Network, max_context: int
) -> Iterator[FactComparison]:
    groups = {layer: group for group in rope.groups for layer in group.layers}
    for index, layer in enumerate(model.layers):
        attention, group = layer.attention, groups[index]
        turns, multipliers = (0, 0, 0), {1.0: None}
        if group.buckets:
            layout = lay_out_tables(group, rope.original_context, max_context)
            multipliers = dict.fromkeys(tables.softmax_multiplier for tables in layout.buckets)
            # of latent attention the keys are the values
            turns = (1, 1, 0 if attention.latent is None else 1)
        wanted = _Wanted(
            attention=attention,
            scales=tuple(multiplier * attention.scale for multiplier in multipliers),
            turns=turns,
        )
        found = [_described(a, wanted) for a in network.attentions if a.layer == index]
        yield FactComparison(
            key=f"attention of layer {index}",
            expected=_expected(wanted),
            found="; ".join(found) or "none",
            agrees=found == [_expected(wanted)],
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
        *_compare_attentions(rope, model, network, max_context),
        *compare_rope(rope, model, rotations, network.tables, max_context),
    )
