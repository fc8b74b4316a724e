"""Where each of the checkpoint's tensors stands in a GGUF: under which name, which of its rows, moved how."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yarnconv.binding import TensorBinding
from yarnconv.checkpoint.sources import ColumnTensor, PickedTensor, TensorSource, TurnedTensor
from yarnconv.model.description import (
    AttentionDescription,
    ExpertsDescription,
    LatentAttention,
    LayerDescription,
    MlpDescription,
)
from yarnconv.model.tensors import ExpectedTensor
from yarnconv.plan import ConversionPlan
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
    "sinks": "attn_sinks",
    "query_down": "attn_q_a",
    "query_latent_norm": "attn_q_a_norm",
    "query_up": "attn_q_b",
    "key_value_down": "attn_kv_a_mqa",
    "key_value_latent_norm": "attn_kv_a_norm",
    "key_up": "attn_k_b",
    "value_up": "attn_v_b",
    "router": "ffn_gate_inp",
    "experts_gate": "ffn_gate_exps",
    "experts_up": "ffn_up_exps",
    "experts_down": "ffn_down_exps",
    "shared_gate": "ffn_gate_shexp",
    "shared_up": "ffn_up_shexp",
    "shared_down": "ffn_down_shexp",
    "shared_router": "ffn_gate_inp_shexp",
    "final_norm": "output_norm",
    "output_head": "output",
}
SINKS = "blk.{layer}.attn_sinks.weight"
# A score so low that its exponential is 0 beside any other: no sink. Not infinite, for which llama.cpp's
# --check-tensors takes a file for damaged.
NO_SINK = -1e30


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPlacement:
    """One tensor of a GGUF, of one of the checkpoint's.

    name, shape: the GGUF's. rows: which of the checkpoint's it holds, of a vector or a bias which values;
    None: all. turned: whether it holds them by head, [heads, columns, rows of a head].
    interleave_heads: the size of the heads whose rows move, None if they stay. added: to every value.
    """

    name: str
    shape: tuple[int, ...]
    binding: TensorBinding
    rows: tuple[range, ...] | None = None
    turned: bool = False
    interleave_heads: int | None = None
    added: float = 0.0

    @property
    def is_column(self) -> bool:
        """Whether its rows are single values: of a norm, a bias or the like."""
        return len(self.shape) == 1 or self.binding.expected.role.endswith("_bias")

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a file's tensor is of its shape. Ones in front say nothing there: llama.cpp's converter has
        a matrix of one row for the gate of a shared expert.
        """
        own, other = (s[next((i for i, n in enumerate(s) if n != 1), len(s)) :] for s in (self.shape, shape))
        return own == other

    @property
    def source(self) -> TensorSource:
        """Its values before heads are interleaved and anything is added, of as many rows as it has."""
        source = self.binding.source
        if self.is_column:
            source = ColumnTensor(of=source)
        if self.rows is None:
            return source
        width, shape = source.shape[-1], self.shape
        if self.turned:
            heads, columns, head_rows = shape
            shape = (heads, head_rows, columns)
        elif self.is_column:
            shape = (sum(map(len, self.rows)), width)
        picked = PickedTensor(shape=shape, of=source, ranges=self.rows)
        return TurnedTensor(of=picked) if self.turned else picked


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MadeTensor:
    """A tensor that no checkpoint holds and the runtime wants. values: float32."""

    name: str
    values: NDArray[np.float32]


def _gguf_name(role: str, layer: int | None, runtime: RuntimeArchitecture) -> str:
    if role == "router_correction":
        return f"blk.{layer}.exp_probs_b.bias"
    weight = role.removesuffix("_bias")
    stem = runtime.mlp_norm if weight == "mlp_norm" else NAMES[weight]
    name = f"{stem}.{'weight' if weight == role else 'bias'}"
    return name if layer is None else f"blk.{layer}.{name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """What of a tensor becomes one of its own: its rows, and the shape that they have there."""

    role: str
    rows: tuple[range, ...]
    shape: tuple[int, ...]
    turned: bool = False


def _below(rows: dict[str, int], width: tuple[int, ...]) -> Iterator[_Part]:
    """Roles whose rows stand one below the other."""
    first = 0
    for role, count in rows.items():
        yield _Part(role=role, rows=(range(first, first + count),), shape=(count, *width))
        first += count


def _expert_parts(mlp: ExpertsDescription, bias: str, width: tuple[int, ...]) -> Iterator[_Part]:
    """Gate and up of every expert, apart."""
    size, count = mlp.intermediate_size, mlp.experts
    for number, role in enumerate(("experts_gate", "experts_up")):
        rows: tuple[range, ...]
        if mlp.interleaved:
            rows = (range(number, 2 * size * count, 2),)
        else:
            starts = range(number * size, 2 * size * count, 2 * size)
            rows = tuple(range(start, start + size) for start in starts)
        yield _Part(role=f"{role}{bias}", rows=rows, shape=(count, size, *width))


def _latent_parts(attention: AttentionDescription, latent: LatentAttention) -> Iterator[_Part]:
    """Of what makes heads of keys and values, those of keys, turned as queries are absorbed by them, and
    those of values.
    """
    keys, values, heads = latent.plain_dim, latent.value_dim, attention.heads
    starts = range(0, heads * (keys + values), keys + values)
    own = tuple(range(start, start + keys) for start in starts)
    yield _Part(role="key_up", rows=own, shape=(heads, latent.rank, keys), turned=True)
    own = tuple(range(start + keys, start + keys + values) for start in starts)
    yield _Part(role="value_up", rows=own, shape=(heads, values, latent.rank))


def _parts(
    expected: ExpectedTensor, layer: LayerDescription, *, moved: bool, fused_gate_up: bool
) -> list[_Part]:
    """What a tensor is taken apart into; nothing where it stays whole."""
    attention, mlp = layer.attention, layer.mlp
    role = expected.role.removesuffix("_bias")
    bias = "" if role == expected.role else "_bias"
    width = () if bias else expected.shape[-1:]
    if role == "query_key_value" and moved:
        few = attention.key_value_heads * attention.head_dim
        rows = {f"query{bias}": attention.heads * attention.head_dim, f"key{bias}": few, f"value{bias}": few}
        return list(_below(rows, width))
    if role == "gate_up" and not fused_gate_up and isinstance(mlp, MlpDescription):
        size = mlp.intermediate_size
        return list(_below({f"gate{bias}": size, f"up{bias}": size}, width))
    if role == "experts_gate_up" and isinstance(mlp, ExpertsDescription):
        return list(_expert_parts(mlp, bias, width))
    if role == "key_value_up" and attention.latent is not None:
        return list(_latent_parts(attention, attention.latent))
    return []


def _placed(
    plan: ConversionPlan, runtime: RuntimeArchitecture, binding: TensorBinding
) -> Iterator[TensorPlacement]:
    model, expected = plan.description, binding.expected
    layer = model.layers[expected.layer or 0]
    # a runtime that rotates adjacent pairs finds the two halves' rows in turn
    moved = layer.attention.pairing == "half" and runtime.pairing == "interleaved"
    whole = expected.shape[1:] if expected.role == "shared_router" else expected.shape
    parts = _parts(expected, layer, moved=moved, fused_gate_up=runtime.fused_gate_up)
    for part in parts or [_Part(role=expected.role, rows=(), shape=whole)]:
        turns = part.role.removesuffix("_bias") in {"query", "key"}
        yield TensorPlacement(
            name=_gguf_name(part.role, expected.layer, runtime),
            shape=part.shape,
            binding=binding,
            rows=part.rows or None,
            turned=part.turned,
            interleave_heads=layer.attention.head_dim if turns and moved else None,
            # llama.cpp multiplies by the weight itself
            added=1.0 if model.norms_add_one and part.role.endswith("_norm") else 0.0,
        )


def placements(plan: ConversionPlan, runtime: RuntimeArchitecture) -> tuple[TensorPlacement, ...]:
    """Those of every binding, in their order."""
    if runtime.output_head == "own" and plan.description.tied_embeddings:
        plan = plan.with_untied_head()
    return tuple(place for binding in plan.bindings for place in _placed(plan, runtime, binding))


def made_tensors(plan: ConversionPlan, runtime: RuntimeArchitecture) -> tuple[MadeTensor, ...]:
    """What the runtime wants besides."""
    if not runtime.sinks or plan.description.layers[0].attention.sinks:
        return ()
    return tuple(
        MadeTensor(
            name=SINKS.replace("{layer}", str(index)),
            values=np.full(layer.attention.heads, NO_SINK, np.float32),
        )
        for index, layer in enumerate(plan.description.layers)
    )
