"""Requests to an ONNX model as clients make them, and how far the worst is from what transformers says; not a
number where one of them has none (which Python's own `max` would pass over).
"""

import itertools

import numpy as np
import pytest

from tests.support.models import ORIGINAL_CONTEXT, relative_error, sample_tokens

FORMS = ("in-place", "concat")
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL_CONTEXT}
PLAIN = {"rope_type": "default"}
METHODS = {
    "plain": ("--method", "none"),
    "yarn": ("--factor", "4"),
    "dynamic-yarn": ("--factor", "4", "--method", "dynamic-yarn"),
}
# A dynamic model is asked for a long request and for a short one, which gets the original model.
REQUESTS = {"plain": [(256, 1.0)], "yarn": [(1024, 4.0)], "dynamic-yarn": [(1024, 4.0), (256, 1.0)]}
LENGTH = 600
FLOAT32_TOLERANCE = 1e-4  # measured over every family: 1.3e-6 .. 5.4e-5 (Gemma 3 with the largest logits)


def tokens(length=LENGTH, seed=1234):
    return sample_tokens(512, length, seed)


def methods_by_halves(names, both_forms=()):
    """Every name with every method in one form of the cache, in turn; in the other it is slow."""
    for (number, name), (step, method) in itertools.product(enumerate(names), enumerate(METHODS)):
        for kv in FORMS:
            default = name in both_forms or kv == FORMS[(number + step) % 2]
            yield pytest.param(name, method, kv, marks=() if default else pytest.mark.slow)


def request_error(model, method, kv, wanted_of):
    """Of every request of a method. wanted_of: (tokens, factor) -> logits."""
    errors = []
    for context, factor in REQUESTS[method]:
        asked = tokens(min(context, LENGTH))
        declared = {"rope_context": np.array(context)} if (kv, method) == ("concat", "dynamic-yarn") else {}
        found = model.run(asked, capacity=context, **declared)
        errors.append(relative_error(found, wanted_of(asked, factor)))
    return np.max(errors)


def decoding_error(model, steps, wanted, capacity=512):
    """Of a request that is fed in these steps. wanted: float32[sum of the steps, vocabulary]."""
    asked = tokens(len(wanted))
    model.start(np.array([asked]), capacity)
    position, errors = 0, []
    for step in steps:
        new = slice(position, position + step)
        found = model.feed(asked[new], np.arange(*new.indices(len(asked))))[0]
        errors.append(relative_error(found, wanted[new]))
        position += step
    return np.max(errors)


def padded_error(model, wanted_of):
    """Of a long sequence and of a short one that is padded on the left. wanted_of: tokens -> logits."""
    long, short = tokens(300), tokens(200, seed=5)
    batch, mask = np.array([long, [0] * 100 + short]), np.ones((2, 300), np.int64)
    mask[1, :100] = 0
    model.start(batch, 512)
    found = model.feed(batch, np.maximum(mask.cumsum(axis=1) - 1, 0), mask)
    pairs = ((found[0], long), (found[1, 100:], short))
    return np.max([relative_error(logits, wanted_of(asked)) for logits, asked in pairs])
