"""That a network of latent attention or of attention sinks with other scales, or without sinks, is not taken
for the plan.
"""

import pytest

from tests.parity.test_experts_onnx import PAIR
from tests.support.models import make_checkpoint
from tests.support.network_changes import disagreeing, set_attribute, set_constant, skip

pytest.importorskip("tensorrt_rtx", reason="there are wheels for Linux and Windows on x86-64 only")


@pytest.fixture(scope="module")
def paired(tmp_path_factory):
    """DeepSeek's own scaling of unequal mscales: scores are multiplied by 1.1434 at factor 4, 1.0705 at 2."""
    directory = tmp_path_factory.mktemp("paired") / "model"
    return make_checkpoint(directory, "deepseek_v3", max_position_embeddings=1024, rope_parameters=PAIR)


@pytest.mark.parametrize("method", ["auto", "dynamic-yarn"])
def test_the_softmax_factor_is_read_back(method, paired, network_facts):
    facts = {fact.key: fact for fact in network_facts(paired, method=method)}
    assert disagreeing(facts.values()) == {}
    said = facts["attention of layer 0"].found
    assert "0.116701" in said  # 1.14343 / sqrt(96)
    assert ("0.102062, 0.109259, 0.116701" in said) == (method == "dynamic-yarn")


def without_sinks(graph):
    """The scores of one layer stand alone before their softmax, and all shares are the keys'."""
    softmax = next(n for n in graph.node if n.op_type == "Softmax" and n.input[0].startswith("Concat"))
    joined = next(node for node in graph.node if node.output[0] == softmax.input[0])
    softmax.input[0] = joined.input[0]
    cut = next(node for node in graph.node if node.input[0] == softmax.output[0])
    cut.op_type = "Identity"
    del cut.input[1:]


BY_BUCKET = [1.0, 1.070516, 1.143434]
CHANGES = {
    "the softmax factor is left out": ("paired", "auto", set_attribute("Attention", "scale", 96**-0.5)),
    "of one bucket it is another's": (
        "paired",
        "dynamic-yarn",
        set_constant(BY_BUCKET, [1.0, 1.0, 1.143434], (3,)),
    ),
    "the rotated part is not rotated": ("paired", "auto", skip("RotaryEmbedding")),
    "the window of the layers that have one": ("gpt_oss", "auto", set_constant(64, 65, (1,))),
    "no sinks": ("gpt_oss", "auto", without_sinks),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_network_that_computes_something_else(case, paired, network_facts, checkpoints):
    name, method, change = CHANGES[case]
    directory = paired if name == "paired" else checkpoints(name)
    wrong = disagreeing(network_facts(directory, change=change, method=method))
    assert {"attention of layer 0", "rotation of layer 0"} & wrong.keys()
