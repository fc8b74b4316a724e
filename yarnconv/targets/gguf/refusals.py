"""What of a model's structure an architecture of llama.cpp would not compute; and which one computes it."""

import math
from collections.abc import Iterator

from yarnconv.errors import Inexpressible
from yarnconv.model.description import AttentionDescription, LayerDescription, ModelDescription
from yarnconv.plan import ConversionPlan
from yarnconv.targets.gguf.experts import experts_refusals
from yarnconv.targets.gguf.file_format import same
from yarnconv.targets.gguf.runtime import ARCHITECTURES, RuntimeArchitecture


def slides(attention: AttentionDescription) -> bool:
    """Whether a layer has a sliding window."""
    return attention.window is not None


def _windows(plan: ConversionPlan, runtime: RuntimeArchitecture) -> Iterator[Inexpressible]:
    model = plan.description
    windows = [layer.attention.window for layer in model.layers]
    narrow = [w for w in windows if w is not None and w < plan.rope.target_context]
    known = runtime.windows_at(len(windows))
    # an architecture may tell its models with windows by their depth
    only_at = None if runtime.windows is None else runtime.windows.only_at
    if narrow and known is None:
        yield Inexpressible(
            f"{len(narrow)} layers look back over {min(narrow)} positions only, the context has "
            f"{plan.rope.target_context}, and llama.cpp's {runtime.name} architecture reads no window"
            + ("" if only_at is None else f" in a model of {len(windows)} layers, only in one of {only_at}"),
            where="config.json: sliding_window",
            fix="Convert without a window only if you mean to: set it to null in config.json.",
        )
    if known is not None and not known.optional and not any(windows):
        yield Inexpressible(
            f"llama.cpp's {runtime.name} architecture wants a window"
            + ("" if only_at is None else f" in a model of {only_at} layers")
            + ", and no layer has one",
            where="config.json: sliding_window",
        )


def _without_rope(plan: ConversionPlan, runtime: RuntimeArchitecture) -> Iterator[Inexpressible]:
    layers = plan.description.layers
    wanted = [layer.attention.rotates for layer in layers]
    made = runtime.rotating([slides(layer.attention) for layer in layers])
    if wanted == made or runtime.rope_pattern:
        return
    index = next(i for i, (want, have) in enumerate(zip(wanted, made, strict=True)) if want != have)
    windows = runtime.windows_at(len(layers))
    if windows is not None and not windows.others_turn:
        others = "turns those with a window and no other"
    elif runtime.without_rope_every is None:
        others = "turns all layers"
    else:
        others = f"leaves out every {runtime.without_rope_every}th layer and no other"
    yield Inexpressible(
        f"layer {index} has {'RoPE' if wanted[index] else 'no RoPE'}, and llama.cpp's {runtime.name} "
        f"architecture {others}",
        where="config.json: layers without RoPE",
    )


def _block(layer: LayerDescription, runtime: RuntimeArchitecture) -> Iterator[Inexpressible]:
    attention, whose = layer.attention, f"llama.cpp's {runtime.name} architecture"
    if layer.norms != runtime.norms:
        yield Inexpressible(
            f"{whose} has {', '.join(sorted(runtime.norms))}, not {', '.join(sorted(layer.norms))}",
            where="the norms of a layer",
        )
    norm = attention.query_key_norm
    if norm != runtime.query_key_norm and not (norm is None and runtime.query_key_norm_optional):
        kinds = {None: "no norm", "head": "a norm of each head", "projection": "one norm of all heads"}
        yield Inexpressible(
            f"{whose} has {kinds[runtime.query_key_norm]} on queries and keys, not "
            f"{kinds[attention.query_key_norm]}",
            where="the norms of queries and keys",
        )
    if attention.output_bias and not runtime.output_bias:
        yield Inexpressible(
            f"{whose} loads no bias of the attention output", where="config.json: attention_bias"
        )
    if runtime.output_bias == "always" and not attention.output_bias:
        what = f"{whose} wants a bias of the attention output"
        yield Inexpressible(what, where="config.json: attention_bias")
    if attention.softcap is None and runtime.attention_softcap:
        yield Inexpressible(f"{whose} caps scores always", where="config.json: attn_logit_softcapping")
    if attention.softcap is not None and not runtime.attention_softcap:
        yield Inexpressible(f"{whose} does not cap scores", where="config.json: attn_logit_softcapping")
    if attention.query_growth is not None and not runtime.query_growth:
        yield Inexpressible(
            f"{whose} does not let queries grow with their position",
            where="config.json: rope_parameters.llama_4_scaling_beta",
        )


def _mlp(model: ModelDescription, runtime: RuntimeArchitecture) -> Iterator[Inexpressible]:
    """Of the layers without experts, and the activation of those with them."""
    whose = f"llama.cpp's {runtime.name} architecture"
    mlp, mixture = model.dense, model.mixture
    plain = mlp if mixture is None or mixture.clamp is not None else mixture
    if mlp is not None and mlp.bias and not runtime.mlp_bias:
        yield Inexpressible(f"{whose} loads no bias of the MLP", where="config.json: mlp_bias")
    if plain is not None and plain.activation != runtime.activation:
        yield Inexpressible(
            f"{whose} computes {runtime.activation}, not {plain.activation}", where="config.json: hidden_act"
        )
    if mlp is not None and runtime.fused_gate_up and not mlp.fused:
        yield Inexpressible(f"{whose} wants gate and up in one matrix", where="the MLP")


def _latent(model: ModelDescription, runtime: RuntimeArchitecture) -> Iterator[Inexpressible]:
    attention, whose = model.layers[0].attention, f"llama.cpp's {runtime.name} architecture"
    latent = attention.latent
    if (latent is not None) != runtime.latent:
        yield Inexpressible(
            f"{whose} has {'' if runtime.latent else 'no '}multi-head latent attention, and this model has "
            f"{'none' if latent is None else 'it'}",
            where="config.json: kv_lora_rank",
        )
    if latent is None:
        return
    if attention.query_key_value_bias:
        what = f"{whose} loads no biases of latent attention"
        yield Inexpressible(what, where="config.json: attention_bias")
    if not same(latent.norm_epsilon, model.norm_epsilon):
        yield Inexpressible(
            f"{whose} has one epsilon for all norms, {model.norm_epsilon:g}, and those of the latent vectors "
            f"have {latent.norm_epsilon:g}, whatever config.json says",
            where="config.json: rms_norm_eps",
            fix="Write another target, which has both.",
        )
    if attention.pairing != runtime.pairing:
        what = f"{whose} rotates pairs of neighbours, not halves"
        yield Inexpressible(what, where="config.json: rope_interleave")
    if latent.query_rank is not None and runtime.is_lite(len(model.layers), model.vocab_size):
        yield Inexpressible(
            f"{whose} makes queries without a latent vector in a model of {len(model.layers)} layers"
            f" and {model.vocab_size} vocabulary entries",
            where="config.json: q_lora_rank",
        )


def _numbers(plan: ConversionPlan, runtime: RuntimeArchitecture) -> Iterator[Inexpressible]:
    model, whose = plan.description, f"llama.cpp's {runtime.name} architecture"
    attention, layer = model.layers[0].attention, model.layers[0]
    if attention.sinks and not runtime.sinks:
        yield Inexpressible(f"{whose} has no attention sinks", where="self_attn.sinks")
    if attention.heads * attention.head_dim != model.hidden_size and not runtime.head_size_free:
        yield Inexpressible(
            f"{whose} wants the heads to span the hidden size of {model.hidden_size}, not "
            f"{attention.heads * attention.head_dim}",
            where="config.json: head_dim",
        )
    if plan.rope.main.rotary_dim != attention.turning_dim and not runtime.partial_rotary:
        yield Inexpressible(
            f"{whose} rotates whole heads of {attention.turning_dim}, not {plan.rope.main.rotary_dim} "
            "dimensions of them",
            where="config.json: partial_rotary_factor",
        )
    scale = runtime.attention_scale(model, len(model.layers))
    if not runtime.multipliers and not same(attention.scale, scale):
        yield Inexpressible(
            f"{whose} multiplies scores by {scale:.7g}, not {attention.scale:.7g}",
            where="the scale of the attention",
        )
    embedding = math.sqrt(model.hidden_size) if runtime.embedding_root else 1.0
    multiplied = {
        "embeddings": (model.embedding_multiplier, embedding),
        "what a layer adds": (layer.residual_multiplier, 1.0),
        "logits": (model.logit_multiplier, 1.0),
    }
    for what, (wanted, made) in multiplied.items():
        if not runtime.multipliers and not same(wanted, made):
            yield Inexpressible(
                f"{whose} multiplies {what} by {made:.7g}, not {wanted:.7g}",
                where=f"the multiplier of {what}",
            )
    if model.logit_softcap is None and runtime.logit_softcap == "always":
        yield Inexpressible(f"{whose} caps logits always", where="config.json: final_logit_softcapping")
    if model.logit_softcap is not None and runtime.logit_softcap is None:
        yield Inexpressible(f"{whose} does not cap logits", where="config.json: final_logit_softcapping")
    if runtime.output_head == "embedding" and not model.tied_embeddings:
        yield Inexpressible(
            f"{whose} takes the embedding for its output head, and the model has one of its own",
            where="config.json: tie_word_embeddings",
        )


def structure_refusals(plan: ConversionPlan, runtime: RuntimeArchitecture) -> list[Inexpressible]:
    """What of the model's structure an architecture would not compute; nothing where it computes exactly
    this.
    """
    return [
        *_windows(plan, runtime),
        *_without_rope(plan, runtime),
        *_block(plan.description.layers[0], runtime),
        *_mlp(plan.description, runtime),
        *_latent(plan.description, runtime),
        *experts_refusals(plan.description, runtime),
        *_numbers(plan, runtime),
    ]


def runtimes_of(plan: ConversionPlan) -> tuple[RuntimeArchitecture, ...]:
    """The architectures that may compute models of the plan's family, the usual one first."""
    return tuple(ARCHITECTURES[name] for name in plan.family.gguf.architectures)


def runtime_of(plan: ConversionPlan) -> RuntimeArchitecture:
    """The first architecture that computes the plan's structure exactly; the usual one where none does."""
    every = runtimes_of(plan)
    return next((one for one in every if not structure_refusals(plan, one)), every[0])
