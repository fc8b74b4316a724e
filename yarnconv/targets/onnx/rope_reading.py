"""The RoPE that an ONNX directory carries, held against a plan fact by fact.

Tables may be exact (float64, rounded once), as `yarnconv onnx` writes them, or made in float32 as
transformers makes them: each angle is allowed what that arithmetic may lose (ANGLE_ROUNDING), and the fact
says which it is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from yarnconv.checkpoint.json_files import read_json_object
from yarnconv.plan import ConversionPlan, RopeGroup
from yarnconv.rope.tables import Float32Array, RopeTables
from yarnconv.targets.facts import FactComparison
from yarnconv.targets.onnx.files import CONFIG_FILE
from yarnconv.targets.onnx.layers import nodes_between
from yarnconv.targets.onnx.reader import OnnxModel, StoredTensor
from yarnconv.targets.onnx.rope import TableLayout, lay_out_tables

if TYPE_CHECKING:
    import onnx

ATTENTION = frozenset({"Attention", "GroupQueryAttention"})
# transformers' float32 frequencies are up to 1.1e-6 off (tests/rope/test_transformers.py holds them to 2e-6),
# and each angle is rounded once more
ANGLE_ROUNDING = 2e-6
VALUE_ROUNDING = 2.0**-22  # of a cosine in float32, by whoever computes it
EXACT = 2.0**-23
TABLE_VALUES = 2**20  # compared at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """One RotaryEmbedding node. cos, sin: names of the tables it takes its rows from, None where they are no
    tensors of the model. rounded: the narrower type that positions or rows are rounded to on their way.
    """

    pairing: str
    rotary_dim: int
    cos: str | None
    sin: str | None
    rounded: str | None

    def described(self, head_dim: int) -> str:
        """For people."""
        said = f"{self.rotary_dim or head_dim} dimensions, pairs {self.pairing}"
        return said if self.rounded is None else f"{said}, rounded to {self.rounded}"


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


def _attention_of(model: OnnxModel, index: int) -> "onnx.NodeProto | None":
    present = f"present.{index}.key"
    around = [*model.consumers.get(present, ()), *filter(None, [model.producers.get(present)])]
    return next((node for node in around if node.op_type in ATTENTION), None)


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


Rotations = tuple[Rotation | None, Rotation | None]


def read_rotations(model: OnnxModel, index: int) -> Rotations:
    """What rotates the queries and the keys of a layer, None where nothing does."""
    attention = _attention_of(model, index)
    if attention is None:
        return None, None
    return _rotation(model, attention.input[0]), _rotation(model, attention.input[1])


def _compare_rotations(plan: ConversionPlan, found: Sequence[Rotations]) -> Iterator[FactComparison]:
    """That each layer's query and key rotate as they should. found: of each layer."""
    for group in plan.rope.groups:
        for layer in group.layers:
            attention, wanted = plan.description.layers[layer].attention, "none"
            if group.scaling is not None:
                wanted = f"{group.scaling.rotary_dim} dimensions, pairs {attention.pairing}"
            kinds = [
                rotation.described(attention.head_dim) if rotation else "none" for rotation in found[layer]
            ]
            yield FactComparison(
                key=f"rotation of layer {layer}",
                expected=wanted,
                found=kinds[0] if kinds[0] == kinds[1] else f"queries {kinds[0]}; keys {kinds[1]}",
                agrees=kinds == [wanted, wanted],
            )


def _block(tables: RopeTables, cos: Float32Array, sin: Float32Array, first: int) -> tuple[float, int | None]:
    """(largest difference from the exact table, by the attention factor; first position that is further off
    than rounding explains).
    """
    last = first + len(cos)
    with np.errstate(invalid="ignore"):
        off = np.maximum(np.abs(cos - tables.cos(first, last)), np.abs(sin - tables.sin(first, last)))
        off = off.astype(np.float64) / tables.attention_factor
        angles = np.arange(first, last, dtype=np.float64)[:, None] * tables.inv_freq
        bad = ~(off <= VALUE_ROUNDING + ANGLE_ROUNDING * angles)  # True for NaN
    rows = np.flatnonzero(bad.any(axis=1))
    return float(np.nanmax(off, initial=0.0)), first + int(rows[0]) if len(rows) else None


def _described(tables: RopeTables, cos: StoredTensor, sin: StoredTensor, offset: int, bad: int) -> str:
    """What a table says that disagrees, from its second position: there the angle is the frequency."""
    c, s = (table.float32(offset + 1, offset + 2)[0].astype(np.float64) for table in (cos, sin))
    factor = float(np.median(np.hypot(c, s)))
    with np.errstate(all="ignore"):
        off = np.abs(np.arctan2(s, c) / tables.inv_freq - 1.0)
    worst = int(np.argmax(off))
    return (
        f"attention factor {factor:.6g}, frequencies off by up to {off[worst]:.2g} (pair {worst}), "
        f"the first position that differs is {bad}"
    )


def _compare_bucket(
    tables: RopeTables, cos: StoredTensor, sin: StoredTensor, offset: int, count: int
) -> tuple[str, bool]:
    step = max(1, TABLE_VALUES // len(tables.inv_freq))
    worst = 0.0
    for first in range(0, count, step):
        last = min(first + step, count)
        begin, end = offset + first, offset + last
        off, bad = _block(tables, cos.float32(begin, end), sin.float32(begin, end), first)
        if bad is not None:
            return _described(tables, cos, sin, offset, bad) if count > 1 else "differs", False
        worst = max(worst, off)
    made = "exact" if worst <= EXACT else f"made in float32, off by up to {worst:.1g}"
    return f"attention factor {tables.attention_factor:.6g}, {made}", True


def _window(model: OnnxModel, attention: "onnx.NodeProto") -> int | None:
    """Slots that a query looks back over: an attribute of one operator, and of the other's mask the constant
    that is added to the slots' ranks before they are compared with the query's.
    """
    from onnx import helper

    for attribute in attention.attribute:
        if attribute.name == "local_window_size":
            size = helper.get_attribute_value(attribute)
            return size if size > 0 else None
    for node in nodes_between(model, "", attention.input[3:4]):
        added = [model.tensors[name] for name in node.input if name in model.tensors]
        compared = any(user.op_type == "Greater" for user in model.consumers.get(node.output[0], ()))
        if node.op_type == "Add" and compared and added and added[0].element == "INT64":
            return int(np.frombuffer(added[0].data, np.int64)[0])
    return None


def _compare_windows(plan: ConversionPlan, model: OnnxModel) -> Iterator[FactComparison]:
    """How far each layer looks back, which a run of a few tokens does not show."""
    for index, layer in enumerate(plan.description.layers):
        node, wanted = _attention_of(model, index), layer.attention.window
        found = _window(model, node) if node is not None else None
        if wanted is not None or found is not None:
            yield FactComparison(
                key=f"window of layer {index}",
                expected=str(wanted),
                found=str(found),
                agrees=wanted == found,
            )


def _compare_tables(
    cos: StoredTensor, sin: StoredTensor, layout: TableLayout, name: str
) -> Iterator[FactComparison]:
    pairs = len(layout.buckets[0].inv_freq)
    wanted = f"FLOAT, {layout.rows} positions and one of no number, {pairs} pairs"
    kinds = []
    for table in (cos, sin):
        rows = table.shape[0] if table.shape else 0
        width = table.shape[1] if len(table.shape) == 2 else 0
        nan = width > 0 and rows > 0 and table.element == "FLOAT"
        nan = nan and bool(np.isnan(table.float32(rows - 1, rows)).all())
        kept = f"{rows - 1} positions and one of no number" if nan else f"{rows} positions"
        kinds.append(f"{table.element}, {kept}, {width} pairs")
    found = " and ".join(sorted(set(kinds)))
    yield FactComparison(key=name, expected=wanted, found=found, agrees=wanted == found)
    if any(len(t.shape) != 2 or t.shape[1] != pairs or t.element != "FLOAT" for t in (cos, sin)):
        return
    for tables, offset, count in zip(layout.buckets, layout.offsets, layout.positions, strict=True):
        key = f"{name}, factor {tables.factor:g}, positions 0 to {count - 1}"
        expected = f"attention factor {tables.attention_factor:.6g}"
        if offset + count > min(cos.shape[0], sin.shape[0]):
            yield FactComparison(key=key, expected=expected, found="too short", agrees=False)
            continue
        said, agrees = _compare_bucket(tables, cos, sin, offset, count)
        yield FactComparison(key=key, expected=expected, found=said, agrees=agrees)


def _compare_group(
    plan: ConversionPlan, model: OnnxModel, group: RopeGroup, rotations: Sequence[Rotations], max_context: int
) -> Iterator[FactComparison]:
    """Every table that the group's layers take rows from; they may share one or have one each. rotations: of
    every layer of the model.
    """
    layout = lay_out_tables(group, plan.rope.original_context, max_context)
    used = {(r.cos, r.sin) for layer in group.layers for r in rotations[layer] if r}
    for cos, sin in sorted(used, key=str):
        if cos is None or sin is None:
            yield FactComparison(
                key="tables",
                expected="tensors of the model",
                found="computed in the graph",
                agrees=False,
            )
        else:
            yield from _compare_tables(model.tensors[cos], model.tensors[sin], layout, f"{cos}, {sin}")


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
        *_compare_rotations(plan, rotations),
        *(
            fact
            for group in plan.rope.groups
            if group.scaling is not None
            for fact in _compare_group(plan, model, group, rotations, max_context)
        ),
        *_compare_windows(plan, model),
        *_compare_client(plan, model, max_context),
    )
