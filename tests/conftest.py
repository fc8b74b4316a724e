import gc
import json
import os
import warnings
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here may wait for a network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Tests that run side by side share the processors: torch's and llama.cpp's threads spin while they wait, and
# two of them on one processor take ten times as long. What the process that starts the workers has set here
# is theirs too, hence no setdefault.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    _SHARE = len(os.sched_getaffinity(0)) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ["OMP_NUM_THREADS"] = str(max(1, _SHARE))
os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))

FIXTURES = Path(__file__).parent.parent / "fixtures"


@pytest.fixture(scope="session", autouse=True)
def quiet_transformers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@pytest.fixture(scope="session", autouse=True)
def frozen_imports(quiet_transformers):
    """`check` collects a model that it is done with: what is imported and what pytest has collected by then
    is not looked through each time, which was a third of a check.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def llama_cpp_source():
    from tests.support.llama_cpp_source import fetch_source

    return fetch_source()


@pytest.fixture(scope="session")
def llama_cpp():
    """The real runtime, in one subprocess for the whole session."""
    from tests.support.llama_runtime import LlamaCpp

    with LlamaCpp() as runtime:
        yield runtime


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """(family, changes) -> directory of a tiny float32 checkpoint, made once. Not to be edited: copy it.

    Not named by the family: llama.cpp looks for "phi3" in a model's name, and then for Phi-3's tokens.
    """
    from tests.support.models import make_checkpoint

    root = tmp_path_factory.mktemp("checkpoints")
    made = {}

    def get(family, **overrides):
        key = (family, repr(sorted(overrides.items())))
        if key not in made:
            made[key] = make_checkpoint(root / f"model-{len(made)}", family, **overrides)
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


@pytest.fixture(scope="session")
def artefacts(checkpoints, tmp_path_factory):
    """(family, type, rope options) -> a right GGUF of the family's tiny checkpoint, made once."""
    from typer.testing import CliRunner

    from tests.support.quantise import quantise
    from yarnconv.cli import app

    root = tmp_path_factory.mktemp("artefacts")
    made = {}

    def get(family, outtype, *options):
        key = (family, outtype, options)
        if key not in made:
            written = root / f"{len(made)}.gguf"
            own = outtype if outtype in {"f32", "f16", "bf16", "q8_0"} else "f32"
            arguments = ["gguf", str(checkpoints(family)), *options, "--outtype", own, "-o", str(written)]
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, result.output
            made[key] = written
            if own != outtype:
                made[key] = quantise(written, root / f"{len(made)}-{outtype}.gguf", outtype)
        return made[key]

    return get


@pytest.fixture(scope="session")
def onnx_artefacts(checkpoints, tmp_path_factory):
    """(family, options of `yarnconv onnx`) -> a right ONNX directory of the family's tiny checkpoint, made
    once. Not to be edited: copy it."""
    from typer.testing import CliRunner

    from yarnconv.cli import app

    root = tmp_path_factory.mktemp("onnx")
    made = {}

    def get(family, *options):
        if (family, options) not in made:
            out = root / str(len(made))
            result = CliRunner().invoke(app, ["onnx", str(checkpoints(family)), *options, "-o", str(out)])
            assert result.exit_code == 0, result.output
            made[family, options] = out
        return made[family, options]

    return get


@pytest.fixture(scope="session")
def engines(checkpoints, tmp_path_factory):
    """(family, options of `yarnconv trt`) -> a TensorRT-RTX engine's directory and what `--json` said of it,
    made once. Not to be edited: copy it."""
    from typer.testing import CliRunner

    from yarnconv.cli import app

    root = tmp_path_factory.mktemp("engines")
    made = {}

    def get(family, *options):
        if (family, options) not in made:
            out = root / str(len(made))
            arguments = ["trt", str(checkpoints(family)), *options, "--json", "-o", str(out)]
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, result.output
            made[family, options] = out, json.loads(result.stdout)
        return made[family, options]

    return get


@pytest.fixture
def check(yarnconv):
    """Run `yarnconv check`: (exit code, report, stderr)."""

    def run(path, directory, *options):
        code, stdout, stderr = yarnconv("check", path, "--reference", directory, "--json", *options)
        return code, json.loads(stdout) if stdout else None, stderr

    return run


@pytest.fixture
def inspect(yarnconv):
    """Run `yarnconv inspect`: (exit code, document, codes of what is worse than a note)."""

    def run(*arguments):
        code, stdout, stderr = yarnconv("inspect", *arguments, "--json")
        assert "Traceback" not in stderr
        document = json.loads(stdout)
        assert all(f["message"] and f["remedy"] for f in document["findings"])
        severe = [f["code"] for f in document["findings"] if f["severity"] != "note"]
        return code, document, severe

    return run
