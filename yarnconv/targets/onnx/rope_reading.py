"""The RoPE that an ONNX directory carries, held against a plan fact by fact."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from yarnconv.checkpoint.json_files import read_json_object
from yarnconv.plan import ConversionPlan
from yarnconv.targets.facts import FactComparison
from yarnconv.targets.onnx.attention_reading import read_attention
from yarnconv.targets.onnx.files import CONFIG_FILE
from yarnconv.targets.onnx.layers import nodes_between
from yarnconv.targets.onnx.reader import OnnxModel
from yarnconv.targets.onnx.rope import lay_out_tables
from yarnconv.targets.onnx.rope_comparison import Rotation, Rotations, compare_rope
from yarnconv.targets.onnx.softmax_reading import read_scales

SOFTCAP_ROUNDING = 2.0**-20  # of a number of the config in float32


def _table(model: OnnxModel, value: str) -> str | None:
    """The tensor that a value's rows are taken from."""
    seen: set[str] = set()
    while value not in model.tensors:
        node = model.producers.get(value)
        passes = node is not None and node.op_type in {"Gather", "Cast", "Unsqueeze", "Identity"}
        if node is None or not passes or value in seen:
            return None
        seen.add(value)
        value = node.input[0]
    return value


def _rounding(model: OnnxModel, values: Sequence[str]) -> str | None:
    """The narrower float type that something on the way to these values is rounded to."""
    from onnx import TensorProto, helper

    narrow = {TensorProto.FLOAT16: "FLOAT16", TensorProto.BFLOAT16: "BFLOAT16"}
    for node in nodes_between(model, "", values):
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to":
                to = helper.get_attribute_value(attribute)
                if to in narrow:
                    return narrow[to]
    return None


def _rotation(model: OnnxModel, value: str) -> Rotation | None:
    """What rotates a value on its way from the projection."""
    from onnx import helper

    stack, seen = [value], set()
    while stack:
        name = stack.pop()
        node = model.producers.get(name)
        if node is None or name in seen or node.op_type == "MatMul":
            continue
        seen.add(name)
        if node.op_type != "RotaryEmbedding":
            stack += node.input
            continue
        values: dict[str, Any] = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        return Rotation(
            pairing="interleaved" if values.get("interleaved") else "half",
            rotary_dim=values.get("rotary_embedding_dim", 0),
            cos=_table(model, node.input[1]),
            sin=_table(model, node.input[2]),
            rounded=_rounding(model, node.input[1:]),
        )
    return None


def read_rotations(model: OnnxModel, index: int) -> Rotations:
    """What rotates the queries and the keys of a layer, None where nothing does."""
    attention = read_attention(model, index)
    if attention is None:
        return None, None
    return _rotation(model, attention.query), _rotation(model, attention.key)


def _compare_scores(plan: ConversionPlan, model: OnnxModel) -> Iterator[FactComparison]:
    """How far each layer looks back, which a run of a few tokens does not show, and what bends its scores."""
    for index, layer in enumerate(plan.description.layers):
        read, wanted = read_attention(model, index), layer.attention
        window, softcap = (read.window, read.softcap) if read is not None else (None, None)
        sinks = None if read is None else read.sinks
        if wanted.sinks or sinks:
            yield FactComparison(
                key=f"sinks of layer {index}",
                expected=_said(wanted.sinks),
                found=_said(sinks),
                agrees=wanted.sinks == sinks,
            )
        numbers: tuple[tuple[str, float | None, float | None], ...] = (
            ("window", wanted.window, window),
            ("softcap", wanted.softcap, softcap),
        )
        for name, expected, found in numbers:
            if expected is None and found is None:
                continue
            close = expected is not None and found is not None
            yield FactComparison(
                key=f"{name} of layer {index}",
                expected=_said(expected),
                found=_said(found),
                agrees=close and math.isclose(expected or 0, found or 0, rel_tol=SOFTCAP_ROUNDING),
            )


def _compare_softmax(plan: ConversionPlan, model: OnnxModel, max_context: int) -> Iterator[FactComparison]:
    """What latent attention multiplies scores by, which depends on the factor."""
    for group in plan.rope.groups:
        for index in group.layers:
            attention = plan.description.layers[index].attention
            if attention.latent is None or not group.buckets:
                continue
            layout = lay_out_tables(group, plan.rope.original_context, max_context)
            multipliers = dict.fromkeys(tables.softmax_multiplier for tables in layout.buckets)
            wanted = [attention.scale * multiplier for multiplier in multipliers]
            found = read_scales(model, index) or ()
            yield FactComparison(
                key=f"scale of the scores of layer {index}",
                expected=", ".join(map(_said, wanted)),
                found=", ".join(map(_said, found)) or "none",
                agrees=len(found) == len(wanted)
                and all(
                    math.isclose(one, other, rel_tol=SOFTCAP_ROUNDING)
                    for one, other in zip(found, wanted, strict=True)
                ),
            )


def _said(number: float | bool | None) -> str:
    return f"{number:.6g}" if isinstance(number, float) else str(number)


def _at(document: Any, *path: str) -> Any:
    for key in path:
        document = document.get(key) if isinstance(document, dict) else None
    return document


def _compare_client(plan: ConversionPlan, model: OnnxModel, max_context: int) -> Iterator[FactComparison]:
    """What genai_config.json, where there is one, tells a client of the context and of the cache."""
    if not (model.directory / CONFIG_FILE).exists():
        return
    config = read_json_object(model.directory / CONFIG_FILE)
    attention = plan.description.layers[0].attention
    wanted: Sequence[tuple[tuple[str, ...], object, bool]] = (
        (("model", "context_length"), max_context, True),
        (("model", "decoder", "filename"), model.path.name, True),
        (("model", "decoder", "num_hidden_layers"), len(plan.description.layers), True),
        (("model", "decoder", "num_key_value_heads"), attention.key_value_heads, True),
        (("model", "decoder", "head_size"), attention.head_dim, True),
        (("search", "past_present_share_buffer"), model.in_place, True),
        # a default that a client may well change, but what it gets unless it asks for more
        (("search", "max_length"), min(plan.rope.original_context, max_context), False),
    )
    for path, expected, decisive in wanted:
        found = _at(config, *path)
        yield FactComparison(
            key=f"{CONFIG_FILE}: {'.'.join(path)}",
            expected=str(expected),
            found=str(found)[:80],
            agrees=type(found) is type(expected) and found == expected,
            decisive=decisive,
        )


def compare_metadata(plan: ConversionPlan, model: OnnxModel, max_context: int) -> tuple[FactComparison, ...]:
    """Every rotation, every table, and what clients are told, against the plan.

    max_context: positions that the tables should reach.
    """
    rotations = [read_rotations(model, index) for index in range(len(plan.description.layers))]
    return (
        *compare_rope(plan.rope, plan.description, rotations, model.tensors, max_context),
        *_compare_scores(plan, model),
        *_compare_softmax(plan, model, max_context),
        *_compare_client(plan, model, max_context),
    )
