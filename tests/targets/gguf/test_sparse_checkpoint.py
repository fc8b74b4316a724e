"""Checkpoints of DeepSeek-V3's build, FP8 in many shards, in little memory."""

import json
import sys
import time

import numpy as np
import pytest

from tests.bench.measuring import measure
from tests.support.sparse_checkpoint import BLOCK, DEEPSEEK_V3, SMALL, make_sparse_checkpoint
from yarnconv.checkpoint.checkpoint import open_checkpoint
from yarnconv.targets.gguf.reader import open_gguf

CONFIG = {**DEEPSEEK_V3, **SMALL}
REAL = ("model.layers.1.mlp.experts.", "model.layers.1.self_attn.")
SPLIT = ("--split-max-size", "60M")
YARNCONV = (sys.executable, "-m", "yarnconv")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """150 MB in seven shards."""
    directory = tmp_path_factory.mktemp("sparse") / "model"
    return make_sparse_checkpoint(
        directory, CONFIG, shard_bytes=25_000_000, is_real=lambda name: name.startswith(REAL)
    )


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """The parts that one run writes, and what the run cost."""
    out = tmp_path_factory.mktemp("whole")
    cost = measure([*YARNCONV, "gguf", str(model), *SPLIT, "-o", str(out / "m.gguf")])
    return sorted(out.iterdir()), cost


def test_plan(model, yarnconv):
    code, stdout, stderr = yarnconv("plan", model, "--json")
    assert code == 0, stderr
    plan = json.loads(stdout)
    assert (plan["method"], plan["factor"], plan["target_context"]) == ("yarn", 40.0, 163840)
    assert plan["softmax_scale_multiplier"] == pytest.approx(1.87385, abs=1e-5)  # (0.1 ln 40 + 1)^2


def test_memory(whole):
    """Measured: 50 MB, most of it Python and NumPy; the files written are 208 MB, the shards 151 MB."""
    parts, cost = whole
    assert sum(part.stat().st_size for part in parts) > 200e6
    assert cost.peak_anonymous < 100e6


def test_every_part_by_a_job_of_its_own(model, whole, yarnconv, tmp_path):
    parts, _ = whole
    assert len(parts) >= 4
    for number, part in enumerate(parts, start=1):
        job = ("--only-split", f"{number}/{len(parts)}", "-o", tmp_path / "m.gguf")
        code, _, stderr = yarnconv("gguf", model, *SPLIT, *job)
        assert code == 0, stderr
        written = tmp_path / part.name
        assert written.read_bytes() == part.read_bytes()
        written.unlink()


def stored(model, name):
    """A weight dequantised by ml_dtypes and NumPy: float32[out, in]."""
    import ml_dtypes

    with open_checkpoint(model) as checkpoint:
        codes, factors = (checkpoint.tensors[name + end] for end in ("", "_scale_inv"))
        raw = bytes(codes.file.view(codes.offset, codes.nbytes))
        factors = factors.load().copy()
    values = np.frombuffer(raw, ml_dtypes.float8_e4m3fn).reshape(codes.shape).astype(np.float32)
    wide = factors.repeat(BLOCK, axis=0)[: codes.shape[0]].repeat(BLOCK, axis=1)[:, : codes.shape[1]]
    return values * wide


@pytest.mark.parametrize("kind", ["gate", "up", "down"])
def test_experts_are_what_they_were(kind, model, whole):
    import ml_dtypes

    name = "model.layers.1.mlp.experts.{}." + f"{kind}_proj.weight"
    wanted = np.stack([stored(model, name.format(expert)) for expert in range(CONFIG["n_routed_experts"])])
    with open_gguf(whole[0][0]) as artefact:
        tensor = artefact.tensors[f"blk.1.ffn_{kind}_exps.weight"]
        assert tensor.shape == wanted.shape
        found = tensor.rows(slice(0, tensor.row_count)).reshape(wanted.shape)
    assert np.array_equal(found, wanted.astype(ml_dtypes.bfloat16).astype(np.float32))
    assert np.abs(wanted).max() > 0


@pytest.mark.slow
def test_671_billion(tmp_path):
    """Measured: 0.9 s and 32 MB for the plan, 3.7 s and 167 MB for the layout of 91,991 tensors in 163 files,
    on two cores (`python -m tests.bench.sparse_deepseek`)."""
    model = make_sparse_checkpoint(tmp_path / "model", DEEPSEEK_V3)
    assert len(list(model.glob("*.safetensors"))) == 163
    began = time.perf_counter()
    plan = measure([*YARNCONV, "plan", str(model)])
    listed = [*YARNCONV, "gguf", str(model), "--split-max-size", "40G", "--split-jobs", "list", "--json"]
    with (tmp_path / "parts.json").open("wb") as out:
        layout = measure([*listed, "-o", str(tmp_path / "m.gguf")], stdout=out)
    assert time.perf_counter() - began < 60
    assert plan.peak_anonymous < 100e6
    assert layout.peak_anonymous < 300e6
    parts = json.loads((tmp_path / "parts.json").read_text())["parts"]
    assert len(parts) == 35
    assert sum(part["bytes"] for part in parts) == pytest.approx(2 * 671.0e9, rel=1e-3)
