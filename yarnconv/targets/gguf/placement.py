"""Where each of the checkpoint's tensors stands in a GGUF: under which name, which of its rows, moved how."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yarnconv.model.description import LayerDescription
from yarnconv.plan import ConversionPlan, TensorBinding
from yarnconv.targets.gguf.runtime import RuntimeArchitecture

# llama.cpp's names (`LLM_TENSOR_NAMES`) by the roles of weights; a bias is named as its weight is
NAMES = {
    "token_embedding": "token_embd",
    "attention_norm": "attn_norm",
    "query": "attn_q",
    "key": "attn_k",
    "value": "attn_v",
    "query_key_value": "attn_qkv",
    "query_norm": "attn_q_norm",
    "key_norm": "attn_k_norm",
    "attention_output": "attn_output",
    "attention_output_norm": "post_attention_norm",
    "mlp_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "gate_up": "ffn_up",
    "down": "ffn_down",
    "mlp_output_norm": "post_ffw_norm",
    "final_norm": "output_norm",
    "output_head": "output",
}
SINKS = "blk.{layer}.attn_sinks.weight"
# A score so low that its exponential is 0 beside any other: no sink. Not infinite, for which llama.cpp's
# --check-tensors takes a file for damaged.
NO_SINK = -1e30


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPlacement:
    """name, shape: the GGUF's. first_row: of the checkpoint's tensor, of which it holds as many as its shape
    says. interleave_heads: the size of the heads whose rows move, None if they stay. added: to every value.
    """

    name: str
    shape: tuple[int, ...]
    binding: TensorBinding
    first_row: int = 0
    interleave_heads: int | None = None
    added: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MadeTensor:
    """A tensor that no checkpoint holds and the runtime wants. values: float32."""

    name: str
    values: NDArray[np.float32]


def _gguf_name(role: str, layer: int | None) -> str:
    weight = role.removesuffix("_bias")
    name = f"{NAMES[weight]}.{'weight' if weight == role else 'bias'}"
    return name if layer is None else f"blk.{layer}.{name}"


def _parts(role: str, layer: LayerDescription, *, moved: bool, fused_gate_up: bool) -> dict[str, int]:
    """The roles that a tensor is taken apart into, and their rows; nothing where it stays whole."""
    attention, mlp, bias = layer.attention, layer.mlp, "_bias" if role.endswith("_bias") else ""
    if role.removesuffix("_bias") == "query_key_value" and moved:
        key_value = attention.key_value_heads * attention.head_dim
        rows = {"query": attention.heads * attention.head_dim, "key": key_value, "value": key_value}
    elif role.removesuffix("_bias") == "gate_up" and not fused_gate_up:
        rows = {"gate": mlp.intermediate_size, "up": mlp.intermediate_size}
    else:
        return {}
    return {f"{part}{bias}": count for part, count in rows.items()}


def _placed(
    plan: ConversionPlan, runtime: RuntimeArchitecture, binding: TensorBinding
) -> Iterator[TensorPlacement]:
    model, expected = plan.description, binding.expected
    layer = model.layers[expected.layer or 0]
    # a runtime that rotates adjacent pairs finds the two halves' rows in turn
    moved = layer.attention.pairing == "half" and runtime.pairing == "interleaved"
    parts = _parts(expected.role, layer, moved=moved, fused_gate_up=runtime.fused_gate_up)
    first = 0
    for role, rows in (parts or {expected.role: expected.shape[0]}).items():
        turns = role.removesuffix("_bias") in {"query", "key"}
        yield TensorPlacement(
            name=_gguf_name(role, expected.layer),
            shape=(rows, *expected.shape[1:]),
            binding=binding,
            first_row=first,
            interleave_heads=layer.attention.head_dim if turns and moved else None,
            # llama.cpp multiplies by the weight itself
            added=1.0 if model.norms_add_one and role.endswith("_norm") else 0.0,
        )
        first += rows


def placements(plan: ConversionPlan, runtime: RuntimeArchitecture) -> tuple[TensorPlacement, ...]:
    """Those of every binding, in their order."""
    if runtime.output_head == "own" and plan.description.tied_embeddings:
        plan = plan.with_untied_head()
    return tuple(place for binding in plan.bindings for place in _placed(plan, runtime, binding))


def made_tensors(plan: ConversionPlan, runtime: RuntimeArchitecture) -> tuple[MadeTensor, ...]:
    """What the runtime wants besides."""
    if not runtime.sinks:
        return ()
    return tuple(
        MadeTensor(
            name=SINKS.replace("{layer}", str(index)),
            values=np.full(layer.attention.heads, NO_SINK, np.float32),
        )
        for index, layer in enumerate(plan.description.layers)
    )
