"""The runner that `check` uses: real passkey_engines on a GPU, a reason elsewhere."""

from dataclasses import replace

import numpy as np
import pytest

from tests.support.models import relative_error
from tests.targets.tensorrt.test_engine_script import DYNAMIC, EXACT, edited
from yarnconv.errors import MissingComponent, NotJudged
from yarnconv.verify.passages import Passage, make_passages
from yarnconv.verify.runners.onnx_runtime import OnnxRuntime
from yarnconv.verify.runners.tensorrt import TensorRt, why_not_here
from yarnconv.worker import RuntimeRefused


def passages(contexts):
    """For each declared context those that fit it, and one that runs out of the tables."""
    tokens = np.random.default_rng(7).integers(0, 256, 500)
    made = make_passages(tokens, original_context=128, target_context=512, jumps=False)
    found = [replace(p, context=c) for c in contexts for p in made if p.positions[-1] < (c or 512)]
    beyond = Passage(
        name="off the tables",
        tokens=tokens[:70],
        positions=np.concatenate([np.arange(64), np.arange(510, 516)]),
        jump=None,
        judged=60,
        decoded=66,
        context=contexts[0],
    )
    return [*found, beyond]


def test_why_not_here(no_gpu):
    assert "an engine runs on a GPU only" in no_gpu
    assert "Traceback" not in no_gpu


def test_what_is_not_installed():
    from importlib.util import find_spec

    if find_spec("tensorrt"):
        pytest.skip("tensorrt is installed")
    assert 'pip install "yarnconv[check,tensorrt]"' in why_not_here("tensorrt")
    with pytest.raises(MissingComponent, match=r"yarnconv\[check,tensorrt\]"):
        TensorRt("tensorrt")


@pytest.mark.parametrize("name", ["", "yarnconv.json", "model.engine"])
def test_without_a_gpu_it_says_so(name, no_gpu, passkey_engines):
    with TensorRt("tensorrt-rtx") as runner:
        assert runner.version.startswith("tensorrt-rtx 1.")
        for _ in range(2):  # the worker lives on
            with pytest.raises(NotJudged, match="an engine runs on a GPU only"):
                runner.logits(passkey_engines(*DYNAMIC) / name, passages([512]))


def test_a_sidecar_that_does_not_hold(passkey_engines, tmp_path):
    directory = edited(passkey_engines(*DYNAMIC), tmp_path / "model", graph__layers=-3)
    with TensorRt("tensorrt-rtx") as runner, pytest.raises(RuntimeRefused, match=r"graph\.layers is '-3'"):
        runner.logits(directory, passages([512]))


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ((*EXACT, "--all-logits"), 1e-4),
        (EXACT, 1e-4),
        (DYNAMIC, 1.5e-2),
        (("--factor", "4", "--dtype", "bf16"), 0.1),
    ],
    ids=["fp32", "last token only", "fp16", "bf16"],
)
def test_logits_are_those_of_onnx_runtime(options, tolerance, gpu, passkey_engines, onnx_written):
    """bf16, which ONNX Runtime's CPU has no kernels for, against fp32."""
    bf16 = "bf16" in options
    written = [option for option in options if option != "--all-logits"]
    wanted_of = onnx_written("--factor", "4", "--dtype", "fp32") if bf16 else onnx_written(*written)
    runs = passages([None] if bf16 else [512, 200, 128])
    with OnnxRuntime() as cpu, TensorRt("tensorrt-rtx") as trt:
        wanted = cpu.logits(wanted_of / "model.onnx", runs)
        found = trt.logits(passkey_engines(*options, capability=gpu), runs)
    for passage, ours, theirs in zip(runs, found, wanted, strict=True):
        there = np.isfinite(theirs).all(axis=1)
        assert (np.isnan(ours).any(axis=1) == ~there).all(), passage.name
        assert there.all() == (passage.name != "off the tables")
        assert relative_error(ours[there], theirs[there]) <= tolerance, passage.name
