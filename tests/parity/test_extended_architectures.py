"""GGUFs of architectures outside our families: converted plain by llama.cpp's own converter, extended by
their metadata, run in llama.cpp, and held against transformers with the same scaling.

Not here: DeepSeek with a YaRN of its own that has no mscales (the converter's file computes something else
than transformers already), and what the converter does not read from transformers 5 (gpt-neox, hunyuan-moe).
"""

import json

import numpy as np
import pytest

from tests.support.architectures import TINY, VOCABULARY, YARN, make_tiny, reference
from tests.support.models import ORIGINAL_CONTEXT, sample_tokens

LENGTH = 600
# Of each position's logits, of which the worst counts; llama.cpp multiplies angles up in float32, hence the
# part that grows. Measured over all cases here: right at most 4.8e-5; with another method, or without the
# temperature, the median is 3.7e-2 (OLMo 3, where one layer of four is scaled) to 0.74.
TOLERANCE = 1e-4 + 3e-8 * np.arange(LENGTH)
WRONG = 1e-2
OWN_FACTOR = {"mistral3": 2.0}  # what the file carries already
NO_TEMPERATURE = ("--method", "ntk-by-parts")
# the norm behind RoPE takes the temperature off, or the pair of mscales is none
TEMPERATURE_IS_NOTHING = {"hunyuan-dense", "llama4", "mistral3"}


def tokens():
    return sample_tokens(VOCABULARY, LENGTH)


def errors(found, wanted):
    """float[positions]: relative, of each position's logits."""
    return np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)


@pytest.fixture(scope="module")
def converted(llama_cpp_source, tmp_path_factory):
    """(architecture, RoPE parameters merged in) -> (checkpoint, its GGUF), made once."""
    from tests.support.llama_converter import LlamaConverter

    root, made = tmp_path_factory.mktemp("architectures"), {}

    def get(architecture, **rope):
        key = architecture, json.dumps(rope)
        if key not in made:
            directory = make_tiny(root / str(len(made)), TINY[architecture], rope or None)
            made[key] = directory, converter.convert(directory, directory / "plain.gguf")
        return made[key]

    with LlamaConverter(llama_cpp_source) as converter:
        yield get


@pytest.fixture
def logits_of(yarnconv, llama_cpp, tmp_path):
    """llama.cpp's of a GGUF that was extended."""

    def run(path, *options):
        out = tmp_path / "extended.gguf"
        code, _, stderr = yarnconv("gguf", path, *options, "-o", out)
        assert code == 0, stderr
        return llama_cpp.run(out, tokens())

    return run


def scaled(architecture, method, factor=4.0):
    """(options, transformers' words) of a method on top of what a tiny model carries."""
    total = factor * OWN_FACTOR.get(architecture, 1.0)
    rotary = 32 if "partial_rotary_factor" in TINY[architecture].rope else 64
    original = ORIGINAL_CONTEXT / OWN_FACTOR.get(architecture, 1.0)
    yarn = {**YARN, "factor": total, "original_max_position_embeddings": int(original)}
    theta = 10000.0 * total ** (rotary / (rotary - 2))
    method_options = ("--method", method, "--factor", str(factor))
    return {
        "yarn": (("--factor", str(factor)), yarn),
        "linear": (method_options, {"rope_type": "linear", "factor": total}),
        "ntk": (method_options, {"rope_type": "default", "rope_theta": theta}),
        "ntk-by-parts": (method_options, {**yarn, "attention_factor": 1.0}),
        "attention factor": (
            ("--factor", str(factor), "--attention-factor", "1.2"),
            {**yarn, "attention_factor": 1.2},
        ),
        "betas": (
            ("--factor", str(factor), "--beta-fast", "16", "--beta-slow", "2"),
            {**yarn, "beta_fast": 16.0, "beta_slow": 2.0},
        ),
        "not truncated": (("--factor", str(factor), "--no-truncate"), {**yarn, "truncate": False}),
    }[method]


def assert_right(found, wanted):
    error = errors(found, wanted)
    assert (error <= TOLERANCE).all(), f"up to {error.max():.2e} at position {error.argmax()}"


@pytest.mark.parametrize("architecture", TINY)
def test_yarn(architecture, converted, logits_of):
    """At positions inside and beyond the original context; and the same without a temperature is far away."""
    directory, plain = converted(architecture)
    options, rope = scaled(architecture, "yarn")
    wanted = reference(directory, TINY[architecture], rope, tokens())
    assert_right(logits_of(plain, *options), wanted)
    # gemma3 cannot be without one on some of its layers
    linear = architecture in {*TEMPERATURE_IS_NOTHING, "gemma3"}
    other = ("--method", "linear") if linear else NO_TEMPERATURE
    wrong = errors(logits_of(plain, *options, *other), wanted)
    assert np.median(wrong[:ORIGINAL_CONTEXT]) > WRONG
    assert np.median(wrong[ORIGINAL_CONTEXT:]) > WRONG


@pytest.mark.parametrize("architecture", sorted(TEMPERATURE_IS_NOTHING))
def test_where_the_temperature_is_nothing(architecture, converted, logits_of):
    """As in transformers: Hunyuan and Llama 4 normalise behind RoPE, Ministral's pair of mscales gives 1."""
    directory, plain = converted(architecture)
    _, rope = scaled(architecture, "yarn")
    wanted = reference(directory, TINY[architecture], rope, tokens())
    assert_right(logits_of(plain, "--factor", "4", *NO_TEMPERATURE), wanted)


METHODS = ("linear", "ntk", "ntk-by-parts", "attention factor")
# what is special in an architecture; everything else of the product is slow
SPECIAL = [
    *((f"deepseek{n}", method) for n in (2, 32) for method in METHODS),
    *(("mistral3", method) for method in ("linear", "ntk", "attention factor", "betas", "not truncated")),
    *(("gpt-oss", method) for method in ("linear", "ntk")),
    *(("gemma3", method) for method in ("linear", "ntk")),
    *((architecture, "betas") for architecture in ("apertus", "arcee", "granite", "llama4")),
    ("olmo2", "linear"),
]
REFUSED = {("gemma3", "ntk-by-parts"), ("gemma3", "attention factor"), ("olmo2", "ntk")}
ALL = {(architecture, method) for architecture in TINY for method in METHODS}
OTHERS = sorted(ALL - set(SPECIAL) - REFUSED)


@pytest.mark.parametrize(
    ("architecture", "method"),
    [*SPECIAL, *(pytest.param(*case, marks=pytest.mark.slow) for case in OTHERS)],
)
def test_other_methods(architecture, method, converted, logits_of):
    directory, plain = converted(architecture)
    options, rope = scaled(architecture, method)
    wanted = reference(directory, TINY[architecture], rope, tokens())
    assert_right(logits_of(plain, *options), wanted)


@pytest.mark.parametrize("mscale", [1.0, 0.707])
def test_deepseek_with_a_yarn_of_its_own(mscale, converted, logits_of):
    """Extended again it keeps its pair of mscales: A is 1 and the softmax scale follows the factor."""
    own = {**YARN, "factor": 2.0, "original_max_position_embeddings": 128}
    own |= {"mscale": mscale, "mscale_all_dim": mscale}
    directory, plain = converted("deepseek2", **own)
    found = logits_of(plain, "--factor", "4")
    assert_right(found, reference(directory, TINY["deepseek2"], {**own, "factor": 8.0}, tokens()))
    for wrong in ({**own, "factor": 8.0, "mscale_all_dim": 0.0}, {**own, "factor": 7.0}):
        other = reference(directory, TINY["deepseek2"], wrong, tokens())
        assert np.median(errors(found, other)) > WRONG
