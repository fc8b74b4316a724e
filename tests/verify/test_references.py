"""The reference of plans that a family's transformers class would understand otherwise."""

import numpy as np
import pytest

from tests.support.models import make_checkpoint
from yarnconv.checkpoint.checkpoint import open_checkpoint
from yarnconv.errors import NotJudged
from yarnconv.model.family import families
from yarnconv.plan import plan_conversion
from yarnconv.rope.request import RopeRequest
from yarnconv.rope.tables import frozen_scalings
from yarnconv.verify.computing import AS_EVER
from yarnconv.verify.reference import Reference
from yarnconv.verify.structure import source_weights

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 32,
    "long_factor": [1.0 + pair / 8 for pair in range(32)],
    "original_max_position_embeddings": 256,
}
CASES = {
    "phi3": ("phi3", {}, RopeRequest(factor=4.0)),
    "phi3 from another context": ("phi3", {}, RopeRequest(factor=4.0, original_context=128)),
    "phi3 longrope": (
        "phi3",
        {"rope_parameters": LONGROPE, "max_position_embeddings": 1024},
        RopeRequest(),
    ),
    "ministral3 from another context": ("ministral3", {}, RopeRequest(factor=4.0, original_context=128)),
    "glm4": ("glm4", {}, RopeRequest(factor=4.0)),
    "olmo3": ("olmo3", {}, RopeRequest(factor=4.0, truncate=False)),
    "gemma3_text": ("gemma3_text", {}, RopeRequest(method="linear", factor=4.0)),
}


def references_of(plan):
    """One for each bucket, with its tables."""
    layers, weights = len(plan.description.layers), source_weights(plan, AS_EVER)
    buckets = plan.rope.main_group.buckets
    for scaling, tables in zip(frozen_scalings(plan.rope.main), buckets, strict=True):
        yield Reference(plan, weights, layers=layers, scaling=scaling, computing=AS_EVER), tables


@pytest.mark.parametrize("case", CASES)
def test_it_turns_by_the_plans_frequencies(case, tmp_path):
    family, config, request = CASES[case]
    directory = make_checkpoint(tmp_path / "model", family, tokenizer=False, **config)
    with open_checkpoint(directory) as checkpoint:
        plan = plan_conversion(checkpoint, request)
        for reference, tables in references_of(plan):
            assert float(np.max(reference.frequency_error(tables.inv_freq))) <= 2e-6


def test_a_config_that_the_class_does_not_take_is_not_judged(tmp_path):
    directory = make_checkpoint(tmp_path / "model", "exaone4", tokenizer=False)
    with open_checkpoint(directory) as checkpoint:
        plan = plan_conversion(checkpoint, RopeRequest())
        plan.config["layer_types"] = None  # its class divides by no pattern then
        with pytest.raises(NotJudged, match="transformers' exaone4 does not take it"):
            next(references_of(plan))


def test_dimensions_of_mamba_layers_that_are_not_there_are_handed_on(tmp_path):
    """The class checks them whether or not any layer has them."""
    assert 2 * 96 % 128
    config = {"hidden_size": 96, "num_attention_heads": 4, "mamba_n_heads": 8}
    directory = make_checkpoint(tmp_path / "model", "granitemoehybrid", tokenizer=False, **config)
    assert families()["granitemoehybrid"].config_defaults["mamba_n_heads"] == 128
    with open_checkpoint(directory) as checkpoint:
        assert next(references_of(plan_conversion(checkpoint, RopeRequest())))
