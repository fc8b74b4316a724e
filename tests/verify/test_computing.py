"""Where and in which type the reference is computed: what that changes, and what it does not."""

import json

import numpy as np
import pytest
import torch

from tests.support.faults import FAULTS
from tests.support.gguf_editing import load
from tests.support.onnx_faults import Editor
from yarnconv.checkpoint.checkpoint import open_checkpoint
from yarnconv.plan import plan_conversion
from yarnconv.rope.request import RopeRequest
from yarnconv.verify import structure
from yarnconv.verify.case import CheckOptions
from yarnconv.verify.computing import Computing, LazyWeights, held
from yarnconv.verify.gguf.check import check_gguf
from yarnconv.verify.hf.check import check_hf
from yarnconv.verify.onnx.check import check_onnx
from yarnconv.verify.passages import make_passages
from yarnconv.verify.reference import Reference
from yarnconv.verify.structure import source_weights

YARN = ("--factor", "4")
REQUEST = RopeRequest(factor=4.0)
NOTHING_FITS = CheckOptions(computing=Computing(memory=1))
without_a_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def logits(plan, computing):
    reference = Reference(
        plan,
        source_weights(plan, computing),
        layers=3,
        scaling=plan.rope.main,
        computing=computing,
    )
    passages = make_passages(np.arange(512), original_context=256, target_context=1024)
    places = {name: parameter.is_meta for name, parameter in reference._model.named_parameters()}
    return [reference.logits(passage) for passage in passages], places


@pytest.mark.parametrize("family", ["llama", "qwen2"])  # the second's head is its embedding
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_the_same_wherever_the_weights_lie(family, dtype, checkpoints):
    with open_checkpoint(checkpoints(family)) as checkpoint:
        plan = plan_conversion(checkpoint, REQUEST)
        wanted, places = logits(plan, Computing(dtype=dtype))
        assert not any(places.values())
        whole = 7_000_000 * (1 if dtype == "float32" else 0.5)
        for memory, some_fit in ((int(0.7 * whole), True), (1, False)):
            found, places = logits(plan, Computing(dtype=dtype, memory=memory))
            assert any(places.values())
            assert all(places.values()) != some_fit
            for one, other in zip(found, wanted, strict=True):
                np.testing.assert_array_equal(one, other)


def test_weights_that_memory_holds_are_made_once_and_others_again():
    made = []

    def make(name):
        made.append(name)
        return np.zeros((4, 4), np.float32)

    weights = LazyWeights({"a": (4, 4), "b": (4, 4)}, make)
    kept = held(weights, Computing(memory=128))
    assert [kept["a"] is kept["a"], made] == [True, ["a", "b"]]
    assert held(weights, Computing(memory=127)) is weights
    assert weights["a"] is not weights["a"]
    with pytest.raises(KeyError):
        weights["c"]


def test_a_reference_larger_than_memory_tells_right_from_wrong(artefacts, checkpoints, tmp_path):
    path = artefacts("llama", "q8_0", *YARN)
    report = check_gguf(path, checkpoints("llama"), REQUEST, NOTHING_FITS)
    assert report.parity is True
    assert report.windows == check_gguf(path, checkpoints("llama"), REQUEST, CheckOptions()).windows
    file = load(path)
    FAULTS["temperature dropped"][0](file)
    faulty = file.write(tmp_path / "faulty.gguf")
    report = check_gguf(faulty, checkpoints("llama"), REQUEST, NOTHING_FITS)
    assert report.parity is False
    assert report.diagnosis.label == "temperature-missing"


def test_rows_are_moved_wherever_they_lie(onnx_artefacts, checkpoints, tmp_path):
    editor = Editor(onnx_artefacts("llama", *YARN), tmp_path / "faulty")
    for node in editor.nodes("RotaryEmbedding"):
        attribute = next(a for a in node.attribute if a.name == "interleaved")
        attribute.i = 1 - attribute.i
    report = check_onnx(editor.save(), checkpoints("llama"), REQUEST, NOTHING_FITS)
    assert report.diagnosis.label == "wrong-pairing"


def test_an_extended_checkpoint_larger_than_memory(checkpoints, yarnconv, tmp_path):
    out = tmp_path / "extended"
    assert yarnconv("hf", checkpoints("qwen2"), *YARN, "-o", out)[0] == 0
    options = CheckOptions(computing=Computing(memory=1), layers=0)
    report = check_hf(out, checkpoints("qwen2"), REQUEST, options)
    assert (report.parity, report.layers) == (True, 3)
    assert max(window.relative_max for window in report.as_is.windows) < 1e-4


def test_all_layers_are_compared_whatever_they_take(monkeypatch, check, artefacts, checkpoints):
    monkeypatch.setattr(structure, "AS_IS_REFERENCE_BYTES", 0)
    path = artefacts("llama", "f32", *YARN)
    assert "not compared" in check(path, checkpoints("llama"), *YARN)[1]["as_is"]["note"]
    report = check(path, checkpoints("llama"), *YARN, "--layers", "all")[1]
    assert max(window["relative_max"] for window in report["as_is"]["windows"]) < 1e-3


@pytest.mark.parametrize("dtype", [pytest.param("float64", marks=pytest.mark.slow), "float16"])
def test_the_type_of_the_reference(dtype, check, artefacts, checkpoints, tmp_path):
    path = artefacts("llama", "f32", *YARN)
    exact = check(path, checkpoints("llama"), *YARN)[1]
    code, report, stderr = check(path, checkpoints("llama"), *YARN, "--dtype", dtype)
    assert code == 0, (stderr, report["reasons"])
    assert report["runtime"]["reference"].endswith(f", {dtype} on cpu")
    assert not exact["runtime"]["reference"].endswith("on cpu")
    for window, known in zip(report["windows"], exact["windows"], strict=True):
        wider = window["tolerance"] > 2 * known["tolerance"]
        assert wider == (dtype == "float16")  # whose own rounding counts
        assert window["relative_max"] <= window["tolerance"] / (2 if wider else 1)
    file = load(path)
    FAULTS["temperature dropped"][0](file)
    code, report, _ = check(
        file.write(tmp_path / "faulty.gguf"), checkpoints("llama"), *YARN, "--dtype", dtype
    )
    assert (code, report["diagnosis"]["label"]) == (1, "temperature-missing")


def test_a_type_that_moves_the_logits_too_far_cannot_tell(check, artefacts, checkpoints):
    path = artefacts("llama", "f32", *YARN)
    code, report, _ = check(path, checkpoints("llama"), *YARN, "--dtype", "bfloat16")
    assert (code, report["verdicts"]["structure"]) == (5, "not_judged")
    assert "move" in report["reasons"]["structure"]


@without_a_gpu
def test_a_gpu_that_is_not_there(check, artefacts, checkpoints):
    path = artefacts("llama", "f32", *YARN)
    code, report, stderr = check(path, checkpoints("llama"), *YARN, "--device", "cuda")
    assert (code, report) == (5, None)
    assert "--device cuda" in stderr
    assert torch.__version__ in stderr
    assert check(path, checkpoints("llama"), *YARN, "--device", "auto")[0] == 0


@pytest.mark.parametrize("option", [("--device", "cupa"), ("--dtype", "float8")])
def test_what_is_not_known_is_refused(option, check, artefacts, checkpoints):
    code, _, stderr = check(artefacts("llama", "f32", *YARN), checkpoints("llama"), *YARN, *option)
    assert code == 2
    assert option[0] in stderr


def test_offloading_needs_accelerate(monkeypatch, checkpoints):
    from yarnconv.errors import MissingComponent
    from yarnconv.verify import components

    find = components.find_spec
    monkeypatch.setattr(components, "find_spec", lambda name: None if name == "accelerate" else find(name))
    with open_checkpoint(checkpoints("llama")) as checkpoint:
        plan = plan_conversion(checkpoint, REQUEST)
        with pytest.raises(MissingComponent, match="accelerate"):
            logits(plan, Computing(memory=1))


def test_the_report_can_be_read_as_json(yarnconv, artefacts, checkpoints):
    options = ("--reference", checkpoints("llama"), *YARN, "--dtype", "float64", "--device", "cpu", "--json")
    code, stdout, _ = yarnconv("check", artefacts("llama", "f32", *YARN), *options)
    assert code == 0
    assert "float64 on cpu" in json.loads(stdout)["runtime"]["reference"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("memory", [None, 5_000_000, 1])
def test_a_reference_on_a_gpu(memory, artefacts, checkpoints):
    options = CheckOptions(computing=Computing(device="cuda", memory=memory))
    report = check_gguf(artefacts("llama", "f32", *YARN), checkpoints("llama"), REQUEST, options)
    assert report.parity is True
    assert report.runtime["reference"].endswith("float32 on cuda")
