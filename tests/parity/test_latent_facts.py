"""What of DeepSeek-like models is easily taken for granted: the epsilon of the latent vectors' norms, equal
betas (Kimi K2), layers behind the last that predict further tokens, and the factor on the scores.
"""

import json
import shutil

import gguf
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from tests.parity.onnx_requests import FLOAT32_TOLERANCE, tokens
from tests.parity.test_experts_onnx import PAIR, WRONG
from tests.support.models import (
    ORIGINAL_CONTEXT,
    edit_config,
    make_checkpoint,
    reference_logits,
    relative_error,
)
from tests.support.onnx_runtime import OnnxModel

KIMI = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": ORIGINAL_CONTEXT,
    "beta_fast": 1.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}


@pytest.mark.parametrize("name", ["deepseek_v2", "deepseek_v3"])
def test_norms_of_latent_vectors_have_their_own_epsilon(name, checkpoints, convert, yarnconv, tmp_path):
    """Moonlight's config says 1e-5, and transformers' class takes 1e-6 there whatever it says. Measured with
    1e-2: 3e-6, and 0.3 and more with one epsilon for all norms.
    """
    directory = checkpoints(name, rms_norm_eps=1e-2)
    found = OnnxModel(convert(directory)).run(tokens(200), capacity=256)
    assert relative_error(found, reference_logits(directory, tokens(200))) <= FLOAT32_TOLERANCE
    code, _, stderr = yarnconv("gguf", directory, "-o", tmp_path / "model.gguf")
    assert code == 3
    assert "one epsilon for all norms, 0.01" in stderr
    assert not (tmp_path / "model.gguf").exists()


@pytest.fixture(scope="module")
def kimi(tmp_path_factory):
    return make_checkpoint(
        tmp_path_factory.mktemp("kimi") / "model",
        "deepseek_v3",
        max_position_embeddings=1024,
        rope_parameters=KIMI,
    )


def test_equal_betas_are_a_ramp_of_one_pair(kimi, convert, check, yarnconv, tmp_path):
    """llama.cpp's architecture reads no betas, and says so by exit code 3."""
    out = convert(kimi)
    found = OnnxModel(out).run(tokens(600), capacity=1024)
    wanted = reference_logits(kimi, tokens(600))
    assert relative_error(found, wanted) <= FLOAT32_TOLERANCE
    usual = reference_logits(kimi, tokens(600), {**KIMI, "beta_fast": 32.0})
    assert relative_error(found, usual) > WRONG
    code, report, _ = check(out, kimi)
    assert code == 0, report["reasons"]
    code, _, stderr = yarnconv("gguf", kimi, "-o", tmp_path / "model.gguf")
    assert code == 3
    assert "beta_fast 32" in stderr


def test_kimi_k2_is_known_by_its_own_name(kimi, yarnconv, tmp_path):
    directory = shutil.copytree(kimi, tmp_path / "model")
    edit_config(directory, model_type="kimi_k2")
    code, stdout, stderr = yarnconv("plan", directory, "--json")
    assert code == 0, stderr
    assert json.loads(stdout)["family"] == "deepseek_v3"


@pytest.mark.parametrize("marked", [True, False])
def test_a_layer_too_many_is_left_out_only_where_it_predicts(marked, checkpoints, yarnconv, tmp_path):
    """A config that miscounts the layers would lose one."""
    import torch

    directory = shutil.copytree(checkpoints("glm4_moe"), tmp_path / "model")
    stored = load_file(directory / "model.safetensors")
    behind = {n.replace(".1.", ".2.", 1): t.clone() for n, t in stored.items() if ".layers.1." in n}
    if marked:
        behind["model.layers.2.eh_proj.weight"] = torch.zeros(4, 4)
    save_file({**stored, **behind}, directory / "model.safetensors", metadata={"format": "pt"})
    edit_config(directory, num_nextn_predict_layers=1)
    code, stdout, stderr = yarnconv("gguf", directory, "-o", tmp_path / "model.gguf")
    assert code == (0 if marked else 2), stderr
    assert (f"Left out: {len(behind)} tensors" in stdout) == marked
    assert ("is left over" in stderr) != marked


def test_no_shared_expert_is_no_model_of_the_family(checkpoints, yarnconv, tmp_path):
    directory = shutil.copytree(checkpoints("glm4_moe"), tmp_path / "model")
    edit_config(directory, n_shared_experts=0)
    code, _, stderr = yarnconv("gguf", directory, "-o", tmp_path / "model.gguf")
    assert code == 2
    assert "n_shared_experts is 0" in stderr


def test_a_file_that_holds_predicting_layers_too_is_judged(checkpoints, yarnconv, check, tmp_path):
    """As llama.cpp's converter writes GLM-4.5: they are counted, and belong to no part of the model."""
    directory, plain, other = checkpoints("glm4_moe"), tmp_path / "plain.gguf", tmp_path / "other.gguf"
    code, _, stderr = yarnconv("gguf", directory, "--factor", "4", "-o", plain)
    assert code == 0, stderr
    reader = gguf.GGUFReader(plain)
    writer = gguf.GGUFWriter(other, "glm4moe")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kind, value = field.types[0], field.contents()
        element = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        value = value + 1 if field.name == "glm4moe.block_count" else value
        writer.add_key_value(field.name, value, kind, sub_type=element)
    writer.add_uint32("glm4moe.nextn_predict_layers", 1)
    hidden = 256
    for tensor in reader.tensors:
        values = np.array(tensor.data).reshape([int(n) for n in reversed(tensor.shape)])
        writer.add_tensor(tensor.name, values)
        if tensor.name.startswith("blk.1."):
            writer.add_tensor(tensor.name.replace("blk.1.", "blk.2."), values)
    for name, shape in (("eh_proj", (hidden, 2 * hidden)), ("enorm", (hidden,)), ("hnorm", (hidden,))):
        writer.add_tensor(f"blk.2.nextn.{name}.weight", np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    code, report, stderr = check(other, directory)
    assert code == 0, (stderr, report and report["reasons"])


def test_scores_without_their_factor_are_named(paired, convert, check, monkeypatch):
    import dataclasses

    import yarnconv.targets.onnx.decoder as decoder

    plain = decoder._Decoder._turning
    monkeypatch.setattr(
        decoder._Decoder,
        "_turning",
        lambda self, *arguments: dataclasses.replace(plain(self, *arguments), softmax_multiplier=1.0),
    )
    out = convert(paired)
    code, report, _ = check(out, paired)
    assert code == 1
    assert report["verdicts"]["metadata"] == "fails"
    assert report["diagnosis"]["label"] == "softmax-factor-missing"


@pytest.fixture(scope="module")
def paired(tmp_path_factory):
    directory = tmp_path_factory.mktemp("paired") / "model"
    return make_checkpoint(directory, "deepseek_v3", max_position_embeddings=1024, rope_parameters=PAIR)
