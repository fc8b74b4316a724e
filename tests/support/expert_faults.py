"""What GGUFs of mixtures of experts and latent attention may lack or have wrong, each as an edit of a right
one.

A name says which; what the edit is good for is measured where it is used.
"""

import numpy as np

from tests.support.gguf_editing import EditableGguf
from yarnconv.targets.gguf.placement import NO_SINK

SOFTMAX, SIGMOID = 1, 2


def number(name: str, value: float):
    """A key that holds a float."""
    return lambda file: file.keys.float32(file.key(name), value)


def count(name: str, value: int):
    """A key that holds a whole number."""
    return lambda file: file.keys.uint32(file.key(name), value)


def switch(name: str, value: bool):
    """A key that holds a truth value."""
    return lambda file: file.keys.boolean(file.key(name), value)


def without_keys(*names: str):
    """Keys left out."""

    def edit(file: EditableGguf) -> None:
        for name in names:
            file.drop(file.key(name))

    return edit


def floats(file: EditableGguf, name: str) -> np.ndarray:
    """The values of a float32 tensor, in its own shape, to be changed in place."""
    return file.rows[name].reshape(-1).view(np.float32).reshape(file.tensors[name].shape)


def _named(file: EditableGguf, ending: str) -> list[np.ndarray]:
    found = [floats(file, name) for name in file.rows if name.endswith(ending)]
    assert found, f"there is no {ending}"
    return found


def filled(ending: str, value: float = 0.0):
    """Every tensor whose name ends so holds one value."""

    def edit(file: EditableGguf) -> None:
        for values in _named(file, ending):
            values[:] = value

    return edit


def other_order(*endings: str, step: int = 1):
    """Experts stand in each other's places."""

    def edit(file: EditableGguf) -> None:
        for ending in endings:
            for values in _named(file, ending):
                values[:] = np.roll(values, step, axis=0)

    return edit


def one_expert_swapped(file: EditableGguf) -> None:
    """The first two experts of one layer, of one matrix."""
    name = next(name for name in file.rows if name.endswith("ffn_up_exps.weight"))
    values = floats(file, name)
    values[[0, 1]] = values[[1, 0]]


def swapped_halves(ending: str, size: int, first: int = 0):
    """Rows of heads in the other order of pairs: halves where neighbours are meant.

    size: of a head's rows. first: which of them begin to rotate.
    """

    def edit(file: EditableGguf) -> None:
        for values in _named(file, ending):
            heads = values.reshape(-1, size, values.shape[-1])
            turning = heads[:, first:].copy()
            count = turning.shape[1]
            pairs = turning.reshape(len(heads), count // 2, 2, -1)
            heads[:, first:] = pairs.swapaxes(1, 2).reshape(turning.shape)

    return edit


def swapped_gate_and_up(file: EditableGguf) -> None:
    """Of the experts."""
    for name in [name for name in file.rows if name.endswith("ffn_gate_exps.weight")]:
        other = name.replace("gate", "up")
        file.rows[name], file.rows[other] = file.rows[other], file.rows[name]


TAKES_ONE = count("expert_used_count", 1)
EXPERTS_MOVED = other_order("ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight")
SCORES_ALONE = filled("exp_probs_b.bias")
NOT_SCALED = number("expert_weights_scale", 1.0)
NOT_NORMALISED = switch("expert_weights_norm", False)
NORMALISED = switch("expert_weights_norm", True)
NOTHING_SHARED = filled("ffn_down_shexp.weight")
FROM_ALL_GROUPS = without_keys("expert_group_count", "expert_group_used_count")
LOGITS_ALONE = filled("ffn_gate_inp.bias")
NO_SINKS = filled("attn_sinks.weight", NO_SINK)

OF_EXPERTS = {
    "takes one expert": TAKES_ONE,
    "experts in other places": EXPERTS_MOVED,
}
# of scores that are corrected to choose by (DeepSeek-V3)
OF_CORRECTED_SCORES = {
    **OF_EXPERTS,
    "no shared expert": NOTHING_SHARED,
    "no correction": SCORES_ALONE,
    "not scaled": NOT_SCALED,
    "not normalised": NOT_NORMALISED,
    "softmax scores": count("expert_gating_func", SOFTMAX),
}

# by family: what must not be left out or be otherwise
FEATURES = {
    "mixtral": {
        **OF_EXPERTS,
        "gate and up swapped": swapped_gate_and_up,
        "rows of q in the other order": swapped_halves("attn_q.weight", 64),
    },
    "qwen2_moe": {
        **OF_EXPERTS,
        "no shared expert": NOTHING_SHARED,
        # not 0: llama.cpp has its sigmoid as silu(x) / x
        "the shared expert's gate is a half": filled("ffn_gate_inp_shexp.weight", 1e-6),
        "no biases": filled("attn_q.bias"),
    },
    "qwen3_moe": {
        **OF_EXPERTS,
        "no norm of queries": filled("attn_q_norm.weight", 1.0),
    },
    "glm4_moe": {
        **OF_CORRECTED_SCORES,
        "whole heads rotate": count("rope.dimension_count", 64),
        "no norm of queries": filled("attn_q_norm.weight", 1.0),
        "no biases": filled("attn_q.bias"),
    },
    "deepseek_v2": {
        **OF_EXPERTS,
        "no shared expert": NOTHING_SHARED,
        "not scaled": NOT_SCALED,
        "normalised": NORMALISED,
        "sigmoid scores": count("expert_gating_func", SIGMOID),
        "temperature on all dimensions": without_keys("rope.scaling.yarn_log_multiplier"),
        "rows of q in the other order": swapped_halves("attn_q.weight", 96, 32),
        "no norm of the latent vector": filled("attn_kv_a_norm.weight", 1.0),
    },
    "deepseek_v3": {
        **OF_CORRECTED_SCORES,
        "of all groups": FROM_ALL_GROUPS,
        "of three groups": count("expert_group_used_count", 3),
        "temperature on all dimensions": without_keys("rope.scaling.yarn_log_multiplier"),
        "no norm of the latent queries": filled("attn_q_a_norm.weight", 1.0),
    },
    "gpt_oss": {
        **OF_EXPERTS,
        "no bias of the router": LOGITS_ALONE,
        "no biases of gates": filled("ffn_gate_exps.bias"),
        "no biases of ups": filled("ffn_up_exps.bias"),
        "no biases of downs": filled("ffn_down_exps.bias"),
        "no bias of the output": filled("attn_output.bias"),
        "no sinks": NO_SINKS,
        "a wide window": count("attention.sliding_window", 4096),
        "a window of one more": count("attention.sliding_window", 65),
    },
}
