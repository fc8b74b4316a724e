"""yarnconv.json: what an engine does not say of itself. TensorRT drops ONNX's metadata."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yarnconv import __version__
from yarnconv.checkpoint.json_files import read_json_object
from yarnconv.errors import BadInput
from yarnconv.model.description import ModelDescription
from yarnconv.rope_plan import RopePlan, rope_facts
from yarnconv.targets.onnx.genai import end_tokens
from yarnconv.targets.onnx.rope import lay_out_tables
from yarnconv.targets.tensorrt.builder import MODULES, BuildCost, Builder, BuildSettings
from yarnconv.targets.tensorrt.files import ENGINE_FILE, MODEL_FILE, SIDECAR
from yarnconv.targets.tensorrt.profiles import Profile
from yarnconv.targets.tensorrt.source import CACHE_TYPES, Source

SCHEMA_VERSION = 1


def client_facts(rope: RopePlan, model: ModelDescription, max_context: int) -> dict[str, Any]:
    """What of the plan clients of an engine go by."""
    layout = lay_out_tables(rope.main_group, rope.original_context, max_context)
    attention = model.layers[0].attention
    return {
        "max_context": max_context,
        "bucket_contexts": list(layout.positions),
        "vocab_size": model.vocab_size,
        "layers": len(model.layers),
        "key_value_heads": attention.key_value_heads,
        "head_dim": attention.head_dim,
    }


def make_sidecar(
    source: Source,
    builder: Builder,
    profiles: Sequence[Profile],
    settings: BuildSettings,
    cost: BuildCost,
    *,
    engine_bytes: int,
    digests: Mapping[str, str],
    tables: list[dict[str, Any]],
    weights: dict[str, int] | None,
    seconds: float,
) -> dict[str, Any]:
    """The document. digests: of the files, by name. tables: name, rows, pairs and offsets of each in the
    engine. weights: how many of the checkpoint's stand in it. seconds: of the build.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "yarnconv_version": __version__,
        "runtime": {"name": builder.runtime, "version": builder.version},
        "engine": {"file": ENGINE_FILE, "bytes": engine_bytes, "digest": digests[ENGINE_FILE]},
        "graph": {
            "file": MODEL_FILE,
            "digest": digests[MODEL_FILE],
            "dtype": source.dtype,
            "cache_type": CACHE_TYPES[source.element],
            "last_token_only": source.last_token_only,
            **client_facts(source.rope, source.model, source.max_context),
        },
        "profiles": [
            {
                "name": profile.name,
                "batch": list(profile.batch),
                "new_tokens": list(profile.new_tokens),
                "past_tokens": list(profile.past_tokens),
            }
            for profile in profiles
        ],
        "compute_capabilities": list(settings.compute_capabilities),
        "eos_token_ids": end_tokens(source.config),
        "plan": {**source.provenance, **rope_facts(source.rope)},
        "build": {
            "optimization_level": settings.optimization_level,
            "workspace": settings.workspace,
            "weight_streaming": settings.weight_streaming,
            "seconds": round(seconds, 1),
            "peak_memory_bytes": cost.peak_anonymous,
            "executed": False,
        },
        "tables": tables,
        "weights": weights,
    }


def read_sidecar(directory: Path) -> dict[str, Any]:
    """The document beside an engine. Raises BadInput where there is none, or it is none of ours."""
    path = directory / SIDECAR
    if not path.is_file():
        raise BadInput(
            f"there is no {SIDECAR} in it, which `yarnconv trt` writes beside an engine",
            where=str(directory),
            fix="Give the engine's directory.",
        )
    document = read_json_object(path)
    if document.get("schema_version") != SCHEMA_VERSION:
        raise BadInput(
            f"its schema_version is {document.get('schema_version')!r}, not {SCHEMA_VERSION}",
            where=SIDECAR,
            fix="Use the yarnconv that wrote it.",
        )
    try:
        json.dumps(document, allow_nan=False)
    except ValueError:
        raise BadInput("holds a number that is none", where=SIDECAR, fix="Build the engine again.") from None
    for key in ("runtime", "engine", "graph", "plan"):
        if not isinstance(document.get(key), dict):
            raise BadInput(f"{key} is no object", where=SIDECAR, fix="Build the engine again.")
    name = document["runtime"].get("name")
    if not isinstance(name, str) or name not in MODULES:
        what = f"names the runtime {str(name)[:40]!r}"
        raise BadInput(what, where=SIDECAR, fix=f"There are {' and '.join(MODULES)}.")
    for key in ("profiles", "tables", "compute_capabilities"):
        if not isinstance(document.get(key), list):
            raise BadInput(f"{key} is no list", where=SIDECAR, fix="Build the engine again.")
    return document
