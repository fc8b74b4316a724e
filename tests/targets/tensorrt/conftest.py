import onnx
import pytest

from tests.conftest import FIXTURES
from yarnconv.checkpoint.checkpoint import open_checkpoint
from yarnconv.plan import plan_conversion
from yarnconv.rope.request import RopeRequest
from yarnconv.targets.tensorrt.builder import Builder
from yarnconv.targets.tensorrt.files import MODEL_FILE
from yarnconv.targets.tensorrt.network import compare_network
from yarnconv.targets.tensorrt.source import from_checkpoint
from yarnconv.targets.tensorrt.target import TensorRtOptions, graph_options
from yarnconv.verify.runners.tensorrt import why_not_here

PASSKEY = FIXTURES / "passkey-llama"


@pytest.fixture(scope="session")
def no_gpu():
    """Why engines do not run here; skips where they do."""
    pytest.importorskip("tensorrt_rtx", reason="there are wheels for Linux and Windows on x86-64 only")
    reason = why_not_here("tensorrt-rtx")
    if reason is None:
        pytest.skip("engines run here")
    return reason


@pytest.fixture(scope="session")
def gpu():
    """The compute capability of the GPU, for which TensorRT-RTX builds engines; skips where there is none."""
    trt = pytest.importorskip("tensorrt_rtx", reason="there are wheels for Linux and Windows on x86-64 only")
    if reason := why_not_here("tensorrt-rtx"):
        pytest.skip(reason)
    from cuda.bindings import runtime

    kinds = runtime.cudaDeviceAttr
    wanted = kinds.cudaDevAttrComputeCapabilityMajor, kinds.cudaDevAttrComputeCapabilityMinor
    major, minor = (runtime.cudaDeviceGetAttribute(kind, 0)[1] for kind in wanted)
    if f"SM{major}{minor}" not in trt.ComputeCapability.__members__:
        pytest.skip(f"TensorRT-RTX builds no engines for compute capability {major}.{minor}")
    return f"{major}.{minor}"


@pytest.fixture(scope="session")
def onnx_written(tmp_path_factory):
    """Options -> the trained fixture as `yarnconv onnx --kv concat` writes it. Not to be edited: copy it."""
    from typer.testing import CliRunner

    from yarnconv.cli import app

    root, made = tmp_path_factory.mktemp("onnx"), {}

    def get(*options):
        if options not in made:
            made[options] = root / str(len(made))
            arguments = ["onnx", str(PASSKEY), "--kv", "concat", *options, "-o", str(made[options])]
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, result.output
        return made[options]

    return get


@pytest.fixture(scope="session")
def passkey_engines(tmp_path_factory):
    """Options of `yarnconv trt` -> a directory with an engine of the trained fixture, built once. Copy it."""
    pytest.importorskip("tensorrt_rtx", reason="there are wheels for Linux and Windows on x86-64 only")
    from typer.testing import CliRunner

    from yarnconv.cli import app

    root, made = tmp_path_factory.mktemp("engines"), {}

    def get(*options, capability="8.9"):
        key = (options, capability)
        if key not in made:
            made[key] = root / str(len(made))
            shapes = ["--max-input", "128", "--compute-capability", capability]
            arguments = ["trt", str(PASSKEY), *options, *shapes, "-o", str(made[key])]
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, result.output
        return made[key]

    return get


@pytest.fixture(scope="module")
def builder():
    with Builder("tensorrt-rtx") as made:
        yield made


@pytest.fixture
def network_facts(builder, tmp_path):
    """The facts of a checkpoint's network. change: of the graph before it is parsed."""

    def run(directory, dtype="fp16", change=None, *, method="auto", factor=4.0):
        with open_checkpoint(directory) as checkpoint:
            plan = plan_conversion(checkpoint, RopeRequest(factor=factor, method=method))
            options = graph_options(plan, TensorRtOptions(dtype=dtype))
            source = from_checkpoint(plan, options, "model")
            initialisers = source.write(tmp_path, lambda nbytes: None, 1)
            if change is not None:
                model = onnx.load(tmp_path / MODEL_FILE, load_external_data=False)
                change(model.graph)
                (tmp_path / MODEL_FILE).write_bytes(model.SerializeToString())
            network = builder.parse(tmp_path / MODEL_FILE, initialisers, level=1, listen=lambda event: None)
            return compare_network(source.rope, source.model, network, source.max_context)

    return run
