"""Two sets of logits."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from yarnconv.verify.compare import (
    LARGEST_TOLERANCE,
    TOLERANCE_BASE,
    TOLERANCE_PER_ROUNDING,
    Sharpness,
    compare_logits,
    sharpness,
    tolerance,
)

POSITIONS = np.arange(100, 108)
WANTED = np.random.default_rng(0).standard_normal((8, 50)).astype(np.float32)


def compare(found, allowed=TOLERANCE_BASE):
    telling = Sharpness(allowed=allowed)
    return compare_logits("inside", "prefill", POSITIONS, found, WANTED, sharpness=telling)


def test_equal():
    window = compare(WANTED)
    assert window.holds
    assert (window.relative, window.relative_max, window.max_abs, window.kl_max) == (0, 0, 0, 0)
    assert (window.top1_agreement, window.first, window.last) == (1.0, 100, 107)


def test_one_position_outside_is_enough():
    """A single one among many right ones must not be averaged away."""
    found = WANTED.copy()
    found[5] *= 1.0 + 1.5 * TOLERANCE_BASE
    window = compare(found)
    assert window.relative < TOLERANCE_BASE
    assert window.first_bad_position == 105
    assert not window.holds


def test_tolerance_is_what_rounding_does_to_the_worst_position():
    disturbed = WANTED.copy()
    disturbed[3] *= np.float32(1.01)
    assert tolerance(WANTED, WANTED) == TOLERANCE_BASE
    assert tolerance(WANTED, disturbed) == pytest.approx(
        TOLERANCE_BASE + TOLERANCE_PER_ROUNDING * 0.01, rel=1e-4
    )
    found = WANTED * np.float32(1.0 + 1e-3)
    assert not compare(found).holds
    assert compare(found, tolerance(WANTED, disturbed)).holds


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_fails_and_can_be_written(value):
    found = WANTED.copy()
    found[2, 7] = value
    window = compare(found)
    assert window.first_bad_position == 102
    json.dumps(asdict(window), allow_nan=False)


def test_figures():
    found = WANTED.copy()
    found[0] = np.roll(found[0], 1)
    window = compare(found)
    difference = found.astype(np.float64) - WANTED
    assert window.relative == pytest.approx(np.linalg.norm(difference) / np.linalg.norm(WANTED), rel=1e-6)
    assert window.max_abs == pytest.approx(np.abs(difference).max())
    assert window.top1_agreement == 7 / 8
    p, q = (np.exp(x[0].astype(np.float64)) for x in (WANTED, found))
    p, q = p / p.sum(), q / q.sum()
    assert window.kl_max == pytest.approx((p * np.log(p / q)).sum(), rel=1e-6)
    assert window.kl_mean == pytest.approx(window.kl_max / 8, rel=1e-6)


def test_nothing_expected_and_nothing_found():
    zeros, telling = np.zeros_like(WANTED), Sharpness(allowed=0.1)
    assert compare_logits("inside", "decode", POSITIONS, zeros, zeros, sharpness=telling).holds
    assert not compare_logits("inside", "decode", POSITIONS, WANTED, zeros, sharpness=telling).holds


def test_a_window_that_cannot_tell_does_not_hold():
    doubled = np.roll(WANTED, 1, axis=1)
    assert sharpness(WANTED, WANTED, doubled).blind is None
    rounded = WANTED * np.float32(1 + LARGEST_TOLERANCE)
    assert "rounded angles alone" in sharpness(WANTED, rounded, doubled).blind
    assert "no rotation shows" in sharpness(WANTED, WANTED, WANTED).blind
    broken = np.full_like(WANTED, np.nan)
    assert sharpness(WANTED, broken, doubled).blind is not None
    telling = sharpness(WANTED, WANTED, WANTED)
    window = compare_logits("inside", "prefill", POSITIONS, WANTED, WANTED, sharpness=telling)
    assert window.first_bad_position is None
    assert not window.holds
