"""The weights verdict on matrices of codes, in every type that scales are stored in."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.support.models import make_checkpoint
from tests.support.onnx_faults import Editor
from tests.support.selection import product
from yarnconv.checkpoint.checkpoint import open_checkpoint
from yarnconv.plan import plan_conversion
from yarnconv.rope.request import RopeRequest
from yarnconv.targets.onnx.target import OnnxOptions, emit, prepare

YARN = ("--factor", "4")
ALTERED = "model.layers.1.mlp.up_proj.weight"
OTHER_WEIGHTS = {
    "its own": lambda values, generator: values,
    "ternary": lambda values, generator: np.sign(values) * (np.abs(values) > 0.03),
    "small": lambda values, generator: values * 1e-3,
    "tiny": lambda values, generator: values * 1e-6,  # below what float16 scales of 4 bits can say
    "one huge": lambda values, generator: np.where(generator.random(values.shape) < 1e-3, 1e4, values),
    "zero": lambda values, generator: values * 0,
}


def cases():
    """Every kind of weights in both dtypes and computed in every type, two by two."""
    return product(OTHER_WEIGHTS, ("int4", "fp8"), ("fp32", "fp16", "bf16"), meet=[(0, 1), (1, 2)])


def convert(directory, out, **options):
    """As `yarnconv onnx`, which computes in float32, also in what `yarnconv trt` computes in."""
    chosen = OnnxOptions(**options)
    with open_checkpoint(directory) as checkpoint:
        plan = plan_conversion(checkpoint, RopeRequest(factor=4.0))
        emit(plan, prepare(plan, chosen), out, chosen, lambda nbytes: None)
    return out


def make(case, directory):
    make_checkpoint(directory, "llama")
    tensors, generator = load_file(directory / "model.safetensors"), np.random.default_rng(0)
    for name, values in tensors.items():
        if "_proj" in name:
            tensors[name] = OTHER_WEIGHTS[case](values, generator).astype(np.float32)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.mark.parametrize(("case", "dtype", "compute"), list(cases()))
def test_any_weights_hold_and_one_code_altered_does_not(case, dtype, compute, check, tmp_path):
    directory = make(case, tmp_path / "model")
    out = convert(directory, tmp_path / "onnx", dtype=dtype, compute=compute)
    _, report, _ = check(out, directory, *YARN, "--weights", "all")
    assert report["verdicts"]["weights"] == "holds", report["reasons"]
    if case == "zero" or (case == "tiny" and dtype == "int4"):
        return
    editor = Editor(out, tmp_path / "faulty")
    codes = editor.stored(ALTERED).reshape(-1)
    codes[4321] = (int(codes[4321]) + 0x22) & 0xFF if dtype == "int4" else int(codes[4321]) ^ 0x81
    _, report, _ = check(editor.save(), directory, *YARN, "--weights", "all")
    assert report["verdicts"]["weights"] == "fails"


@pytest.mark.parametrize(("dtype", "compute"), [("int4", "fp16"), ("fp8", "fp16"), ("fp8", "bf16")])
def test_all_of_such_a_graph_holds(dtype, compute, check, checkpoints, tmp_path):
    embeddings = dtype == "int4"
    out = convert(
        checkpoints("qwen2"), tmp_path / "onnx", dtype=dtype, compute=compute, int4_embeddings=embeddings
    )
    code, report, stderr = check(out, checkpoints("qwen2"), *YARN)
    assert code == 0, report["reasons"] if report else stderr
    kind = {"fp16": "F16", "bf16": "BF16"}[compute]
    assert report["weights"]["types"].keys() == {"int4": {"INT4", kind}, "fp8": {"FP8", kind}}[dtype]
    editor = Editor(out, tmp_path / "faulty")
    scales = editor.stored(f"{ALTERED}.scales").reshape(-1).view(np.uint16)
    scales[17] ^= 0x80  # its exponent, in bfloat16; an eighth of it, in float16
    code, report, _ = check(editor.save(), checkpoints("qwen2"), *YARN, "--weights", "all")
    assert (code, report["verdicts"]["weights"]) == (1, "fails")


@pytest.mark.parametrize("compute", ["fp32", "fp16", "bf16"])
def test_a_column_that_its_scale_rounds_to_zero_is_not_the_checkpoints(compute, check, checkpoints, tmp_path):
    """All of it is within half a step, and of 384 columns one is 5 % of the whole."""
    out = convert(checkpoints("llama"), tmp_path / "onnx", dtype="fp8", compute=compute)
    editor = Editor(out, tmp_path / "faulty")
    scales = editor.stored(f"{ALTERED}.scales")
    scales[7] = {"fp32": 1e3, "fp16": 1e3, "bf16": 0x447A}[compute]  # the same number's bits
    editor.stored(ALTERED)[:, 7] = 0
    code, report, _ = check(editor.save(), checkpoints("llama"), *YARN, "--weights", "all")
    assert code == 1
    assert "column 7 needs" in report["reasons"]["weights"]


def test_the_next_code_is_noticed_on_both_sides_of_a_power_of_two(check, checkpoints, tmp_path):
    """Of values that are codes already, so that each is exact and a neighbour is a whole step off."""
    directory = make_checkpoint(tmp_path / "model", "llama")
    tensors = load_file(directory / "model.safetensors")
    tensors[ALTERED] = np.full_like(tensors[ALTERED], 448 / 1024)
    tensors[ALTERED][7, 1:3] = 256 / 1024, 240 / 1024
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    for column, change in ((1, -1), (1, 1), (2, -1), (2, 1)):
        editor = Editor(convert(directory, tmp_path / "onnx", dtype="fp8", replace=True), tmp_path / "faulty")
        codes = editor.stored(ALTERED)
        codes[column, 7] = int(codes[column, 7]) + change
        _, report, _ = check(editor.save(), directory, *YARN, "--weights", "all")
        assert report["verdicts"]["weights"] == "fails", (column, change)


@pytest.mark.parametrize("change", [0.99, 1.02])
def test_a_fine_tune_is_not_its_base_model(change, check, checkpoints, tmp_path):
    tuned = make_checkpoint(tmp_path / "tuned", "llama")
    tensors = load_file(tuned / "model.safetensors")
    tensors = {n: (v * np.float32(change) if "_proj" in n else v) for n, v in tensors.items()}
    save_file(tensors, tuned / "model.safetensors", metadata={"format": "pt"})
    out = convert(tuned, tmp_path / "onnx", dtype="fp8")
    _, report, _ = check(out, checkpoints("llama"), *YARN)
    assert report["verdicts"]["weights"] == "fails"
