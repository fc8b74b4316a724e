"""That a dense family's network with another window, scale, softcap, growth or pairing is not taken for the
plan.
"""

import numpy as np
import pytest

from tests.parity.onnx_requests import MODELS
from tests.support.network_changes import disagreeing, double, set_attribute, set_constant, skip
from yarnconv.targets.tensorrt.network_reader import halves_first

pytest.importorskip("tensorrt_rtx", reason="there are wheels for Linux and Windows on x86-64 only")


@pytest.fixture
def read_back(network_facts, checkpoints):
    """(model, change) -> the facts of its network with that change."""

    def run(name, change):
        family, overrides = MODELS[name]
        return network_facts(checkpoints(family, **overrides), change=change)

    return run


def unmask_layer(graph):
    """The scores of one layer are all taken."""
    node = next(node for node in graph.node if node.op_type == "Where" and node.input[0].startswith("Tile"))
    node.op_type = "Identity"
    node.input[:] = [node.input[1]]


CHANGES = {
    "window": ("mistral, window", set_constant(64, 65, (1,)), "attention of layer 0"),
    "window of capped scores": ("gemma2", set_constant(64, 65, (1,)), "attention of layer 0"),
    "scale": ("granite", set_attribute("Attention", "scale", 0.125), "attention of layer 0"),
    "scale of capped scores": ("gemma2", set_constant(0.125, 0.25, ()), "attention of layer 1"),
    "twice, in front of the rotation": (
        "granite",
        double("RotaryEmbedding", behind=False),
        "attention of layer 0",
    ),
    "twice, behind the rotation": ("granite", double("RotaryEmbedding", behind=True), "attention of layer 0"),
    "twice, of capped scores": (
        "gemma2",
        double("RotaryEmbedding", behind=False),
        "attention of layer 0",
    ),
    "twice, in front of the growth": (
        "ministral3",
        double("RotaryEmbedding", behind=False),
        "attention of layer 0",
    ),
    "twice, behind a norm": ("olmo2", double("RotaryEmbedding", behind=False), "attention of layer 0"),
    "all twice, by a vector": (
        "granite",
        double("RotaryEmbedding", behind=True, value=[2.0] * 64),
        "attention of layer 0",
    ),
    "softcap": ("gemma2", set_constant(2.0, 3.5, ()), "attention of layer 1"),
    "no softcap": ("gemma2", skip("Tanh"), "attention of layer 0"),
    "mask of capped scores": ("gemma2", unmask_layer, "attention of layer 0"),
    "beta": ("ministral3", set_constant(0.1, 0.2, ()), "attention of layer 0"),
    "context of growth": ("ministral3", set_constant(256, 512, (1,)), "attention of layer 0"),
    "no growth": ("ministral3", skip("Log"), "attention of layer 0"),
    "pairing": ("glm4", set_attribute("RotaryEmbedding", "interleaved", 0), "rotation of layer 0"),
    "no rotation": ("smollm3", skip("RotaryEmbedding"), "rotation of layer 0"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_network_that_computes_something_else(case, read_back):
    name, change, key = CHANGES[case]
    assert key in disagreeing(read_back(name, change))


def test_softcaps_say_what_they_are(read_back):
    wrong = disagreeing(read_back("gemma2", set_constant(2.0, 3.5, ())))
    assert "capped at 3.5" in wrong["attention of layer 0"].found
    assert "capped at 2, over 64 positions" in wrong["attention of layer 0"].expected


@pytest.mark.parametrize(("turned", "width"), [(4, 4), (4, 8), (32, 64)])
def test_halves_first_is_the_same_rotation(turned, width):
    """Interleaved pairs, put in halves, rotated as halves and put back."""
    generator = np.random.default_rng(0)
    heads, angles = generator.standard_normal((3, width)), generator.standard_normal((3, turned // 2))
    cos, sin = np.cos(angles), np.sin(angles)
    wanted = heads.copy()
    first, second = heads[:, 0:turned:2], heads[:, 1:turned:2]
    wanted[:, 0:turned:2], wanted[:, 1:turned:2] = first * cos - second * sin, first * sin + second * cos
    order = halves_first(turned, width)
    halves = heads[:, order]
    low, high = halves[:, : turned // 2], halves[:, turned // 2 : turned]
    made = np.concatenate([low * cos - high * sin, low * sin + high * cos, halves[:, turned:]], axis=1)
    back = sorted(range(width), key=order.__getitem__)
    np.testing.assert_allclose(made[:, back], wanted)
