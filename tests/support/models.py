"""Tiny checkpoints made from seeds, and the transformers reference that judges what becomes of them."""

import copy
import json
from pathlib import Path

import numpy as np
import torch
import transformers

from tests.support.tokenizer_files import write_byte_level
from yarnconv.model.family import families

ORIGINAL_CONTEXT = 256


def tiny_config(family: str, **overrides):
    return {"model_type": family, **families()[family].tiny, **overrides}


def make_checkpoint(
    directory: Path,
    family: str,
    *,
    seed=0,
    dtype=torch.float32,
    tokenizer=True,
    shard=None,
    deviation=None,
    sharpness=1.0,
    **overrides,
) -> Path:
    """A seeded checkpoint whose attention is sharp: with transformers' usual initialisation (0.02)
    every head looks everywhere alike and a wrong rotation hardly shows.

    deviation: of the matrices' values, instead of one by their width. sharpness: scales q and k."""
    config = transformers.AutoConfig.for_model(**tiny_config(family, **overrides))
    model = sharp_model(config, seed=seed, deviation=deviation, sharpness=sharpness)
    model.to(dtype).save_pretrained(directory, max_shard_size=shard or "50GB")
    # save_pretrained writes transformers 5's spelling; tests that want another edit config.json
    if tokenizer:
        write_byte_level(directory, config.vocab_size)
    return directory


def sharp_model(config, *, seed=0, deviation=None, sharpness=1.0, kind=transformers.AutoModelForCausalLM):
    """A seeded model of any architecture, as `make_checkpoint` says. kind: transformers' class for it."""
    torch.manual_seed(seed)
    model = kind.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.copy_(1.0 + 0.1 * torch.randn_like(parameter))
            elif parameter.ndim == 2:
                scale = deviation or parameter.shape[1] ** -0.5
                scale *= sharpness if "q_proj" in name or "k_proj" in name else 1.0
                parameter.copy_(torch.randn_like(parameter) * scale)
            elif name.endswith("sinks"):  # as high as the scores of the keys that are looked at
                parameter.copy_(4.0 + torch.randn_like(parameter))
            elif parameter.ndim == 3:  # of experts, a matrix each
                parameter.copy_(torch.randn_like(parameter) * (deviation or parameter.shape[-1] ** -0.5))
            else:
                parameter.copy_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(0.1 * torch.randn_like(buffer))
    return model


def edit_config(directory: Path, *, remove=(), **values):
    path = directory / "config.json"
    config = json.loads(path.read_text())
    for key in remove:
        config.pop(key, None)
    config.update(values)
    path.write_text(json.dumps(config))


def sample_tokens(vocab_size: int, length: int, seed=1234):
    return np.random.default_rng(seed).integers(0, vocab_size, length).tolist()


def reference_logits(directory: Path, tokens, rope_parameters=None, weights=None, select=slice(None)):
    """float32 logits [positions, vocabulary] of transformers' own model, freshly built.

    rope_parameters: replaces the config's, in transformers 5's spelling; where a family spells them by layer
    type, those of the layers that see everything.
    weights: replaces parameters by name; one with an output head unties it.
    """
    config = transformers.AutoConfig.from_pretrained(directory)
    if rope_parameters is not None:
        own = copy.deepcopy(config.rope_parameters)
        scaled = own.get("full_attention", own)
        kept = {"rope_theta", "partial_rotary_factor", "llama_4_scaling_beta"} & scaled.keys()
        replaced = {**{key: scaled[key] for key in kept}, **rope_parameters}
        config.rope_parameters = {**own, "full_attention": replaced} if scaled is not own else replaced
        if getattr(config, "head_dim", None) is None:
            config.head_dim = config.hidden_size // config.num_attention_heads
    if weights and "lm_head.weight" in weights:
        config.tie_word_embeddings = False
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, config=config, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    if weights:
        state = {name: torch.from_numpy(np.ascontiguousarray(w)) for name, w in weights.items()}
        model.load_state_dict(state, strict=False)
    with torch.no_grad():
        logits = model(torch.tensor([tokens]), use_cache=False).logits[0]
    return logits[select].numpy()


def relative_error(found, wanted):
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
