"""Where an artefact is judged."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yarnconv.verify.passages import AROUND, PREFIX, make_passages

TOKENS = np.arange(1000)


@given(original=st.integers(2, 200_000), extension=st.integers(0, 200_000))
def test_any_context(original, extension):
    target = original + extension
    passages = make_passages(TOKENS, original_context=original, target_context=target)
    for passage in passages:
        assert passage.positions[0] == 0
        assert (np.diff(passage.positions) > 0).all()
        assert passage.positions[-1] < target
        assert len(passage.tokens) == len(passage.positions) <= 2 * PREFIX + 4 * AROUND
        assert 0 <= passage.judged <= passage.decoded <= len(passage.tokens)
        parts = [part for _, part in passage.phases()]
        covered = np.concatenate([passage.judged_positions[part] for part in parts])
        np.testing.assert_array_equal(covered, passage.judged_positions)
        if passage.jump is not None:  # the positions are consecutive but for the one gap
            assert list(np.flatnonzero(np.diff(passage.positions) != 1)) == [passage.jump - 1]
            assert passage.jump < passage.judged
        else:
            np.testing.assert_array_equal(passage.positions, np.arange(len(passage.positions)))
    judged = {int(position) for passage in passages for position in passage.judged_positions}
    assert judged >= {original - 1, target - 1} | ({original} if extension else set())
    if extension > 1:
        assert original + 1 in judged


def test_both_phases_cross_the_boundary():
    passages = make_passages(TOKENS, original_context=4096, target_context=16384)
    crossed = {
        phase
        for passage in passages
        for phase, part in passage.phases()
        if {4095, 4096, 4097} <= set(passage.judged_positions[part].tolist())
    }
    assert crossed == {"prefill", "decode"}


def test_the_token_behind_the_gap_sees_only_itself():
    passage = next(p for p in make_passages(TOKENS, original_context=4096, target_context=4096) if p.jump)
    visible = passage.visible()
    assert visible[passage.jump].sum() == 1
    assert visible[passage.jump, passage.jump]
    assert visible[passage.jump + 1].sum() == passage.jump + 2
    assert not np.triu(visible, 1).any()


def test_passages_run_on_different_tokens():
    passages = make_passages(TOKENS, original_context=4096, target_context=16384)
    starts = [int(passage.tokens[0]) for passage in passages]
    assert len(set(starts)) == len(starts)


@pytest.mark.parametrize("count", [1, 3, 50])
def test_few_tokens_are_taken_again(count):
    for passage in make_passages(np.arange(count), original_context=256, target_context=1024):
        assert set(passage.tokens.tolist()) == set(range(count))
