"""A plain conversion against llama.cpp's own converter, byte for byte, with real vocabularies."""

import pytest
import torch

from tests.support.llama_converter import LlamaConverter
from tests.support.models import edit_config, make_checkpoint
from tests.support.selection import product, slow
from tests.support.tokenizer_files import rebuild_tokenizer, write_sentencepiece
from yarnconv.targets.gguf.reader import open_gguf

VOCABULARIES = {"llama": "llama-bpe", "mistral": "llama-bpe", "qwen2": "qwen2", "qwen3": "qwen2"}
SIZES = {"llama-bpe": 128256, "qwen2": 151936}


def facts(path):
    """(metadata: key -> (type and value as they are stored, value), tensors: name -> (type, shape in ggml's
    order, bytes)) of a GGUF. Bytes are compared, so that our own reader will do, and no values of what is as
    long as a vocabulary: the gguf package takes half a minute for one.
    """
    with open_gguf(path) as file:
        metadata = {
            key: (stored, file.value(key) if len(stored) < 2**16 else None)
            for key, stored in file.packed.items()
        }
        tensors = {
            name: (tensor.tensor_type, tensor.shape[::-1], tensor.packed(slice(None)).tobytes())
            for name, tensor in file.tensors.items()
        }
    return metadata, tensors


@pytest.fixture(scope="module")
def converter(llama_cpp_source):
    with LlamaConverter(llama_cpp_source, tokenizers=True) as one:
        yield one


@pytest.fixture(scope="module")
def converter_without_tokenizers(llama_cpp_source):
    with LlamaConverter(llama_cpp_source) as one:
        yield one


def convert_both(directory, outtype, converter, yarnconv, tmp_path):
    theirs, ours = tmp_path / "theirs.gguf", tmp_path / "ours.gguf"
    converter.convert(directory, theirs, outtype)
    code, _, stderr = yarnconv("gguf", directory, "--outtype", outtype, "-o", ours)
    assert code == 0, stderr
    return facts(theirs), facts(ours)


def assert_equal(theirs, ours):
    def compared(metadata):
        return {
            key: value for key, value in metadata.items() if not key.startswith(("general.", "yarnconv."))
        }

    one, other = compared(ours[0]), compared(theirs[0])
    # not as one comparison: a vocabulary's difference is minutes of text
    assert {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)} == set()
    for key in ("general.architecture", "general.type", "general.file_type", "general.size_label"):
        assert ours[0][key] == theirs[0][key]
    assert list(ours[1]) == list(theirs[1])
    for name, tensor in theirs[1].items():
        assert ours[1][name] == tensor, name


@pytest.mark.parametrize(
    ("outtype", "dtype"),
    list(product(("f32", "f16", "bf16", "q8_0"), (torch.bfloat16, torch.float32), meet=[])),
)
def test_every_type(outtype, dtype, converter, yarnconv, tmp_path):
    directory = make_checkpoint(tmp_path / "model", "llama", dtype=dtype, shard="1MB")
    edit_config(directory, vocab_size=512)
    (directory / "tokenizer.json").unlink()
    write_sentencepiece(directory, 400)
    assert_equal(*convert_both(directory, outtype, converter, yarnconv, tmp_path))


@pytest.mark.parametrize(
    "family",
    ["qwen3", *slow(*sorted(VOCABULARIES.keys() - {"qwen3"}))],
)
def test_every_family_with_a_real_vocabulary(family, converter, llama_cpp_source, yarnconv, tmp_path):
    pre = VOCABULARIES[family]
    directory = make_checkpoint(
        tmp_path / "model",
        family,
        dtype=torch.bfloat16,
        tokenizer=False,
        vocab_size=SIZES[pre],
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        head_dim=16,
    )
    rebuild_tokenizer(
        llama_cpp_source / "models" / f"ggml-vocab-{pre}.gguf",
        directory,
        pre=pre,
        bos_template=pre == "llama-bpe",
    )
    assert_equal(*convert_both(directory, "q8_0", converter, yarnconv, tmp_path))


# What a mixture's config needs for their converter beside its tiny one: DeepSeek's function of scores, which
# it reads, and queries by a latent vector, without which llama.cpp does not load theirs of few layers.
MIXTURES = {
    "mixtral": {},
    "qwen2_moe": {},
    "qwen3_moe": {},
    "glm4_moe": {"num_nextn_predict_layers": 0},
    "deepseek_v2": {"q_lora_rank": 96, "scoring_func": "softmax"},
    "deepseek_v3": {"scoring_func": "sigmoid"},
    "gpt_oss": {},
}
# Keys that one of the two writes alone: theirs for the want of a tokenizer, or with the value that llama.cpp
# takes anyway; ours that the shares are not normalised.
WITHOUT_TOKENIZER = {"qwen2moe.vocab_size", "qwen3moe.vocab_size", "glm4moe.vocab_size", "gpt-oss.vocab_size"}
USUAL = {"glm4moe.expert_group_count": 1, "glm4moe.expert_group_used_count": 1}
USUAL |= {"glm4moe.nextn_predict_layers": 0, "deepseek2.expert_weights_norm": False}


@pytest.mark.parametrize("outtype", [pytest.param("f32", marks=pytest.mark.slow), "bf16", "q8_0"])
@pytest.mark.parametrize("family", MIXTURES)
def test_mixtures_and_latent_attention(family, outtype, converter_without_tokenizers, yarnconv, tmp_path):
    dtype = torch.bfloat16 if outtype == "bf16" else torch.float32
    directory = make_checkpoint(tmp_path / "model", family, dtype=dtype, **MIXTURES[family])
    edit_config(directory, **MIXTURES[family])
    theirs, ours = convert_both(directory, outtype, converter_without_tokenizers, yarnconv, tmp_path)
    # Mixtral's experts call their matrices otherwise, which they stack in another order
    order = sorted if family == "mixtral" else list
    assert order(ours[1]) == order(theirs[1])
    for name, (kind, shape, data) in theirs[1].items():
        shape = shape[:1] if name.endswith("ffn_gate_inp_shexp.weight") else shape  # [width, 1]
        assert ours[1][name] == (kind, shape, data), name
    for key in ("general.architecture", "general.file_type", "general.size_label"):
        assert ours[0][key] == theirs[0][key]
    own = ("general.", "yarnconv.", "tokenizer.")
    keys = {key for key in ours[0].keys() | theirs[0].keys() if not key.startswith(own)}
    differ = {key for key in keys if ours[0].get(key) != theirs[0].get(key)} - WITHOUT_TOKENIZER
    assert {key: (ours[0].get(key) or theirs[0].get(key))[1] for key in differ}.items() <= USUAL.items()


def test_their_yarn_keys_lose_a_temperature_that_ours_keep(converter, yarnconv, tmp_path):
    """The peer's fault this tool exists for: `attention_factor` goes to a key nobody reads."""
    directory = make_checkpoint(tmp_path / "model", "llama")
    (directory / "tokenizer.json").unlink()
    write_sentencepiece(directory, 400)
    edit_config(
        directory,
        rope_parameters={
            "rope_type": "yarn",
            "factor": 4.0,
            "attention_factor": 1.0,
            "original_max_position_embeddings": 256,
            "rope_theta": 10000.0,
        },
    )
    theirs, ours = convert_both(directory, "f32", converter, yarnconv, tmp_path)
    assert "llama.rope.scaling.attn_factor" not in theirs[0]
    assert ours[0]["llama.rope.scaling.attn_factor"][1] == pytest.approx(1 / 1.1386294361119891)
    assert theirs[0]["llama.context_length"][1] == 256
    assert ours[0]["llama.context_length"][1] == 1024
