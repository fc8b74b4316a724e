"""llama-server: a script that starts it, and for a dynamic plan a preset for each of its buckets.

A dynamic plan stands in no GGUF. Its file is a plain one and the presets carry the plan: the router mode of
llama-server runs the file once for each of them, and a request names the one that its context needs.
"""

from collections.abc import Collection
from typing import Any

from yarnconv import __version__
from yarnconv.errors import BadInput, Inexpressible
from yarnconv.rope.scaling import Unscaled, method_name
from yarnconv.rope_plan import RopePlan
from yarnconv.targets.beside import MARK, FileBeside
from yarnconv.targets.gguf.deployment.job import Deployment
from yarnconv.targets.gguf.deployment.names import presets_name, script_name
from yarnconv.targets.gguf.launch import (
    KEEP_CACHE_EXACT,
    LaunchBucket,
    key_shift_warning,
    launch_buckets,
    needs_flags,
)
from yarnconv.targets.templates import plain_name, render

# what ends a value in llama-server's presets, and nothing there quotes it
_ENDS_A_VALUE = ";#"


def presets_carry(rope: RopePlan, wanted: Collection[str]) -> bool:
    """Whether presets beside a GGUF are to carry the plan, and the GGUF itself a plain one.

    Raises Inexpressible where something else is wanted that cannot.
    """
    if not needs_flags(rope) or "llama-server" not in wanted:
        return False
    if "ollama" in wanted:
        raise Inexpressible(
            "a Modelfile has no parameters for YaRN or a RoPE base",
            where=f"method {method_name(rope.main)}",
            fix="Leave ollama out of --emit, or choose --method yarn.",
        )
    return True


def presets(deployment: Deployment) -> list[tuple[str, LaunchBucket]]:
    """Each bucket of a dynamic plan, by the name that a request gives."""
    name = plain_name(deployment.name)
    buckets = launch_buckets(deployment.served, deployment.keys)
    return [(f"{name}-{bucket.context}", bucket) for bucket in buckets]


def _values(rope: RopePlan) -> dict[str, Any]:
    return {
        "mark": MARK,
        "version": __version__,
        "method": method_name(rope.main),
        "factor": rope.main_group.buckets[-1].factor,
        "extended": not isinstance(rope.main, Unscaled),
        "warning": key_shift_warning(rope),
        "keep_cache_exact": KEEP_CACHE_EXACT,
    }


def static_script(deployment: Deployment) -> FileBeside:
    """Serves a file that carries its plan."""
    rope = deployment.served
    values = {**_values(rope), "model": deployment.model, "context": rope.target_context}
    text = render("gguf/llama-server.sh", values)
    return FileBeside(name=script_name(deployment.stem), text=text, executable=True)


def dynamic_files(deployment: Deployment) -> list[FileBeside]:
    """The presets of a dynamic plan, and the script that starts the router with them."""
    stem, model = deployment.stem, deployment.model
    if any(letter in _ENDS_A_VALUE for letter in model) or model != model.strip():
        raise BadInput(
            f"{model!r} cannot be named in llama-server's presets, where ; and # begin a comment",
            where="-o",
            fix="Give another name.",
        )
    named = presets(deployment)
    values = {
        **_values(deployment.served),
        "model_path": f"./{model}",
        "presets_file": presets_name(stem),
        "presets": [
            {"name": name, "context": bucket.context, "flags": bucket.flags} for name, bucket in named
        ],
    }
    return [
        FileBeside(name=presets_name(stem), text=render("gguf/presets.ini", values)),
        FileBeside(name=script_name(stem), text=render("gguf/router.sh", values), executable=True),
    ]
