"""A model repository, from which NVIDIA's Triton serves an engine of `tensorrt`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yarnconv.targets.templates import plain_name, render
from yarnconv.targets.tensorrt.files import ENGINE_FILE, TRITON_DIRECTORY

TYPES = {"fp16": "TYPE_FP16", "bf16": "TYPE_BF16", "fp32": "TYPE_FP32"}
OTHER_RUNTIME = (
    "It loads engines of TensorRT, not of TensorRT-RTX: yarnconv trt --runtime tensorrt writes one."
)


def declares_context(sidecar: Mapping[str, Any]) -> bool:
    """Whether the engine has the input rope_context."""
    return len(sidecar["graph"]["bucket_contexts"]) > 1


def hindrances(sidecar: Mapping[str, Any]) -> list[str]:
    """Why Triton cannot serve the engine, a sentence each."""
    return [] if sidecar["runtime"]["name"] == "tensorrt" else [OTHER_RUNTIME]


def triton_config(sidecar: Mapping[str, Any]) -> str:
    """The file, from what yarnconv.json says. Where Triton cannot serve it, the reason comes first."""
    graph, profiles = sidecar["graph"], sidecar["profiles"]
    slots = [f"{layer}.{part}" for layer in range(graph["layers"]) for part in ("key", "value")]
    values = {
        "hindrances": hindrances(sidecar),
        "declares": declares_context(sidecar),
        "slots": slots,
        "cache_type": TYPES[graph["cache_type"]],
        "cache_dims": f"[ -1, {graph['key_value_heads']}, -1, {graph['head_dim']} ]",
        "rows": 1 if graph["last_token_only"] else -1,
        "vocab_size": graph["vocab_size"],
        "profiles": ", ".join(f'"{index}"' for index in range(len(profiles))),
        "profile_names": ", ".join(profile["name"] for profile in profiles),
    }
    return render("tensorrt/config.pbtxt", values)


def write_repository(directory: Path, name: str, sidecar: Mapping[str, Any]) -> None:
    """Write the repository into an engine's directory; the engine itself only where Triton can serve it, as a
    hard link that takes no room.
    """
    model = directory / TRITON_DIRECTORY / plain_name(name)
    model.mkdir(parents=True)
    (model / "config.pbtxt").write_text(triton_config(sidecar), encoding="utf-8")
    if not hindrances(sidecar):
        (model / "1").mkdir()
        (model / "1" / "model.plan").hardlink_to(directory / ENGINE_FILE)
