"""The table of what llama.cpp's architectures read, against llama.cpp's own source."""

from dataclasses import replace

import pytest

from tests.support.rope_source import RopeSource, wrong
from yarnconv.errors import Inexpressible
from yarnconv.targets.gguf.rope import LONGROPE_TENSORS
from yarnconv.targets.gguf.rope_keys import ROPE_KEYS, WITHOUT_ROPE, rope_keys


@pytest.fixture(scope="module")
def source(llama_cpp_source):
    return RopeSource(llama_cpp_source)


@pytest.mark.parametrize("name", ROPE_KEYS)
def test_an_entry_is_what_the_source_says(name, source):
    assert wrong(source, ROPE_KEYS[name]) == []


DOCTORED = {
    "a tensor that is not loaded": ("qwen2", {"rope_freqs": True}),
    "a tensor that is loaded": ("arcee", {"rope_freqs": False}),
    "a tensor that is handed on and not loaded": ("hunyuan-moe", {"rope_freqs": True}),
    "betas that are not read": ("llama", {"betas": True}),
    "betas that are read": ("mistral3", {"betas": False}),
    "another beta": ("grok", {"beta_fast": 32.0}),
    "a multiplier that is not read": ("glm4", {"log_multiplier": "mistral3"}),
    "another's multiplier": ("mistral4", {"log_multiplier": "deepseek2"}),
    "one that is not divided": ("mistral3", {"log_multiplier": "deepseek32"}),
    "windows that are unknown": ("gemma2", {"sliding": None}),
    "windows that are not": ("qwen3", {"sliding": "alike"}),
    "windows that keep their own": ("gpt-oss", {"sliding": "tempered"}),
    "windows that are tempered": ("gemma3", {"sliding": "apart"}),
    "a base of windows that is not read": ("gemma2", {"window_base": False}),
    "a base of windows that is read and not used": ("exaone4", {"window_base": True}),
    "windows that are untempered": ("olmo2", {"sliding": "tempered"}),
    "a switch that is none": ("granitemoe", {"finetuned_is_switch": True}),
    "a switch": ("granitehybrid", {"finetuned_is_switch": False}),
    "an extrapolation factor": ("grok", {"ext_factor": False}),
    "an alpha": ("hunyuan-dense", {"alpha": False}),
    "a temperature by position": ("mistral3", {"counts_from_original": False}),
    "layers without RoPE": ("smollm3", {"remark": None}),
}


@pytest.mark.parametrize("case", DOCTORED)
def test_a_wrong_entry_is_noticed(case, source):
    name, changes = DOCTORED[case]
    assert wrong(source, replace(ROPE_KEYS[name], **changes))


CHANGED = {
    "a temperature that is not handed on": ("qwen2", "ext_factor, attn_factor,", "ext_factor, 1.0f,"),
    "another original context": ("granite", "n_ctx_orig, freq_base", "0, freq_base"),
    "a key that nobody knows": ("stablelm", "LLM_KV_ATTENTION_LAYERNORM_EPS", "LLM_KV_ROPE_SCALING_ALPHA"),
    "a temperature on the whole head": ("glm4", "1.0f / sqrtf", "attn_factor / sqrtf"),
    "no divisors": ("llama", "inp_pos, rope_factors", "inp_pos, nullptr"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_another_source_is_noticed(case, llama_cpp_source):
    name, old, new = CHANGED[case]
    text = (llama_cpp_source / f"src/models/{name}.cpp").read_text()
    assert old in text
    assert wrong(RopeSource(llama_cpp_source, **{name: text.replace(old, new)}), ROPE_KEYS[name])


def test_what_every_graph_calls_so(source):
    """The arguments' names are the context's numbers, so that names are all that is to be compared."""
    named = {
        "freq_base": "cparams.rope_freq_base",
        "freq_scale": "cparams.rope_freq_scale",
        "ext_factor": "cparams.yarn_ext_factor",
        "attn_factor": "cparams.yarn_attn_factor",
        "beta_fast": "cparams.yarn_beta_fast",
        "beta_slow": "cparams.yarn_beta_slow",
        "n_ctx_orig": "cparams.n_ctx_orig_yarn",
    }
    text = "".join(source.graph.split())
    for name, number in named.items():
        assert f"{name}({number})," in text


def test_those_without_rope(source):
    assert source.without_rope == WITHOUT_ROPE


def test_every_other_architecture_is_refused(source):
    assert set(ROPE_KEYS) <= set(source.names)
    others = set(source.names) - set(ROPE_KEYS)
    assert len(others) > 60
    for name in others:
        with pytest.raises(Inexpressible):
            rope_keys(name)
    for name in WITHOUT_ROPE:
        with pytest.raises(Inexpressible, match="has no RoPE"):
            rope_keys(name, trust_generic_keys=True)


def test_who_turns_by_longrope_whatever_the_type(source, llama_cpp_source):
    """They, and no others of the table, have files whose keys do not say longrope."""
    assert {name for name in ROPE_KEYS if source.turns_by_longrope_of_any_type(name)} == {"phi3", "phimoe"}
    names = (llama_cpp_source / "src/llama-arch.cpp").read_text()
    for tensor in LONGROPE_TENSORS:
        assert f'"{tensor.removesuffix(".weight")}"' in names
