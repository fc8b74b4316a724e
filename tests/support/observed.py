"""What the readers of ONNX models say, for tests to judge."""

import numpy as np
import pytest

from yarnconv.targets.onnx.extension import RUNTIME_OPERATORS
from yarnconv.targets.onnx.observed import claimed_context, maker, observe
from yarnconv.targets.onnx.reader import open_onnx


def read(path):
    """(the sources, who made it, the context that is claimed)."""
    with open_onnx(path, unknown=RUNTIME_OPERATORS) as model:
        return observe(model), maker(model), claimed_context(model)


def assert_agrees(table, inv_freq, factor, *, rel=1e-6):
    """Within what the reader itself says that it may be off."""
    assert table.broken is None
    off = np.abs(table.observation.inv_freq - inv_freq) / inv_freq
    assert (off <= table.observation.uncertainty).all()
    assert table.observation.attention_factor == pytest.approx(factor, rel=rel)
