"""That a reference of layers of several types turns by what it is told to."""

import numpy as np
import pytest

from tests.support.models import make_checkpoint, reference_logits, relative_error, sample_tokens
from yarnconv.checkpoint.checkpoint import open_checkpoint
from yarnconv.plan import plan_conversion
from yarnconv.rope.request import RopeRequest
from yarnconv.rope.tables import buckets, frozen_scalings
from yarnconv.verify.computing import Computing
from yarnconv.verify.passages import Passage
from yarnconv.verify.reference import Reference
from yarnconv.verify.structure import source_weights

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0 + 0.01 * pair for pair in range(32)],
    "long_factor": [1.0 + 0.2 * pair for pair in range(32)],
    "original_max_position_embeddings": 32,
}
TOKENS = sample_tokens(512, 100)
SAME, ANOTHER = 1e-4, 1e-2  # measured: equal to the last bit, or 0.5 and more


def passage(length):
    tokens = np.array(TOKENS[:length])
    return Passage(
        name="inside",
        tokens=tokens,
        positions=np.arange(length),
        jump=None,
        judged=length,
        decoded=length,
    )


def in_use(reference):
    """Frequencies by layer type, as the last call left them."""
    (module,) = (one for one in reference._model.modules() if hasattr(one, "rope_type"))
    return {kind: getattr(module, f"{kind}_inv_freq").numpy().copy() for kind in module.rope_type}


@pytest.fixture(params=["full_attention", "sliding_attention"])
def longrope_on(request, tmp_path):
    """(the directory of a Gemma 3 with longrope on one type of its layers, which, a reference of it)."""
    scaled = {"full_attention": YARN, "sliding_attention": {"rope_type": "default"}, request.param: LONGROPE}
    rope = {kind: {**one, "rope_theta": 10000.0} for kind, one in scaled.items()}
    directory = make_checkpoint(
        tmp_path / "model", "gemma3_text", max_position_embeddings=512, rope_parameters=rope
    )
    with open_checkpoint(directory) as checkpoint:
        plan = plan_conversion(checkpoint, RopeRequest())
        computing = Computing()
        weights = source_weights(plan, computing)
        # as References has it: each bucket's own; of a static scaling the one
        scaling = frozen_scalings(plan.rope.main)[-1]
        layers = len(plan.description.layers)
        yield (
            directory,
            request.param,
            Reference(plan, weights, layers=layers, scaling=scaling, computing=computing),
            plan,
        )


def test_each_type_of_layers_turns_by_its_own(longrope_on):
    """The extended ones by the bucket they are frozen to, the others by the set of the length."""
    directory, kind, reference, _ = longrope_on
    for length in (100, 32, 100) if kind == "sliding_attention" else (100,):
        wanted = reference_logits(directory, TOKENS[:length])
        assert relative_error(reference.logits(passage(length)), wanted) <= SAME


def test_other_frequencies_stay_while_they_should(longrope_on):
    _, _, reference, plan = longrope_on
    asked = passage(100)
    wanted = reference.logits(asked)
    inv_freq = buckets(plan.rope.main)[-1].inv_freq
    before = in_use(reference)
    with reference.disturbed(np.full(len(inv_freq), 0.1)):
        assert relative_error(reference.logits(asked), wanted) > ANOTHER
        for layer_type, frequencies in in_use(reference).items():
            np.testing.assert_allclose(frequencies, 1.1 * before[layer_type], rtol=1e-6)
    np.testing.assert_array_equal(reference.logits(asked), wanted)


@pytest.mark.parametrize("longrope_on", ["full_attention"], indirect=True)
def test_another_set_stays_while_it_should(longrope_on):
    _, _, reference, plan = longrope_on
    asked = passage(100)
    wanted = reference.logits(asked)
    short, _ = buckets(plan.rope.main)
    with reference.altered(short, rows={}, windows=True):
        assert relative_error(reference.logits(asked), wanted) > ANOTHER
    np.testing.assert_array_equal(reference.logits(asked), wanted)
