"""Every family that is no plain Llama, dense ones and mixtures, in the real ONNX Runtime against
transformers: inside and beyond the original context, prefilled, decoded and padded.
"""

import itertools

import numpy as np
import pytest

from tests.parity.onnx_requests import FLOAT32_TOLERANCE, FORMS, LENGTH, MODELS, YARN, decoding_error, tokens
from tests.parity.test_dense_onnx import yarn_of
from tests.support.models import reference_logits, relative_error
from tests.support.onnx_runtime import OnnxModel
from tests.support.selection import product

METHODS = {
    "plain": ("--method", "none"),
    "yarn": ("--factor", "4"),
    "dynamic-yarn": ("--factor", "4", "--method", "dynamic-yarn"),
}
# A dynamic model is asked for a long request and for a short one, which gets the original model.
REQUESTS = {"plain": [(256, 1.0)], "yarn": [(1024, 4.0)], "dynamic-yarn": [(1024, 4.0), (256, 1.0)]}
BOTH_FORMS = ("olmo3", "gemma2")


def cases():
    """Every model by every method, in one form of the cache or the other; two models in both."""
    others = [name for name in MODELS if name not in BOTH_FORMS]
    yield from product(others, METHODS, FORMS, meet=[(0, 1), (0, 2), (1, 2)])
    yield from itertools.product(BOTH_FORMS, METHODS, FORMS)


@pytest.mark.parametrize(("name", "method", "kv"), list(cases()))
def test_parity(name, method, kv, model_of, convert):
    directory = model_of(name)
    model = OnnxModel(convert(directory, *METHODS[method], "--kv", kv))
    for context, factor in REQUESTS[method]:
        asked = tokens(min(context, LENGTH))
        wanted = reference_logits(directory, asked, yarn_of(name, factor))
        declared = {"rope_context": np.array(context)} if (kv, method) == ("concat", "dynamic-yarn") else {}
        found = model.run(asked, capacity=context, **declared)
        assert relative_error(found, wanted) <= FLOAT32_TOLERANCE


@pytest.mark.parametrize("kv", FORMS)
@pytest.mark.parametrize(
    "name", ["olmo3", "ministral3", "gemma2", "glm4", "deepseek_v3", "gpt_oss", "qwen2_moe"]
)
def test_decode_across_the_boundary_and_in_chunks(name, kv, model_of, convert):
    wanted = reference_logits(model_of(name), tokens(320), yarn_of(name))
    model = OnnxModel(convert(model_of(name), "--factor", "4", "--kv", kv))
    assert decoding_error(model, (100, 153, *[1] * 6, 61), wanted) <= FLOAT32_TOLERANCE


@pytest.mark.parametrize("kv", FORMS)
@pytest.mark.parametrize("name", ["gemma2", "gpt_oss", "deepseek_v3"])
def test_two_sequences_one_padded_on_the_left(name, kv, model_of, convert):
    """Where scores are hidden one by one a row of padding has no number that spreads; sinks are each head's
    in each row, whoever shares its keys.
    """
    directory, long, short = model_of(name), tokens(300), tokens(200, seed=5)
    model = OnnxModel(convert(directory, "--factor", "4", "--kv", kv))
    batch, mask = np.array([long, [0] * 100 + short]), np.ones((2, 300), np.int64)
    mask[1, :100] = 0
    model.start(batch, 512)
    found = model.feed(batch, np.maximum(mask.cumsum(axis=1) - 1, 0), mask)
    assert relative_error(found[0], reference_logits(directory, long, YARN)) <= FLOAT32_TOLERANCE
    assert relative_error(found[1, 100:], reference_logits(directory, short, YARN)) <= FLOAT32_TOLERANCE
