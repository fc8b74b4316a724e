"""The attention temperature of multi-head latent attention: llama.cpp puts it on more dimensions than
transformers, and two keys undo that, whatever pair of mscales a DeepSeek config holds.
"""

import shutil

import pytest

from tests.parity.test_dense_gguf import YARN
from tests.parity.test_experts_gguf import FAR_AWAY, tokens, wanted_of
from tests.parity.test_llama_cpp import F32_TOLERANCE
from tests.support.llama_converter import LlamaConverter
from tests.support.models import ORIGINAL_CONTEXT, edit_config, make_checkpoint, relative_error

# what a config says beside factor and original context, and whether llama.cpp's converter says the same. Ours
# measured 4.1e-6 .. 1.2e-5; theirs the same where it is right, 0.17 .. 0.83 where not.
TEMPERATURES = {
    "no mscales": ({}, False),
    "equal": ({"mscale": 0.707, "mscale_all_dim": 0.707}, True),
    "both 1": ({"mscale": 1.0, "mscale_all_dim": 1.0}, True),
    "mscale larger": ({"mscale": 1.0, "mscale_all_dim": 0.5}, False),
    "mscale smaller": ({"mscale": 0.5, "mscale_all_dim": 1.0}, False),
    "a lone mscale": ({"mscale": 0.707}, False),
    "a lone mscale_all_dim": ({"mscale_all_dim": 0.707}, False),
    "no temperature": ({"attention_factor": 1.0}, False),
    "a temperature of its own": ({"attention_factor": 1.2, "mscale_all_dim": 1.0}, False),
}
FAMILIES = {
    "deepseek_v2": {"q_lora_rank": 96},  # without, their file of two layers is none that llama.cpp loads
    "deepseek_v3": {},
}
SCORES = {"deepseek_v2": "softmax", "deepseek_v3": "sigmoid"}  # which their converter reads


@pytest.fixture(scope="module")
def theirs(llama_cpp_source):
    with LlamaConverter(llama_cpp_source) as converter:
        yield converter


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """(family, what its RoPE parameters hold besides) -> a checkpoint scaled by YaRN."""
    root, made = tmp_path_factory.mktemp("models"), {}

    def get(family, extra):
        if family not in made:
            made[family] = make_checkpoint(root / family, family, **FAMILIES[family])
        directory = root / f"{family}-{len(list(root.iterdir()))}"
        shutil.copytree(made[family], directory)
        rope = {**YARN, **extra, "rope_theta": 10000.0}
        edit_config(
            directory, rope_parameters=rope, max_position_embeddings=1024, scoring_func=SCORES[family]
        )
        return directory

    return get


@pytest.mark.parametrize("case", TEMPERATURES)
@pytest.mark.parametrize("family", [pytest.param("deepseek_v2", marks=pytest.mark.slow), "deepseek_v3"])
def test_of_the_config(family, case, model, theirs, yarnconv, llama_cpp, tmp_path):
    extra, same = TEMPERATURES[case]
    directory, ours = model(family, extra), tmp_path / "ours.gguf"
    code, _, stderr = yarnconv("gguf", directory, "-o", ours)
    assert code == 0, stderr
    wanted = wanted_of(directory)
    found = {
        name: relative_error(llama_cpp.run(path, tokens(), first=ORIGINAL_CONTEXT), wanted)
        for name, path in (("ours", ours), ("theirs", theirs.convert(directory, tmp_path / "theirs.gguf")))
    }
    assert found["ours"] <= F32_TOLERANCE
    assert (found["theirs"] <= F32_TOLERANCE) if same else (found["theirs"] > FAR_AWAY)


OPTIONS = {
    "a temperature": (["--attention-factor", "1.3"], {"attention_factor": 1.3}),
    "by parts": (["--method", "ntk-by-parts"], {"attention_factor": 1.0}),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_of_options(case, checkpoints, yarnconv, llama_cpp, tmp_path):
    options, spelled = OPTIONS[case]
    directory, path = checkpoints("deepseek_v3"), tmp_path / "out.gguf"
    code, _, stderr = yarnconv("gguf", directory, "--factor", "4", *options, "-o", path)
    assert code == 0, stderr
    found = llama_cpp.run(path, tokens(), first=ORIGINAL_CONTEXT)
    assert relative_error(found, wanted_of(directory, {**YARN, **spelled})) <= F32_TOLERANCE


@pytest.mark.parametrize("mscales", [{}, {"mscale": 0.707, "mscale_all_dim": 0.707}])
def test_a_larger_factor_keeps_the_configs_mscales(mscales, model, yarnconv, llama_cpp, tmp_path):
    directory, path = model("deepseek_v3", mscales), tmp_path / "out.gguf"
    code, _, stderr = yarnconv("gguf", directory, "--factor", "8", "-o", path)
    assert code == 0, stderr
    found = llama_cpp.run(path, tokens(), first=ORIGINAL_CONTEXT)
    wanted = wanted_of(directory, {**YARN, "factor": 8.0, **mscales})
    assert relative_error(found, wanted) <= F32_TOLERANCE
