import pytest


@pytest.fixture
def extend(yarnconv, tmp_path):
    """Extend a checkpoint: its directory, to be edited at will."""

    def run(model, *options, name="extended"):
        out = tmp_path / name
        code, _, stderr = yarnconv("hf", model, *options, "-o", out)
        assert code == 0, stderr
        return out

    return run
