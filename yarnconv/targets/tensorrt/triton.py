"""config.pbtxt, with which NVIDIA's Triton serves an engine of `tensorrt`."""

from collections.abc import Mapping
from typing import Any

from yarnconv.targets.templates import render

TYPES = {"fp16": "TYPE_FP16", "bf16": "TYPE_BF16", "fp32": "TYPE_FP32"}
OTHER_RUNTIME = (
    "It loads engines of TensorRT, not of TensorRT-RTX: yarnconv trt --runtime tensorrt writes one."
)
SCALAR = "It takes no scalar inputs where requests are not batched, and rope_context is one."


def declares_context(sidecar: Mapping[str, Any]) -> bool:
    """Whether the engine has the input rope_context."""
    return len(sidecar["graph"]["bucket_contexts"]) > 1


def has_scalar(sidecar: Mapping[str, Any]) -> bool:
    """Whether that input is a scalar; it is unless graph.rope_context_shape says [1]."""
    return declares_context(sidecar) and sidecar["graph"].get("rope_context_shape", []) != [1]


def hindrances(sidecar: Mapping[str, Any]) -> list[str]:
    """Why Triton cannot serve the engine, a sentence each."""
    found = {OTHER_RUNTIME: sidecar["runtime"]["name"] != "tensorrt", SCALAR: has_scalar(sidecar)}
    return [sentence for sentence, hinders in found.items() if hinders]


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
