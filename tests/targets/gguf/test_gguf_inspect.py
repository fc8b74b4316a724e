"""`yarnconv inspect` on GGUFs that others made: what they carry, and which mistake they have."""

from dataclasses import replace

import numpy as np
import pytest

from tests.support.architectures import TINY, make_tiny
from tests.support.gguf_editing import load
from tests.support.models import ORIGINAL_CONTEXT, edit_config, make_checkpoint

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL_CONTEXT}
EXTENDED = 4 * ORIGINAL_CONTEXT


@pytest.fixture(scope="module")
def converter(llama_cpp_source):
    from tests.support.llama_converter import LlamaConverter

    with LlamaConverter(llama_cpp_source) as running:
        yield running


# config keys -> what its GGUF by llama.cpp's converter says alone, and against the checkpoint
BY_THE_CONVERTER = {
    "right": ({}, [], []),
    "attention_factor 1": ({"attention_factor": 1.0}, [], ["attention-factor-dropped"]),
    "attention_factor 1.3": ({"attention_factor": 1.3}, ["attention-factor-dropped"], None),
    "betas": ({"beta_fast": 16.0, "beta_slow": 2.0}, ["betas-ignored"], None),
    "not truncated": ({"truncate": False}, [], ["truncate-ignored"]),
    "unequal mscales": ({"mscale": 1.0, "mscale_all_dim": 0.5}, [], ["attention-factor-dropped"]),
    "dynamic": ({"rope_type": "dynamic"}, [], ["plain-rope"]),
}


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("case", BY_THE_CONVERTER)
def test_what_llama_cpps_converter_drops(case, family, converter, inspect, tmp_path):
    """From a checkpoint that asks for it to a file that does not have it, by another's hand."""
    changes, alone, against = BY_THE_CONVERTER[case]
    context = ORIGINAL_CONTEXT if case == "dynamic" else EXTENDED
    rope = {**YARN, "rope_theta": 10000.0, **changes}
    directory = make_checkpoint(
        tmp_path / "model", family, rope_parameters=rope, max_position_embeddings=context
    )
    path = converter.convert(directory, tmp_path / "file.gguf")
    code, document, severe = inspect(path)
    assert (code, severe) == (1 if alone else 0, alone)
    assert document["method"] == ("none" if case == "dynamic" else "yarn")
    code, _, severe = inspect(path, "--reference", directory)
    expected = alone if against is None else against
    assert (code, severe) == (1 if expected else 0, expected)


def test_a_config_that_was_not_extended(converter, inspect, tmp_path):
    """The recipe that leaves max_position_embeddings as it is: the server caps requests there."""
    directory = make_checkpoint(tmp_path / "model", "qwen3", rope_parameters={**YARN, "rope_theta": 1e4})
    edit_config(directory, max_position_embeddings=ORIGINAL_CONTEXT)
    code, document, severe = inspect(converter.convert(directory, tmp_path / "file.gguf"))
    assert (code, severe, document["method"]) == (0, ["static-inside"], "yarn")
    code, _, _ = inspect(tmp_path / "file.gguf", "--fail-on", "warning")
    assert code == 1
    code, _, _ = inspect(tmp_path / "file.gguf", "--fail-on", "never")
    assert code == 0


def test_deepseek_without_its_softmax_factor(converter, inspect, tmp_path):
    """A YaRN without mscales becomes a file in which llama.cpp puts its temperature on the whole head."""
    for keys, wanted in (({}, ["softmax-factor-missing"]), ({"mscale": 1.0, "mscale_all_dim": 1.0}, [])):
        name = "with" if keys else "without"
        directory = make_tiny(tmp_path / name, TINY["deepseek2"], {**YARN, **keys})
        path = converter.convert(directory, tmp_path / f"{name}.gguf")
        file = load(path)
        file.keys.uint32("deepseek2.context_length", EXTENDED)
        code, document, severe = inspect(file.write(path))
        assert (code, severe, document["method"]) == (1 if wanted else 0, wanted, "yarn")
        assert (document["softmax_scale_multiplier"] != 1.0) is True


EDITS = {
    "a key of another architecture": (
        lambda keys: keys.float32("qwen2.rope.scaling.factor", 2.0),
        "keys-never-read",
    ),
    "a key that nobody reads": (
        lambda keys: keys.float32("llama.rope.scaling.strange", 2.0),
        "keys-never-read",
    ),
    "betas": (lambda keys: keys.float32("llama.rope.scaling.yarn_beta_fast", 8.0), "betas-ignored"),
    "the whole temperature in the key": (
        lambda keys: keys.float32("llama.rope.scaling.attn_factor", 1 + 0.1 * np.log(4.0)),
        "temperature-twice",
    ),
    "no temperature": (
        lambda keys: keys.float32("llama.rope.scaling.attn_factor", 1 / (1 + 0.1 * np.log(4.0))),
        "temperature-missing",
    ),
    "the extended context as the original": (
        lambda keys: keys.packed.pop("llama.rope.scaling.original_context_length"),
        "original-from-extended",
    ),
    "another context": (lambda keys: keys.uint32("llama.context_length", 4096), "context-length"),
    "inside the original": (lambda keys: keys.uint32("llama.context_length", 128), "static-inside"),
}


@pytest.mark.parametrize("case", EDITS)
def test_mistakes_by_hand(case, artefacts, inspect, tmp_path):
    edit, wanted = EDITS[case]
    file = load(artefacts("llama", "f32", "--factor", "4"))
    file.drop("yarnconv.")
    edit(file.keys)
    _, _, severe = inspect(file.write(tmp_path / "edited.gguf"))
    assert severe == [wanted]


AGAINST = {
    "theta": (lambda keys: keys.float32("llama.rope.freq_base", 20000.0), "wrong-theta"),
    "factor": (lambda keys: keys.float32("llama.rope.scaling.factor", 3.9), "wrong-factor"),
    "linear": (lambda keys: keys.string("llama.rope.scaling.type", "linear"), "linear"),
    "plain": (lambda keys: keys.string("llama.rope.scaling.type", "none"), "plain-rope"),
    "original": (
        lambda keys: keys.uint32("llama.rope.scaling.original_context_length", 1024),
        "original-from-extended",
    ),
    "another original": (
        lambda keys: keys.uint32("llama.rope.scaling.original_context_length", 512),
        "wrong-original-context",
    ),
}


@pytest.mark.parametrize("case", AGAINST)
def test_mistakes_that_a_reference_shows(case, artefacts, checkpoints, inspect, tmp_path):
    edit, wanted = AGAINST[case]
    file = load(artefacts("llama", "f32", "--factor", "4"))
    file.drop("yarnconv.")
    edit(file.keys)
    path = file.write(tmp_path / "edited.gguf")
    code, _, severe = inspect(path, "--reference", checkpoints("llama"), "--factor", "4")
    assert (code, severe[0]) == (1, wanted)


def test_divisors_that_have_no_name(artefacts, inspect, tmp_path):
    """Not refused: shown as numbers, and said to be unknown."""
    file = load(artefacts("llama", "f32", "--factor", "4", "--no-truncate"))
    file.drop("yarnconv.")
    code, document, severe = inspect(file.write(tmp_path / "named.gguf"))
    assert (code, severe, document["carried"][0]["buckets"][0]["truncate"]) == (0, [], False)
    divisors = file.rows["rope_freqs.weight"].view(np.float32)
    divisors[0, 5] *= 1.5
    code, document, severe = inspect(file.write(tmp_path / "unnamed.gguf"))
    assert (code, severe, document["method"]) == (0, ["frequencies-unknown"], "unknown")
    assert len(document["inv_freq"]) == 32
    assert "It cannot be extended" in document["notes"][0]


def test_longrope_without_its_tensors(converter, inspect, tmp_path):
    """What llama.cpp's converter makes of a Llama: the type, and nothing to turn by."""
    pairs = 32
    rope = {
        "rope_type": "longrope",
        "original_max_position_embeddings": ORIGINAL_CONTEXT,
        "short_factor": [1.0] * pairs,
        "long_factor": np.linspace(1.0, 4.0, pairs).tolist(),
        "rope_theta": 10000.0,
    }
    directory = make_checkpoint(
        tmp_path / "model", "llama", rope_parameters=rope, max_position_embeddings=EXTENDED
    )
    code, document, severe = inspect(converter.convert(directory, tmp_path / "file.gguf"))
    assert (code, document["method"], severe) == (1, "none", ["plain-rope"])


def test_longrope_is_shown_with_both_sets(artefacts, inspect, tmp_path):
    file = load(artefacts("llama", "f32", "--factor", "4", "--no-truncate"))
    file.drop("yarnconv.")
    divisors, tensor = file.rows.pop("rope_freqs.weight"), file.tensors.pop("rope_freqs.weight")
    for name, rows in (("long", divisors), ("short", np.ones_like(divisors.view(np.float32)).view(np.uint8))):
        file.rows[f"rope_factors_{name}.weight"] = rows
        file.tensors[f"rope_factors_{name}.weight"] = replace(tensor, name=f"rope_factors_{name}.weight")
    file.keys.string("llama.rope.scaling.type", "longrope")
    file.keys.uint32("llama.rope.scaling.original_context_length", ORIGINAL_CONTEXT)
    _, _, severe = inspect(file.write(tmp_path / "file.gguf"))
    assert severe == ["attention-factor-wrong"]  # YaRN's is not longrope's
    file.keys.float32("llama.rope.scaling.attn_factor", np.sqrt(1 + np.log(4.0) / np.log(ORIGINAL_CONTEXT)))
    code, document, severe = inspect(file.write(tmp_path / "file.gguf"))
    assert (code, document["method"], severe) == (0, "longrope", [])
    short, long = document["carried"][0]["buckets"]
    wanted = divisors.view(np.float32).reshape(-1)
    np.testing.assert_allclose(np.divide(short["inv_freq"], long["inv_freq"]), wanted, rtol=1e-6)


def test_an_architecture_without_rope_and_one_that_nobody_knows(artefacts, inspect, tmp_path):
    file = load(artefacts("llama", "f32"))
    for name, wanted in (("mamba", []), ("novel-architecture", ["unknown-architecture"])):
        file.keys.string("general.architecture", name)
        for key in list(file.keys.packed):
            if key.startswith("llama."):
                file.keys.packed[f"{name}.{key.removeprefix('llama.')}"] = file.keys.packed[key]
        _, document, severe = inspect(file.write(tmp_path / f"{name}.gguf"))
        assert severe == wanted
    assert document["method"] == "none"


def test_layers_with_a_window_of_their_own(converter, inspect, tmp_path):
    """Gemma 3's turn by another base, and are shown apart."""
    directory = make_tiny(tmp_path / "model", TINY["gemma3"], None)
    _, document, severe = inspect(converter.convert(directory, tmp_path / "file.gguf"))
    assert severe == []
    assert [group["layers"] for group in document["carried"]] == [
        "layers that see the whole context",
        "layers with a sliding window",
    ]


def test_the_reference_alone_takes_rope_options(artefacts, checkpoints, yarnconv):
    code, _, stderr = yarnconv("inspect", artefacts("llama", "f32"), "--factor", "4")
    assert (code, "Add --reference" in stderr) == (2, True)
    code, stdout, _ = yarnconv(
        "inspect", artefacts("llama", "f32", "--factor", "4"), "--reference", checkpoints("llama")
    )
    assert (code, "the reference" in stdout) == (0, True)  # by what the artefact records
