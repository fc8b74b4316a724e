"""What this tool recorded in an artefact of how it made it. It is never evidence for the artefact."""

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from yarnconv.errors import BadInput
from yarnconv.rope.request import METHODS, RopeRequest
from yarnconv.rope.scaling import Scaling
from yarnconv.rope.spelling import read_rope
from yarnconv.targets.inspection.carried_rope import Claims

RECORD_KEY = "yarnconv.plan"  # of a GGUF's metadata and an ONNX model's
_MAXIMUM_RECORD = 2**20  # characters
_WHERE = "yarnconv.plan: rope_options"
_KINDS: dict[str, type | tuple[type, ...]] = {
    "method": str,
    "target_context": int,
    "original_context": int,
    "truncate": bool,
    "use_profile": bool,
}


def _unreadable() -> BadInput:
    return BadInput(
        "the recorded rope options cannot be read",
        where=_WHERE,
        fix="Give the rope options, such as --factor.",
    )


def read_record(record: str) -> dict[str, Any]:
    """The record's document; empty where it is no object. Raises BadInput where it is no JSON."""
    if len(record) > _MAXIMUM_RECORD:
        raise _unreadable()
    try:
        document: Any = json.loads(record)
    except (ValueError, RecursionError):
        raise _unreadable() from None
    return document if isinstance(document, dict) else {}


def recorded_request(record: str) -> RopeRequest | None:
    """The rope options in an artefact's provenance; None where it records none."""
    unreadable = _unreadable()
    options = read_record(record).get("rope_options")
    if options is None:
        return None
    names = {field.name for field in fields(RopeRequest)}
    if not isinstance(options, dict) or not options.keys() <= names:
        raise unreadable
    for name, value in options.items():
        kind = _KINDS.get(name, (int, float))
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise unreadable
    if options.get("method", "auto") not in METHODS:
        raise unreadable
    return RopeRequest(**options)


def recorded_scaling(record: Mapping[str, Any], rotary_dim: int, *, latent: bool = False) -> Scaling | None:
    """The scaling that a record names, of as many rotating dimensions; None where that cannot be read.

    latent: whether the model has multi-head latent attention, as a recorded config may say too.
    """
    recorded = record.get("config")
    latent = latent or (isinstance(recorded, Mapping) and recorded.get("kv_lora_rank") is not None)
    parameters = record.get("rope_parameters")
    if not isinstance(parameters, Mapping):
        return None
    # transformers' dynamic type knows no other length
    original = parameters.get("original_max_position_embeddings") or 2
    config = {"rope_parameters": parameters, "head_dim": rotary_dim, "max_position_embeddings": original}
    if latent:
        config |= {"kv_lora_rank": 1}
    try:
        return read_rope(config).groups.get(None)
    except BadInput:
        return None


def recorded_claims(record: Mapping[str, Any], rotary_dim: int, source: str) -> Claims:
    """What a record says of an artefact. context: of its tables, where it says how long they are."""
    graph, original = record.get("graph"), record.get("original_context")
    reached = graph.get("max_context") if isinstance(graph, Mapping) else None
    reached = record.get("target_context") if reached is None else reached
    original, context = (
        value if type(value) is int and 1 < value < 2**31 else None for value in (original, reached)
    )
    return Claims(
        source=source,
        scaling=recorded_scaling(record, rotary_dim),
        original_context=original,
        context=context,
    )
