"""The model card: what the GGUF carries, how to run it, and how to check it."""

from typing import Any

from yarnconv import __version__
from yarnconv.rope.scaling import Unscaled, Yarn
from yarnconv.rope_plan import rope_facts
from yarnconv.targets.beside import MARK, FileBeside
from yarnconv.targets.gguf.deployment.job import Deployment
from yarnconv.targets.gguf.deployment.modelfile import ollama_name
from yarnconv.targets.gguf.deployment.names import card_name, modelfile_name, script_name
from yarnconv.targets.gguf.deployment.server import presets
from yarnconv.targets.gguf.launch import KEEP_CACHE_EXACT, OLLAMA_CAVEAT, key_shift_warning, needs_flags
from yarnconv.targets.gguf.rope import ROPE_FREQS, RopeEncoding
from yarnconv.targets.templates import render


def _carried_by(encoding: RopeEncoding) -> str:
    if encoding.rope_freqs is not None:
        return f"the tensor `{ROPE_FREQS}`: llama.cpp's keys cannot say these frequencies"
    if encoding.scaling_type is None:
        return "the base, `rope.freq_base`"
    return f"llama.cpp's keys `rope.scaling.*`, type {encoding.scaling_type}"


def model_card(deployment: Deployment) -> FileBeside:
    """The card in Markdown."""
    rope, wanted, stem = deployment.served, deployment.wanted, deployment.stem
    served = needs_flags(rope)
    named = zip(presets(deployment), rope.main_group.buckets, strict=True) if served else ()
    carried = "the presets beside it" if served else _carried_by(deployment.encoding)
    values: dict[str, Any] = {
        "mark": MARK,
        "version": __version__,
        "name": deployment.name,
        "kind": deployment.kind,
        "layers": deployment.layers,
        "extended_from": deployment.extended_from,
        "dtype": deployment.dtype,
        "facts": rope_facts(rope, with_tables=False),
        "extended": not isinstance(rope.main, Unscaled),
        "is_yarn": isinstance(rope.main, Yarn),
        "carried_by": carried,
        "presets": [
            {
                "name": name,
                "context": bucket.context,
                "factor": bucket.factor,
                "attention_factor": tables.attention_factor,
                "command_line": bucket.command_line,
            }
            for (name, bucket), tables in named
        ],
        "warnings": rope.warnings,
        "shift_warning": key_shift_warning(rope),
        "keep_cache_exact": KEEP_CACHE_EXACT,
        "model": deployment.model,
        "script": script_name(stem) if "llama-server" in wanted else None,
        "modelfile": modelfile_name(stem) if "ollama" in wanted else None,
        "ollama_caveat": OLLAMA_CAVEAT,
        "ollama_name": ollama_name(stem),
        "rope_options": deployment.check_options,
    }
    return FileBeside(name=card_name(stem), text=render("gguf/README.md", values))
