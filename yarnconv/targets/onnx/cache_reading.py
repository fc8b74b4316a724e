"""What the tables of an ONNX model carry, by whatever says it and agrees with them.

Asked in turn: this tool's record, a config.json beside the model, and the tables themselves, which can name
plain RoPE and nothing else. None is believed before every row has been compared.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from yarnconv.checkpoint.json_files import read_json_object
from yarnconv.errors import BadInput
from yarnconv.model.describe import with_defaults
from yarnconv.model.description import ModelDescription
from yarnconv.model.family import find_family
from yarnconv.rope.bases import plain_base
from yarnconv.rope.observation import Observation
from yarnconv.rope.profiles import Profile, recognise
from yarnconv.rope.request import RopeRequest
from yarnconv.rope.scaling import Scaling, Unscaled, method_name
from yarnconv.rope.spelling import ConfigRope, read_rope
from yarnconv.rope.tables import buckets
from yarnconv.rope_plan import RopeGroup, plan_rope
from yarnconv.targets.inspection.observed_table import ROUNDINGS, frequency_uncertainty, read_frequencies
from yarnconv.targets.onnx.files import CONFIG_FILE
from yarnconv.targets.onnx.lookup import Lookup, lookup_signature, refusal
from yarnconv.targets.onnx.reader import OnnxModel
from yarnconv.targets.onnx.rope import TableLayout, lay_out_tables
from yarnconv.targets.onnx.rope_comparison import TABLE_VALUES, compare_bucket
from yarnconv.targets.onnx.rotation_part import rotation_part
from yarnconv.targets.record import RECORD_KEY, read_record, recorded_request

MODEL_CONFIG = "config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """What a model carries.

    rope: its only scaling. original_context: of that scaling; context: of a model that is not extended.
    max_context: positions of its tables. config, model: the model's config.json and what it describes, where
    they are known. options: the rope options that make the scaling of that config. source: who said so.
    """

    rope: ConfigRope
    original_context: int
    context: int
    max_context: int
    profile: Profile | None
    source: str
    config: Mapping[str, Any] | None = None
    model: ModelDescription | None = None
    options: RopeRequest | None = None

    @property
    def scaling(self) -> Scaling:
        """The one that all layers share."""
        scaling = self.rope.groups[None]
        assert scaling is not None
        return scaling

    @property
    def layout(self) -> TableLayout:
        """Its tables, row by row."""
        group = RopeGroup(layers=(0,), scaling=self.scaling, buckets=buckets(self.scaling))
        return lay_out_tables(group, self.original_context, self.max_context)


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 1 < value < 2**31 else None


def client_context(model: OnnxModel) -> int | None:
    """What genai_config.json states as the model's context; None where there is no such file."""
    path = model.directory / CONFIG_FILE
    if not path.exists():
        return None
    inside = read_json_object(path).get("model")
    stated = inside.get("context_length") if isinstance(inside, dict) else None
    if _whole(stated) is None:
        what = f"model.context_length is {str(stated)[:40]}, no number of positions"
        raise BadInput(what, where=CONFIG_FILE, fix="Correct it, or take the file away.")
    return _whole(stated)


# who may say it


def _only_group(rope: ConfigRope, model: OnnxModel) -> ConfigRope:
    """Its RoPE, where all layers that have any share it. Raises Inexpressible where they do not: of tables
    that serve several kinds of layers only one kind's may be extended, and they may hold the same numbers.
    """
    if rope.groups.get(None) is None:
        raise refusal("layers of several kinds have RoPE of their own, of which only one is extended", model)
    return rope


def _from_record(model: OnnxModel, lookup: Lookup) -> Carried | None:
    """By the record; None where there is none. Raises BadInput where it cannot be used."""
    recorded = model.metadata(RECORD_KEY)
    if recorded is None:
        return None
    record, options = read_record(recorded), recorded_request(recorded)
    config, graph = record.get("config"), record.get("graph")
    max_context = _whole(graph.get("max_context")) if isinstance(graph, dict) else None
    if max_context is None:
        raise BadInput("it does not say how long the tables are")
    if isinstance(config, dict) and options is not None:
        plan, description, _ = plan_rope(config, options)
        scaled = [group.scaling for group in plan.groups if group.scaling is not None]
        _only_group(ConfigRope(groups={None: scaled[0] if len(scaled) == 1 else None}), model)
        profile = replace(plan.profile, scaling=None) if plan.profile else None
        return Carried(
            rope=ConfigRope(groups={None: plan.main}, finetuned=plan.finetuned),
            original_context=plan.original_context,
            context=description.max_position_embeddings,
            max_context=max_context,
            profile=profile,
            source="its record",
            config=config,
            model=description,
            options=options,
        )
    original = _whole(record.get("original_context"))
    if original is None:
        raise BadInput("it does not state the original context")
    spelled = {
        "rope_parameters": record.get("rope_parameters"),
        "max_position_embeddings": original,
        "head_dim": 2 * lookup.pairs,
    }
    rope = _only_group(read_rope(spelled), model)
    return Carried(
        rope=replace(rope, finetuned=record.get("finetuned") is True),
        original_context=original,
        context=original,
        max_context=max_context,
        profile=None,
        source="its record",
    )


def _from_config(model: OnnxModel, lookup: Lookup) -> Carried | None:
    """By a config.json beside it; None where there is none. Raises BadInput where it cannot be used."""
    path = model.directory / MODEL_CONFIG
    if not path.exists():
        return None
    config = read_json_object(path)
    filled = with_defaults(find_family(config), config)
    rope = _only_group(read_rope(filled), model)
    scaling, context = rope.groups[None], _whole(filled.get("max_position_embeddings"))
    assert scaling is not None
    if context is None:
        raise BadInput("max_position_embeddings is no number of positions")
    profile = recognise(filled, rope)
    profile = replace(profile, scaling=None) if profile else None
    context = client_context(model) or context
    own = context if profile is None or profile.original_context is None else profile.original_context
    return Carried(
        rope=rope,
        original_context=own if isinstance(scaling, Unscaled) else scaling.original_context,
        context=context,
        max_context=lookup.positions,
        profile=profile,
        source=MODEL_CONFIG,
    )


# the tables themselves


def _blocks(lookup: Lookup) -> Iterator[tuple[int, int]]:
    step = max(1, TABLE_VALUES // lookup.pairs)
    for first in range(0, lookup.positions, step):
        yield first, min(first + step, lookup.positions)


def _check_numbers(model: OnnxModel, lookup: Lookup) -> None:
    """Refuse a value that is no cosine, at whatever temperature."""
    for table in (lookup.cos, lookup.sin):
        for first, last in _blocks(lookup):
            bad = ~np.isfinite(table.float32(first, last)).all(axis=1)
            if bad.any():
                what = f"{table.name[:80]} holds no number at position {first + int(np.argmax(bad))}"
                raise BadInput(what, where=model.path.name, fix="Export the model again.")
    if lookup.rows is not None:
        ends = [table.float32(lookup.positions, lookup.positions + 1) for table in (lookup.cos, lookup.sin)]
        if not np.isnan(ends).all():
            raise refusal("its gathered tables do not end with a row of no number, as ours do", model)


def _plain_base(lookup: Lookup) -> float | None:
    """The shortest number that as theta explains every frequency; None where none does."""
    frequencies = read_frequencies(lookup.cos, lookup.sin, lookup.positions)
    if not (frequencies > 0).all():
        return None
    farthest = 2 ** math.floor(math.log2(max(lookup.positions - 1, 1)))
    off = frequency_uncertainty(frequencies, farthest, lookup.cos.element)
    return plain_base(Observation(inv_freq=frequencies, uncertainty=off))


def _from_tables(model: OnnxModel, lookup: Lookup) -> Carried | None:
    base = _plain_base(lookup)
    if base is None:
        return None
    context = client_context(model) or lookup.positions
    scaling = Unscaled(theta=base, rotary_dim=2 * lookup.pairs)
    return Carried(
        rope=ConfigRope(groups={None: scaling}),
        original_context=context,
        context=context,
        max_context=lookup.positions,
        profile=None,
        source="its tables",
    )


# comparison


def _disagreement(model: OnnxModel, lookup: Lookup, carried: Carried) -> str | None:
    """Where the graph is not what is said of it; None where all of it agrees."""
    layout = carried.layout
    if carried.scaling.rotary_dim != 2 * lookup.pairs:
        return f"{2 * lookup.pairs} dimensions rotate, not {carried.scaling.rotary_dim}"
    if layout.rows != lookup.positions:
        return f"its tables hold {lookup.positions} positions, not {layout.rows}"
    for tables, offset, count in zip(layout.buckets, layout.offsets, layout.positions, strict=True):
        rounding = ROUNDINGS[lookup.cos.element]
        said, agrees = compare_bucket(tables, lookup.cos, lookup.sin, offset, count, rounding)
        if not agrees:
            return f"its tables are not {method_name(carried.scaling)} x{tables.factor:g}: {said}"
    if lookup.rows is None:
        return "its tables hold several buckets" if len(layout.buckets) > 1 else None
    part = rotation_part(model, layout, carried.max_context)
    own = lookup_signature(model, lookup.cos.name, lookup.sin.name, lookup.rows)
    if own != lookup_signature(part.model, *part.tables, part.rows):
        return "it does not look rows up as `yarnconv onnx` does"
    return None


def read_carried(model: OnnxModel, lookup: Lookup) -> tuple[Carried, tuple[str, ...]]:
    """What the model carries, and notes on who was not believed. Raises Inexpressible where nobody names what
    its tables hold.
    """
    _check_numbers(model, lookup)
    notes: list[str] = []
    for read, name in ((_from_record, "its record"), (_from_config, MODEL_CONFIG), (_from_tables, "")):
        try:
            carried = read(model, lookup)
            problem = None if carried is None else _disagreement(model, lookup, carried)
        except BadInput as error:
            if not name:
                raise
            carried, problem = None, error.what
        if problem is not None:
            notes.append(f"{name or 'as plain RoPE'}: {problem}")
        elif carried is not None:
            _check_context(model, lookup, carried)
            return carried, tuple(f"Not believed: {note}" for note in notes)
    said = "".join(f" ({note})" for note in notes)
    raise refusal(f"its tables are no plain RoPE, and nothing names exactly what they are{said}", model)


def _check_context(model: OnnxModel, lookup: Lookup, carried: Carried) -> None:
    """Refuse tables that end before what a client is told."""
    stated = client_context(model)
    if stated is not None and stated > max(carried.layout.positions):
        what = f"its tables end after {max(carried.layout.positions)} positions, {CONFIG_FILE} says {stated}"
        raise BadInput(what, where=model.path.name, fix="Export the model again.")
