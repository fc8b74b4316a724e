import os
import warnings
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here may wait for a network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

FIXTURES = Path(__file__).parent.parent / "fixtures"


@pytest.fixture(scope="session", autouse=True)
def quiet_transformers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def llama_cpp_source():
    from tests.support.llama_cpp_source import fetch_source

    return fetch_source()


@pytest.fixture(scope="session")
def llama_cpp(tmp_path_factory):
    """The real runtime, in one subprocess for the whole session."""
    from tests.support.llama_runtime import LlamaCpp

    runtime = LlamaCpp(tmp_path_factory.mktemp("llama_cpp"))
    yield runtime
    runtime.close()


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """family -> directory of a tiny float32 checkpoint, made once. Not to be edited: copy it."""
    from tests.support.models import make_checkpoint

    root = tmp_path_factory.mktemp("checkpoints")
    made = {}

    def get(family, **overrides):
        key = (family, tuple(sorted(overrides.items(), key=str)))
        if key not in made:
            made[key] = make_checkpoint(root / f"{family}-{len(made)}", family, **overrides)
        return made[key]

    return get


@pytest.fixture
def yarnconv():
    """Run the command line in this process: (exit code, stdout, stderr)."""
    from typer.testing import CliRunner

    from yarnconv.cli import app

    def run(*arguments):
        result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
        return result.exit_code, result.stdout, result.stderr

    return run
