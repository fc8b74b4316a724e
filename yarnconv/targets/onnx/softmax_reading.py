"""What latent attention's scores are multiplied by, which depends on the factor of the extension: read from
the graph, and told apart from what the model has without any.
"""

from collections.abc import Iterable
from dataclasses import replace

from yarnconv.errors import BadInput, Inexpressible
from yarnconv.model.describe import describe, with_defaults
from yarnconv.model.description import ModelDescription
from yarnconv.model.family import find_family
from yarnconv.targets.inspection.observed_table import ObservedTable
from yarnconv.targets.onnx.attention_reading import MOST_STEPS, PASSES, read_attention
from yarnconv.targets.onnx.observed import ObservedRope
from yarnconv.targets.onnx.reader import OnnxModel
from yarnconv.targets.record import RECORD_KEY, read_record


def _by_request(model: OnnxModel, query: str) -> tuple[float, ...]:
    """What queries are multiplied by that a request's context chooses: one of these numbers."""
    for _ in range(MOST_STEPS):
        node = model.producers.get(query)
        if node is None or node.op_type not in {*PASSES, "Reshape", "Mul"}:
            break
        for factor in node.input[1:] if node.op_type == "Mul" else ():
            chosen = model.producers.get(factor)
            while chosen is not None and chosen.op_type in PASSES:
                chosen = model.producers.get(chosen.input[0])
            table = model.tensors.get(chosen.input[0]) if chosen is not None and len(chosen.input) else None
            if chosen is None or chosen.op_type != "Gather" or table is None or len(table.shape) != 1:
                continue
            if table.element == "FLOAT":
                return tuple(float(number) for number in table.float32(0, table.shape[0]))
        query = node.input[0]
    return (1.0,)


def read_scales(model: OnnxModel, index: int) -> tuple[float, ...] | None:
    """What a layer's scores are multiplied by, of each bucket where the request's context chooses; None where
    the graph does not show it.
    """
    read = read_attention(model, index)
    if read is None or read.scale is None:
        return None
    return tuple(read.scale * factor for factor in _by_request(model, read.query))


def _recorded_model(model: OnnxModel) -> ModelDescription | None:
    """What the record says that the model is: a graph shows what its dimensions were absorbed into."""
    recorded = model.metadata(RECORD_KEY)
    try:
        config = None if recorded is None else read_record(recorded).get("config")
        if not isinstance(config, dict):
            return None
        family = find_family(config)
        return describe(family, with_defaults(family, config))
    except (BadInput, Inexpressible):
        return None


def _multiplied(tables: Iterable[ObservedTable], multipliers: tuple[float, ...]) -> tuple[ObservedTable, ...]:
    made = tuple(tables)
    if len(multipliers) == 1:
        multipliers *= len(made)
    if len(multipliers) != len(made):
        return made
    return tuple(
        replace(table, observation=replace(table.observation, softmax_multiplier=multiplier))
        for table, multiplier in zip(made, multipliers, strict=True)
    )


def with_softmax(model: OnnxModel, found: tuple[ObservedRope, ...]) -> tuple[ObservedRope, ...]:
    """The sources of rotations with what scores are multiplied by, of a model of latent attention."""
    described = _recorded_model(model)
    if described is None or described.layers[0].attention.latent is None:
        return found
    made = []
    for rope in found:
        layer = min(rope.layers or (0,))
        scales = read_scales(model, layer) if layer < len(described.layers) else None
        if scales is None:
            made.append(rope)
            continue
        plain = described.layers[layer].attention.scale
        multipliers = tuple(scale / plain for scale in scales)
        made.append(replace(rope, buckets=_multiplied(rope.buckets, multipliers)))
    return tuple(made)
