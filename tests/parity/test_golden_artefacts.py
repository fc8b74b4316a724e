"""The float64 reference tables of published mixtures (fixtures/golden), read back from every artefact that
can carry them: what `inspect` finds in keys, tables and nodes, of tiny models with the published RoPE.
"""

import json

import numpy as np
import pytest

from tests.conftest import FIXTURES
from tests.support.models import make_checkpoint

CASES = json.loads((FIXTURES / "golden" / "rope_tables.json").read_text())["cases"]
FAMILIES = {"deepseek-v2-lite": "deepseek_v2", "deepseek-v3": "deepseek_v3", "gpt-oss": "gpt_oss"}
# Relative. Keys are float32 (measured: 3e-7); of the tables of cos and sin, float32 too, a frequency is known
# the better the more positions are read (measured: 3e-7 from 8192 positions), a factor to 1e-6.
TOLERANCE = 2e-6
POSITIONS = "8192"


def rope_of(case):
    rope = {
        "rope_type": "yarn",
        "rope_theta": case["rope_theta"],
        "factor": case["factor"],
        "beta_fast": float(case["beta_fast"]),
        "beta_slow": float(case["beta_slow"]),
        "original_max_position_embeddings": case["original_max_position_embeddings"],
    }
    pair = {key: case[key] for key in ("mscale", "mscale_all_dim") if case[key] is not None}
    return {**rope, **pair, **({} if case["truncate"] else {"truncate": False})}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Tiny models with the RoPE of the published ones, whose rotating dimensions are as many."""
    made = {}

    def get(name):
        if name not in made:
            case = CASES[name]
            context = int(case["original_max_position_embeddings"] * case["factor"])
            made[name] = make_checkpoint(
                tmp_path_factory.mktemp(name) / "model",
                FAMILIES[name],
                max_position_embeddings=context,
                rope_parameters=rope_of(case),
            )
        return made[name]

    return get


def written(kind, directory, out, yarnconv):
    command = {
        "gguf": ["gguf", directory, "-o", out],
        "onnx, in-place": ["onnx", directory, "--max-context", POSITIONS, "-o", out],
        "onnx, concat": ["onnx", directory, "--kv", "concat", "--max-context", POSITIONS, "-o", out],
        "engine": ["trt", directory, "--max-context", POSITIONS, "--compute-capability", "8.9", "-o", out],
        "hf": ["hf", directory, "--method", "auto", "-o", out],
    }[kind]
    return yarnconv(*command)


@pytest.mark.parametrize("kind", ["gguf", "onnx, in-place", "onnx, concat", "engine", "hf"])
@pytest.mark.parametrize("name", FAMILIES)
def test_read_back(name, kind, published, yarnconv, tmp_path):
    case, directory = CASES[name], published(name)
    out = tmp_path / ("artefact.gguf" if kind == "gguf" else "artefact")
    code, _, stderr = written(kind, directory, out, yarnconv)
    if (name, kind) == ("gpt-oss", "gguf"):
        assert code == 3, stderr
        assert "9 of 32 frequencies would be wrong, by up to 76.3 %" in stderr
        assert not out.exists()
        return
    assert code == 0, stderr
    code, stdout, stderr = yarnconv("inspect", out, "--json")
    assert code == 0, (stdout, stderr)
    found = json.loads(stdout)
    kept = "truncate" if case["truncate"] else "no_truncate"
    wanted = np.array([float(x) for x in case[f"inv_freq_{kept}"]])
    np.testing.assert_allclose(found["inv_freq"], wanted, rtol=TOLERANCE)
    factor = float(case["attention_factor_on_cos_sin"])
    assert found["attention_factor"] == pytest.approx(factor, rel=TOLERANCE)
    if case["mla"]:
        multiplier = float(case["softmax_scale_multiplier_mscale_all_dim_sq"])
        assert found["softmax_scale_multiplier"] == pytest.approx(multiplier, rel=TOLERANCE)


def test_a_network_that_leaves_the_softmax_factor_out_is_not_built(
    published, yarnconv, tmp_path, monkeypatch
):
    """The engine's own bytes do not show it: the network that TensorRT parsed does."""
    import yarnconv.targets.onnx.decoder as decoder

    plain = decoder._Decoder._turning

    def without(self, *arguments):
        from dataclasses import replace

        return replace(plain(self, *arguments), softmax_multiplier=1.0)

    monkeypatch.setattr(decoder._Decoder, "_turning", without)
    code, _, stderr = written("engine", published("deepseek-v3"), tmp_path / "out", yarnconv)
    assert code == 1
    assert "scores times" in stderr
    assert not (tmp_path / "out").exists()


def test_a_graph_that_leaves_the_softmax_factor_out_is_found(published, yarnconv, tmp_path, monkeypatch):
    import yarnconv.targets.onnx.decoder as decoder

    plain = decoder._Decoder._turning

    def without(self, *arguments):
        from dataclasses import replace

        return replace(plain(self, *arguments), softmax_multiplier=1.0)

    monkeypatch.setattr(decoder._Decoder, "_turning", without)
    code, _, stderr = written("onnx, in-place", published("deepseek-v3"), tmp_path / "out", yarnconv)
    assert code == 0, stderr
    code, stdout, _ = yarnconv("inspect", tmp_path / "out", "--json")
    assert code == 1
    assert [finding["code"] for finding in json.loads(stdout)["findings"]] == ["softmax-factor-missing"]
