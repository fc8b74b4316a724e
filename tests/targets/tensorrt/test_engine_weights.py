"""An engine's weights, found in its own bytes: without a GPU there is no other witness of them."""

import json
import shutil

import numpy as np
import pytest
import torch

from tests.support.models import make_checkpoint
from tests.support.selection import product
from tests.targets.tensorrt.test_inspect import write
from yarnconv.checkpoint.checkpoint import open_checkpoint
from yarnconv.checkpoint.mapped_file import MappedFile
from yarnconv.plan import plan_conversion
from yarnconv.rope.request import RopeRequest
from yarnconv.targets.onnx.weights import FLOAT_TYPES
from yarnconv.targets.tensorrt.engine_weights import Sought, find_weights, sought_weights

pytest.importorskip("tensorrt_rtx", reason="there are wheels for Linux and Windows on x86-64 only")

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
YARN = ("--factor", "4")
# what the engine computes in
DTYPES = {"fp16": "fp16", "bf16": "bf16", "fp32": "fp32", "int4": "fp16", "fp8": "fp16"}


@pytest.mark.parametrize(("family", "dtype"), list(product(FAMILIES, DTYPES, meet=[])))
def test_every_tensor_stands_in_the_engine(family, dtype, engines, checkpoints):
    directory, document = engines(family, *YARN, "--dtype", dtype)
    file = MappedFile(directory / "model.engine")
    with open_checkpoint(checkpoints(family)) as checkpoint:
        element = FLOAT_TYPES[DTYPES[dtype]]
        sought = sought_weights(plan_conversion(checkpoint, RopeRequest()))
        found = find_weights(file, sought, element, dtype)
    assert all(found.values()), [name for name in found if not found[name]]
    assert document["engine"]["weights"] == {"tensors": len(found), "found": len(found)}
    file.close()


@pytest.fixture
def engine_of_another(engines, checkpoints, tmp_path, yarnconv):
    """The engine of a fine-tune that differs in one matrix, with the sidecar's digests."""

    def run(dtype, change):
        directory = shutil.copytree(checkpoints("llama"), tmp_path / "fine-tune")
        change(directory)
        out = tmp_path / "engine"
        code, _, stderr = yarnconv("trt", directory, *YARN, "--dtype", dtype, "-o", out)
        assert code == 0, stderr
        return out

    return run


def one_matrix(directory):
    from safetensors.torch import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"] += 0.01
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "int4", "fp8"])
def test_a_fine_tune_is_not_its_base_model(dtype, engine_of_another, check, checkpoints):
    """The kept graph borrows the reference's float weights and holds, whoever the reference is; codes of 4
    bits lie beside it."""
    directory = engine_of_another(dtype, one_matrix)
    code, report, stderr = check(directory, checkpoints("llama"), *YARN)
    assert code == 1, stderr
    assert report["verdicts"]["weights"] == "fails"
    said = "29 of 30 tensors stand in the engine"
    if dtype in {"int4", "fp8"}:
        said = "not the checkpoint's"
    assert said in report["reasons"]["weights"]


def test_an_engine_put_in_another_ones_place(engines, check, checkpoints, tmp_path):
    """With every digest made right."""
    base, _ = engines("llama", *YARN)
    other = make_checkpoint(tmp_path / "other", "llama", seed=7)
    code, report, _ = check(base, other, *YARN)
    assert code == 1
    assert report["verdicts"]["weights"] == "fails"


def test_the_sidecar_is_not_believed(engines, check, checkpoints, tmp_path):
    """Another model's weights, whatever is recorded of them, of the types and of the runtime."""
    source, _ = engines("llama", *YARN)
    other = make_checkpoint(tmp_path / "other", "llama", seed=7)
    directory = shutil.copytree(source, tmp_path / "engine")
    sidecar = json.loads((directory / "yarnconv.json").read_text())
    changes = [
        *({"weights": recorded} for recorded in (None, {"found": "many"}, {"found": True})),
        {"graph": {**sidecar["graph"], "cache_type": "fp64"}},
        {"runtime": {**sidecar["runtime"], "name": "tensorrt"}},
    ]
    for change in changes:
        write(directory, {**sidecar, **change})
        code, report, _ = check(directory, other, *YARN)
        assert code == 1
        assert report["verdicts"]["weights"] == "fails"
    code, report, _ = check(source, checkpoints("llama"), *YARN, "--weights", "none")
    assert report["reasons"]["weights"] == "left out (--weights none)"


def test_rows_of_any_width_are_found(tmp_path):
    """Where they begin at an odd place, no multiple of anything but two bytes, the aligned ones serve."""
    generator = np.random.default_rng(0)
    shape = (37, 13)
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    from safetensors.torch import save_file

    values = torch.from_numpy(generator.standard_normal(shape).astype(np.float32)).bfloat16()
    save_file({"matrix": values, "vector": values[0].clone()}, directory / "model.safetensors")
    (directory / "config.json").write_text("{}")
    raw = values.view(torch.uint16).numpy()
    engine = tmp_path / "engine"
    for stored, found in ((raw, True), (raw.T, True), (raw[:36], False), (raw[::-1], False)):
        engine.write_bytes(bytes(64) + np.ascontiguousarray(stored).tobytes() + bytes(7))
        file = MappedFile(engine)
        with open_checkpoint(directory) as checkpoint:
            matrix = [Sought(name="matrix", source=checkpoint.tensors["matrix"])]
            assert find_weights(file, matrix, FLOAT_TYPES["bf16"], "bf16") == {"matrix": found}
        file.close()
