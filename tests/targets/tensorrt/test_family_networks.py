"""What TensorRT-RTX makes of the graphs of every family beyond Llama's kin, read back from the parsed
network; and that an engine holds every weight of them.
"""

import itertools

import pytest

from tests.parity.onnx_requests import MODELS
from tests.support.network_changes import disagreeing
from tests.support.selection import slow

pytest.importorskip("tensorrt_rtx", reason="there are wheels for Linux and Windows on x86-64 only")


def cases():
    """Every family in fp16; in other types, and by the declared context, some of them."""
    forms = list(itertools.product(("fp16", "fp32", "int4"), ("auto", "dynamic-yarn")))
    for number, name in enumerate(MODELS):
        for form in forms:
            default = form == forms[0] or (number % 3 == 0 and form == forms[1 + number % 5])
            yield pytest.param(name, *form, marks=() if default else pytest.mark.slow)


@pytest.mark.parametrize(("name", "dtype", "method"), list(cases()))
def test_every_family_is_read_back(name, dtype, method, network_facts, checkpoints):
    family, overrides = MODELS[name]
    facts = network_facts(checkpoints(family, **overrides), dtype, method=method)
    assert disagreeing(facts) == {}
    layers = sum(fact.key.startswith("attention of layer") for fact in facts)
    assert layers == sum(fact.key.startswith("rotation of layer") for fact in facts) > 1


BUILT = ("glm4", "gemma2", "phi3", "mixtral", "deepseek_v3", "gpt_oss")
OTHERS = sorted({family for family, _ in MODELS.values()} - {*BUILT})


@pytest.mark.parametrize("family", [*BUILT, *slow(*OTHERS)])
def test_engines_hold_every_weight(family, engines):
    """Fused matrices that are taken apart, norms with the one folded in, stacked experts, routers in float32
    and latent attention's matrices."""
    _, document = engines(family, "--factor", "4", "--compute-capability", "8.9")
    weights = document["engine"]["weights"]
    assert weights["found"] == weights["tensors"] > 20
