"""genai_config.json, with which onnxruntime-genai runs the directory, and the tokenizer beside it.

genai allocates the KV buffer at `search.max_length` where past and present share one, and that length is the
context which a dynamic graph reads. So it defaults to the original context: a client gets the original model
unless it asks for more.
"""

import shutil
from pathlib import Path
from typing import Any

from yarnconv.checkpoint.hub import TOKENIZER_FILES
from yarnconv.plan import ConversionPlan
from yarnconv.targets.onnx.options import GraphOptions

CONFIG_FILE = "genai_config.json"
# genai asks for the kind of model; these all are plain decoders to it
_MODEL_TYPE = "decoder"


def _special_ids(config: dict[str, Any], key: str) -> int | list[int] | None:
    value = config.get(key)
    ids = value if isinstance(value, list) else [value]
    valid = [i for i in ids if isinstance(i, int) and not isinstance(i, bool) and i >= 0]
    if not valid:
        return None
    return valid if isinstance(value, list) else valid[0]


def genai_config(plan: ConversionPlan, options: GraphOptions, model_file: str) -> dict[str, Any]:
    """The document. Raises nothing: what config.json leaves out is left out here."""
    model, config = plan.description, dict(plan.config)
    attention = model.layers[0].attention
    eos = _special_ids(config, "eos_token_id")
    last_eos = eos[0] if isinstance(eos, list) else eos
    special = {
        "bos_token_id": _special_ids(config, "bos_token_id"),
        "eos_token_id": eos,
        "pad_token_id": config.get("pad_token_id", last_eos),
    }
    return {
        "model": {
            **{key: value for key, value in special.items() if value is not None},
            "type": _MODEL_TYPE,
            "context_length": options.max_context,
            "vocab_size": model.vocab_size,
            "decoder": {
                "filename": model_file,
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "head_size": attention.head_dim,
                "hidden_size": model.hidden_size,
                "num_attention_heads": attention.heads,
                "num_key_value_heads": attention.key_value_heads,
                "num_hidden_layers": len(model.layers),
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "position_ids": "position_ids",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": False,
            "max_length": min(plan.rope.original_context, options.max_context),
            "past_present_share_buffer": options.kv == "in-place",
        },
    }


def copy_tokenizer(source: Path, directory: Path) -> list[Path]:
    """Copy what the checkpoint has of a tokenizer; regular files only."""
    copied = []
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)
            copied.append(directory / name)
    return copied
