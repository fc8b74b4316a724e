"""genai_config.json, with which onnxruntime-genai runs the directory, and the tokenizer beside it.

genai allocates the KV buffer at `search.max_length` where past and present share one, and that length is the
context which a dynamic graph reads. So it defaults to the original context: a client gets the original model
unless it asks for more.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yarnconv.checkpoint.hub import TOKENIZER_FILES
from yarnconv.plan import ConversionPlan
from yarnconv.targets.onnx.options import GraphOptions
from yarnconv.targets.templates import render


def _special_ids(config: Mapping[str, Any], key: str) -> int | list[int] | None:
    value = config.get(key)
    ids = value if isinstance(value, list) else [value]
    valid = [i for i in ids if isinstance(i, int) and not isinstance(i, bool) and i >= 0]
    if not valid:
        return None
    return valid if isinstance(value, list) else valid[0]


def end_tokens(config: Mapping[str, Any]) -> list[int]:
    """The tokens that end an answer, by a config.json."""
    found = _special_ids(config, "eos_token_id")
    return found if isinstance(found, list) else [] if found is None else [found]


def default_length(plan: ConversionPlan, options: GraphOptions) -> int:
    """Positions that a client gets which asks for no other number."""
    return min(plan.rope.original_context, options.max_context)


def genai_config(plan: ConversionPlan, options: GraphOptions, model_file: str) -> str:
    """The document. Raises nothing: what config.json leaves out is left out here."""
    model, config = plan.description, dict(plan.config)
    attention = model.layers[0].attention
    eos = _special_ids(config, "eos_token_id")
    last_eos = eos[0] if isinstance(eos, list) else eos
    special = {
        "bos_token_id": _special_ids(config, "bos_token_id"),
        "eos_token_id": eos,
        "pad_token_id": _special_ids(config, "pad_token_id") if "pad_token_id" in config else last_eos,
    }
    values = {
        "special_ids": {key: value for key, value in special.items() if value is not None},
        "max_context": options.max_context,
        "vocab_size": model.vocab_size,
        "model_file": model_file,
        "head_dim": attention.head_dim,
        "hidden_size": model.hidden_size,
        "heads": attention.heads,
        "key_value_heads": attention.key_value_heads,
        "layers": len(model.layers),
        "default_length": default_length(plan, options),
        "in_place": options.kv == "in-place",
    }
    return render("onnx/genai_config.json", values)


def copy_tokenizer(source: Path, directory: Path) -> list[Path]:
    """Copy what the checkpoint has of a tokenizer; regular files only."""
    copied = []
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)
            copied.append(directory / name)
    return copied
