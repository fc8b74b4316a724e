"""What the tests of ONNX models in the real runtime ask for, and how far off the answers may be."""

import numpy as np

from tests.support.models import ORIGINAL_CONTEXT, relative_error, sample_tokens

FORMS = ("in-place", "concat")
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL_CONTEXT}
PLAIN = {"rope_type": "default"}
# sharp enough that caps and windows show: scores reach a few times the cap
DENSE = {
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", {}),
    "smollm3": ("smollm3", {}),
    "ministral3": ("ministral3", {}),
    "glm4": ("glm4", {}),
    "granite": ("granite", {}),
    "granitemoehybrid": ("granitemoehybrid", {}),
    "phi3": ("phi3", {}),
    "gemma2": ("gemma2", {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3": ("gemma3_text", {}),
    "mistral, window": ("mistral", {"sliding_window": 64}),
}
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe", "glm4_moe", "deepseek_v2", "deepseek_v3", "gpt_oss")
# name -> (family, what is changed in its tiny configuration)
MODELS = DENSE | {family: (family, {}) for family in MIXTURES}
LENGTH = 600
FLOAT32_TOLERANCE = 1e-4  # measured over every family: 1.3e-6 .. 5.4e-5 (Gemma 3 with the largest logits)


def tokens(length=LENGTH, seed=1234):
    return sample_tokens(512, length, seed)


def decoding_error(model, steps, wanted, capacity=512):
    """The largest relative error of a request that is fed in these steps; not a number where one step has
    none (which Python's own `max` would pass over). wanted: float32[sum of the steps, vocabulary].
    """
    asked = tokens(len(wanted))
    model.start(np.array([asked]), capacity)
    position, errors = 0, []
    for step in steps:
        new = slice(position, position + step)
        found = model.feed(asked[new], np.arange(*new.indices(len(asked))))[0]
        errors.append(relative_error(found, wanted[new]))
        position += step
    return np.max(errors)
