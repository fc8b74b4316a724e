"""A text model among other parts: what is taken of it, against transformers' whole model."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from tests.support.models import relative_error, sample_tokens, sharp_model
from tests.support.tokenizer_files import write_byte_level
from yarnconv.checkpoint.checkpoint import open_checkpoint
from yarnconv.errors import BadInput
from yarnconv.model.family import families, find_family
from yarnconv.plan import plan_conversion
from yarnconv.rope.request import RopeRequest

SEES = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = {
    "mistral3": {**SEES, "model_type": "pixtral", "image_size": 32, "patch_size": 16, "head_dim": 32},
    "gemma3": {**SEES, "model_type": "siglip_vision_model", "image_size": 32, "patch_size": 16},
}
WRAPPED = [("mistral3", "mistral"), ("mistral3", "ministral3"), ("gemma3", "gemma3_text")]


def wrapped(directory, wrapper, family):
    """A tiny seeded checkpoint of a model with a vision tower."""
    config = transformers.AutoConfig.for_model(
        wrapper,
        text_config={"model_type": family, **families()[family].tiny},
        vision_config=VISION[wrapper],
        tie_word_embeddings=families()[family].tiny["tie_word_embeddings"],
    )
    model = sharp_model(config, kind=transformers.AutoModelForImageTextToText)
    model.save_pretrained(directory)
    write_byte_level(directory, 512)
    return directory, model


@pytest.mark.parametrize(("wrapper", "family"), WRAPPED)
def test_the_text_model_is_planned(wrapper, family, tmp_path):
    directory, model = wrapped(tmp_path / "model", wrapper, family)
    with open_checkpoint(directory) as checkpoint:
        plan = plan_conversion(checkpoint, RopeRequest())
    assert plan.family.model_type == family
    own = {name for name in model.state_dict() if "vision" not in name and "projector" not in name}
    tied = plan.description.tied_embeddings
    assert len(plan.bindings) == len(own) - (1 if tied else 0)
    assert any(f"Of this {wrapper} checkpoint the text model is taken" in w for w in plan.rope.warnings)


@pytest.mark.parametrize(("wrapper", "family"), WRAPPED)
def test_its_onnx_model_computes_what_the_whole_does_of_text(wrapper, family, yarnconv, tmp_path):
    from tests.support.onnx_runtime import OnnxModel

    directory, model = wrapped(tmp_path / "model", wrapper, family)
    code, stdout, stderr = yarnconv("onnx", directory, "-o", tmp_path / "out")
    assert code == 0, stderr
    assert "text model" in stdout + stderr
    tokens = sample_tokens(512, 200)
    with torch.no_grad():
        wanted = model.eval()(input_ids=torch.tensor([tokens])).logits[0].numpy()
    found = OnnxModel(tmp_path / "out").run(tokens, capacity=256)
    assert relative_error(found, wanted) <= 1e-4
    assert yarnconv("check", tmp_path / "out", "--reference", directory)[0] == 0


@pytest.mark.parametrize("target", ["gguf", "onnx"])
def test_a_wrapper_that_transformers_does_not_know(target, checkpoints, check, yarnconv, tmp_path):
    """Kimi K2.5, whose class is remote code: its text model is DeepSeek-V3's, under names of its own."""
    text = checkpoints("deepseek_v3", n_group=1, topk_group=1)
    tensors = load_file(text / "model.safetensors")
    directory = shutil.copytree(text, tmp_path / "model")
    seeing = {"vision_tower.patch_embed.weight": np.zeros((4, 4), np.float32)}
    tensors = seeing | {f"language_model.{name}": values for name, values in tensors.items()}
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    config = json.loads((text / "config.json").read_text())
    outer = {
        "model_type": "kimi_k25",
        "architectures": ["KimiK25ForConditionalGeneration"],
        "auto_map": {"AutoConfig": "configuration_kimi_k25.KimiK25Config"},
        "text_config": {**config, "model_type": "kimi_k2"},
        "vision_config": {"hidden_size": 64},
    }
    (directory / "config.json").write_text(json.dumps(outer))
    out = tmp_path / ("out.gguf" if target == "gguf" else "out")
    code, stdout, stderr = yarnconv(target, directory, "--factor", "4", "-o", out)
    assert code == 0, stderr
    assert "Of this kimi_k25 checkpoint the text model is taken" in " ".join(stdout.split() + stderr.split())
    for reference in (directory, text):
        code, report, stderr = check(out, reference, "--factor", "4")
        assert (code, set(report["verdicts"].values())) == (0, {"holds"}), stderr


def test_a_checkpoint_directory_of_the_text_alone_is_not_written(yarnconv, tmp_path):
    directory, _ = wrapped(tmp_path / "model", "gemma3", "gemma3_text")
    code, _, stderr = yarnconv("hf", directory, "--factor", "4", "-o", tmp_path / "out")
    assert code == 3
    assert "text_config" in stderr
    assert not (tmp_path / "out").exists()


def test_two_tensors_that_stand_for_one(tmp_path):
    directory, _ = wrapped(tmp_path / "model", "gemma3", "gemma3_text")
    tensors = load_file(directory / "model.safetensors")
    tensors["model.norm.weight"] = np.zeros(256, dtype=np.float32)
    save_file(tensors, directory / "model.safetensors")
    with open_checkpoint(directory) as checkpoint, pytest.raises(BadInput, match=r"stands for model\.norm"):
        plan_conversion(checkpoint, RopeRequest())


def test_a_wrapper_of_something_unknown_is_refused():
    config = {"model_type": "gemma3", "text_config": {"model_type": "gemma9"}}
    with pytest.raises(Exception, match="unknown architecture: model_type 'gemma9'"):
        find_family(config)
    assert json.dumps(config)


def test_the_ends_of_the_whole_reach_the_client(yarnconv, tmp_path):
    """As Gemma 3 is published: its end tokens stand beside text_config, not in it."""
    directory, _ = wrapped(tmp_path / "model", "gemma3", "gemma3_text")
    config = json.loads((directory / "config.json").read_text())
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        config["text_config"].pop(key, None)
    config |= {"eos_token_id": [1, 106], "bos_token_id": 2}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "generation_config.json").unlink(missing_ok=True)
    assert yarnconv("onnx", directory, "-o", tmp_path / "out")[0] == 0
    told = json.loads((tmp_path / "out" / "genai_config.json").read_text())["model"]
    assert (told["eos_token_id"], told["bos_token_id"]) == ([1, 106], 2)
