"""What llama.cpp computes, by its own architecture names (checked against the source of October 2026); what
it reads of RoPE stands in `rope_keys`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from yarnconv.model.description import ModelDescription, NormRole

BEFORE: frozenset[NormRole] = frozenset({"attention_norm", "mlp_norm"})
BEHIND: frozenset[NormRole] = frozenset({"attention_output_norm", "mlp_output_norm"})
# ggml looks these up in a table of float16, by their argument in float16 (`ggml_table_gelu_f16`)
ACTIVATIONS_IN_HALF = frozenset({"gelu_pytorch_tanh"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeWindows:
    """How an architecture knows which layers look back over `attention.sliding_window` positions only.

    full_every: every how many layers one sees everything where `attention.sliding_window_pattern` is left
        out; None where that must be there. optional: whether no layer has a window without the first key.
    only_at: the one number of layers at which it knows of windows at all; None where any.
    others_turn: whether layers without a window have RoPE, in a model that has windows.
    """

    full_every: int | None
    optional: bool
    only_at: int | None = None
    others_turn: bool = True

    def default_pattern(self, layers: int) -> list[bool] | None:
        """Per layer whether it has a window, where the key is left out (`set_swa_pattern`)."""
        if self.full_every is None:
            return None
        return [(index + 1) % self.full_every != 0 for index in range(layers)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeExperts:
    """How an architecture computes a mixture of experts (`build_moe_ffn`). A router's bias, the experts' own
    and clamped gates are there together, or not at all: `clamped`.

    scores: what it makes of the router's logits; None: as `expert_gating_func` says, usual_scores without.
    normalised: whether it divides the scores of the chosen by their sum; None: as `expert_weights_norm` says.
    scaled: reads `expert_weights_scale`. correction: loads a bias that counts in choosing, or must.
    leading_dense: reads `leading_dense_block_count`; else every layer has experts.
    optional: models without any are of the same architecture.
    own_size: reads `expert_feed_forward_length`; else experts are of the size of `feed_forward_length`.
    shared: the MLP besides, which must be there: of as many experts as `expert_shared_count` says, or of its
        own size and gated.
    """

    scores: Literal["softmax", "sigmoid"] | None
    normalised: bool | None
    usual_scores: Literal["softmax", "sigmoid"] = "softmax"
    scaled: bool = False
    correction: Literal["never", "either", "always"] = "never"
    leading_dense: bool = False
    optional: bool = False
    own_size: bool = True
    shared: Literal["counted", "gated"] | None = None
    clamped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeArchitecture:
    """One architecture of llama.cpp's `src/models/`. All of them load query, key and value apart or as one
    matrix, and their biases where there are any (`create_tensor_qkv`).

    pairing: of the dimensions that it rotates, as in `AttentionDescription`.
    norms, query_key_norm: those that its block has, as in the description; the latter it may do without where
        query_key_norm_optional.
    fused_gate_up: wants gate and up as one matrix, as its ffn_up.
    output_bias, mlp_bias: loads the biases of the attention output and of the MLP; "always": must.
    head_size_free: the query heads may span more or less than the hidden size.
    partial_rotary: may rotate less than whole heads.
    activation: the one MLP activation its graph is built with, by transformers' name.
    windows: None where it reads no window.
    without_rope_every: every how many layers one has no RoPE; None where all have.
    rope_pattern: reads `attention.rope_pattern`, which layers have RoPE.
    output_head: a tensor of its own, the embedding, or either.
    multipliers: reads embedding_scale, residual_scale, attention.scale and logit_scale.
    embedding_root: multiplies embeddings by the root of the hidden size.
    scale_of_hidden_at: how many layers make its attention scale that of the hidden size by the number of
        heads, instead of the head size.
    attention_softcap: caps scores, whatever the file says.
    logit_softcap: caps logits always, or where the key is there.
    query_growth: reads attention.temperature_scale.
    sinks: wants a tensor of attention sinks in every layer.
    experts: how it mixes them; None where it does not. latent: computes multi-head latent attention.
    lite_at: the numbers of layers at which it makes queries of latent attention without a latent vector, and
        the size that the vocabulary has then; None for any.
    mlp_norm: what the norm before the MLP is called.
    """

    name: str
    pairing: Literal["half", "interleaved"]
    norms: frozenset[NormRole] = BEFORE
    query_key_norm: Literal["head", "projection"] | None = None
    query_key_norm_optional: bool = False
    fused_gate_up: bool = False
    output_bias: bool | Literal["always"] = False
    mlp_bias: bool = False
    head_size_free: bool = True
    partial_rotary: bool = False
    activation: str = "silu"
    windows: RuntimeWindows | None = None
    without_rope_every: int | None = None
    rope_pattern: bool = False
    output_head: Literal["own", "embedding", "either"] = "either"
    multipliers: bool = False
    embedding_root: bool = False
    scale_of_hidden_at: int | None = None
    attention_softcap: bool = False
    logit_softcap: Literal["always", "by key"] | None = None
    query_growth: bool = False
    sinks: bool = False
    experts: RuntimeExperts | None = None
    latent: bool = False
    lite_at: tuple[tuple[int, int | None], ...] = ()
    mlp_norm: str = "ffn_norm"

    def attention_scale(self, model: ModelDescription, layers: int) -> float:
        """Of the scores, where no key says it, in a file of so many of the model's layers."""
        attention = model.layers[0].attention
        if layers == self.scale_of_hidden_at:
            return 1.0 / math.sqrt(model.hidden_size // attention.heads)
        return 1.0 / math.sqrt(attention.projected_head_dim)

    def is_lite(self, layers: int, vocab_size: int) -> bool:
        """Whether it makes queries of latent attention without a latent vector, whatever the file says."""
        return any(layers == count and size in {None, vocab_size} for count, size in self.lite_at)

    def windows_at(self, layers: int) -> RuntimeWindows | None:
        """How it knows which of so many layers have a window; None where it reads none."""
        windows = self.windows
        return windows if windows is None or windows.only_at in {None, layers} else None

    def rotating(self, sliding: Sequence[bool]) -> list[bool]:
        """Per layer whether it has RoPE, where no key says it. sliding: whether it has a window."""
        windows, every = self.windows_at(len(sliding)), self.without_rope_every
        if windows is not None and not windows.others_turn:
            return list(sliding)
        return [every is None or (index + 1) % every != 0 for index in range(len(sliding))]


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        RuntimeArchitecture(
            name="llama",
            pairing="interleaved",
            output_bias=True,
            mlp_bias=True,
            experts=RuntimeExperts(scores="softmax", normalised=True, optional=True, own_size=False),
        ),
        RuntimeArchitecture(name="qwen2", pairing="half", head_size_free=False),
        RuntimeArchitecture(
            name="qwen2moe",
            pairing="half",
            head_size_free=False,
            output_head="own",
            experts=RuntimeExperts(scores="softmax", normalised=False, shared="gated"),
        ),
        RuntimeArchitecture(name="qwen3", pairing="half", query_key_norm="head"),
        RuntimeArchitecture(
            name="qwen3moe",
            pairing="half",
            query_key_norm="head",
            experts=RuntimeExperts(scores="softmax", normalised=True),
        ),
        RuntimeArchitecture(
            name="glm4moe",
            pairing="half",
            query_key_norm="head",
            query_key_norm_optional=True,
            partial_rotary=True,
            mlp_norm="post_attention_norm",
            experts=RuntimeExperts(
                scores=None,
                usual_scores="sigmoid",
                normalised=None,
                scaled=True,
                correction="always",
                leading_dense=True,
                shared="counted",
            ),
        ),
        RuntimeArchitecture(
            name="deepseek2",
            pairing="interleaved",
            latent=True,
            lite_at=((26, None), (27, None), (48, 128256)),
            experts=RuntimeExperts(
                scores=None,
                normalised=None,
                scaled=True,
                correction="either",
                leading_dense=True,
                shared="counted",
            ),
        ),
        RuntimeArchitecture(
            name="gpt-oss",
            pairing="half",
            output_bias="always",
            windows=RuntimeWindows(full_every=2, optional=False),
            output_head="own",
            sinks=True,
            mlp_norm="post_attention_norm",
            experts=RuntimeExperts(scores="softmax", normalised=True, clamped=True),
        ),
        RuntimeArchitecture(
            name="olmo2",
            pairing="half",
            norms=BEHIND,
            query_key_norm="projection",
            head_size_free=False,
            windows=RuntimeWindows(full_every=4, optional=True),
            output_head="own",
        ),
        RuntimeArchitecture(
            name="exaone4",
            pairing="half",
            norms=BEHIND,
            query_key_norm="head",
            head_size_free=False,
            # known by their depth: the 32B's, whose windows are there without any key
            windows=RuntimeWindows(full_every=4, optional=False, only_at=64, others_turn=False),
        ),
        RuntimeArchitecture(name="smollm3", pairing="interleaved", without_rope_every=4),
        RuntimeArchitecture(
            name="mistral3", pairing="interleaved", output_bias=True, mlp_bias=True, query_growth=True
        ),
        RuntimeArchitecture(
            name="glm4",
            pairing="interleaved",
            norms=BEFORE | BEHIND,
            fused_gate_up=True,
            partial_rotary=True,
        ),
        RuntimeArchitecture(
            name="granite", pairing="interleaved", output_bias=True, mlp_bias=True, multipliers=True
        ),
        # one block for several: Llama's with windows, layers without RoPE, and multipliers
        RuntimeArchitecture(
            name="granite_swa",
            pairing="interleaved",
            output_bias=True,
            windows=RuntimeWindows(full_every=None, optional=False),
            rope_pattern=True,
            multipliers=True,
            sinks=True,
        ),
        RuntimeArchitecture(
            name="phi3", pairing="half", fused_gate_up=True, head_size_free=False, partial_rotary=True
        ),
        RuntimeArchitecture(
            name="gemma2",
            pairing="half",
            norms=BEFORE | BEHIND,
            partial_rotary=True,
            activation="gelu_pytorch_tanh",
            windows=RuntimeWindows(full_every=2, optional=False),
            output_head="embedding",
            embedding_root=True,
            scale_of_hidden_at=46,
            attention_softcap=True,
            logit_softcap="always",
        ),
        RuntimeArchitecture(
            name="gemma3",
            pairing="half",
            norms=BEFORE | BEHIND,
            query_key_norm="head",
            partial_rotary=True,
            activation="gelu_pytorch_tanh",
            windows=RuntimeWindows(full_every=6, optional=True),
            embedding_root=True,
            scale_of_hidden_at=62,
            logit_softcap="by key",
        ),
    )
}
