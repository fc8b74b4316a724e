"""The mistakes that converters and people make in a GGUF, each as an edit of a right one.

The right one is YaRN with factor 4 on an original context of 256.
"""

import json
import math

import gguf
import numpy as np

FACTOR = 4.0
TEMPERATURE = 1.0 + 0.1 * math.log(FACTOR)


def _attention_factor(value):
    def edit(file):
        file.keys.float32(file.key("rope.scaling.attn_factor"), value)

    return edit


def plain(file):
    file.drop(file.key("rope.scaling."))


def linear(file):
    file.keys.string(file.key("rope.scaling.type"), "linear")


def ntk_by_parts(file):
    """As a converter that knows the method but not the temperature writes it: its own plan, consistently."""
    _attention_factor(1.0 / TEMPERATURE)(file)
    plan = json.loads(file.values["yarnconv.plan"])
    plan["method"], plan["rope_options"]["method"] = "ntk-by-parts", "ntk-by-parts"
    file.keys.string("yarnconv.plan", json.dumps(plan))


def wrong_factor(file):
    file.keys.float32(file.key("rope.scaling.factor"), 3.9)


def _original_context(value):
    def edit(file):
        file.keys.uint32(file.key("rope.scaling.original_context_length"), value)

    return edit


def theta(file):
    file.keys.float32(file.key("rope.freq_base"), 10000.0 * 1.01)


def context_length(file):
    file.keys.uint32(file.key("context_length"), 256)


def _heads_moved(rows, head_dim, interleave):
    shape = (-1, 2, head_dim // 2) if interleave else (-1, head_dim // 2, 2)
    order = np.arange(len(rows)).reshape(shape).swapaxes(1, 2).reshape(-1)
    return rows[order]


def wrong_permutation(file):
    """q/k left as they are where llama.cpp wants them permuted, permuted where it does not."""
    llama = file.architecture == "llama"
    head_dim = file.values[file.key("attention.key_length")] if llama else 64
    for name in file.rows:
        if name.endswith(("attn_q.weight", "attn_k.weight")):
            file.rows[name] = _heads_moved(file.rows[name], head_dim, interleave=not llama)


def swapped_tensors(file):
    """Gate and up projection of one layer: same shape, same type, both in their places by name."""
    gate, up = "blk.0.ffn_gate.weight", "blk.0.ffn_up.weight"
    assert file.tensors[gate].tensor_type == file.tensors[up].tensor_type
    file.rows[gate], file.rows[up] = file.rows[up], file.rows[gate]


def altered_block(file):
    """One block of the last layer, which structure does not even run, replaced by its neighbour."""
    name = "blk.2.ffn_gate.weight"
    values, size = gguf.GGML_QUANT_SIZES[file.tensors[name].tensor_type]
    size *= 1 if values > 1 else 32
    row = file.rows[name][7] if file.rows[name].shape[1] > size else file.rows[name][7:9].reshape(-1)
    row[:size] = row[size : 2 * size]
    if file.rows[name].shape[1] == size:
        file.rows[name][7:9] = row.reshape(2, -1)


# name -> (edit, the verdicts that must fail)
FAULTS = {
    "temperature dropped": (_attention_factor(1.0 / TEMPERATURE), {"structure", "metadata"}),
    "temperature twice": (_attention_factor(TEMPERATURE), {"structure", "metadata"}),
    "ntk-by-parts for yarn": (ntk_by_parts, {"structure", "metadata"}),
    "plain": (plain, {"structure", "metadata"}),
    "linear": (linear, {"structure", "metadata"}),
    "factor 3.9 for 4": (wrong_factor, {"structure", "metadata"}),
    "original context x 4": (_original_context(1024), {"structure", "metadata"}),
    "original context 255, invisible in logits": (_original_context(255), {"metadata"}),
    "original context 231, which other betas would want": (_original_context(231), {"metadata"}),
    "theta + 1 %": (theta, {"structure", "metadata"}),
    "context_length": (context_length, {"metadata"}),
    "q/k permutation": (wrong_permutation, {"weights"}),
    "two tensors swapped": (swapped_tensors, {"weights"}),
    "one block altered": (altered_block, {"weights"}),
}
