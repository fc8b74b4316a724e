"""The families with a data file beyond Llama's kin, in the real llama.cpp against transformers, beyond the
original context; and each feature that one of them has and others do not.
"""

import shutil

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.parity.test_llama_cpp import F32_TOLERANCE, rounded_weights
from tests.support.gguf_editing import load
from tests.support.llama_converter import LlamaConverter
from tests.support.llama_runtime import dequantised_copy
from tests.support.models import (
    ORIGINAL_CONTEXT,
    edit_config,
    make_checkpoint,
    reference_logits,
    relative_error,
    sample_tokens,
)
from yarnconv.targets.gguf.file_format import TensorType
from yarnconv.targets.gguf.placement import NO_SINK
from yarnconv.verify.activations import activations_in_half

FAMILIES = ("olmo2", "olmo3", "smollm3", "ministral3", "glm4", "granite", "granitemoehybrid", "phi3")
GEMMAS = ("gemma2", "gemma3_text")
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL_CONTEXT}
ORIGINAL = {"original_max_position_embeddings": ORIGINAL_CONTEXT}
# method -> (options, the same in transformers' words, by which queries that grow count too)
METHODS = {
    "none": (["--method", "none"], {"rope_type": "default", **ORIGINAL}),
    "yarn": (["--method", "yarn", "--factor", "4", "--original-context", "256"], YARN),
    "linear": (
        ["--method", "linear", "--factor", "4", "--original-context", "256"],
        {"rope_type": "linear", "factor": 4.0, **ORIGINAL},
    ),
}
OWN_YARN = {"ministral3": {"mscale": 1.0, "mscale_all_dim": 1.0}}  # of the config's, and kept
# ggml looks gelu up in a table of float16: measured 3.9e-4 .. 4.4e-4 (Gemma 2, 2 layers) and 1.9e-3 .. 2.0e-3
# (Gemma 3, 6 layers), without the temperature 0.1 and more. Without their MLPs both lie within F32_TOLERANCE.
GELU_TOLERANCE = 6e-3
FAR_AWAY = 1000 * F32_TOLERANCE
LENGTH = 700
BEYOND = slice(ORIGINAL_CONTEXT, None)


def tokens(length=LENGTH):
    return sample_tokens(512, length)


@pytest.fixture
def convert(yarnconv, tmp_path):
    """(directory, options) -> (the GGUF, what was said)."""

    def run(directory, *options, name="out.gguf"):
        path = tmp_path / name
        code, stdout, stderr = yarnconv("gguf", directory, *options, "-o", path)
        assert code == 0, stderr
        return path, stdout

    return run


@pytest.fixture
def refused(yarnconv, tmp_path):
    """(directory, options) -> why nothing is written."""

    def run(directory, *options):
        out = tmp_path / "refused"
        out.mkdir(exist_ok=True)
        code, stdout, stderr = yarnconv("gguf", directory, *options, "-o", out)
        assert (code, stdout, list(out.iterdir())) == (3, "", []), stderr
        return " ".join(stderr.split())

    return run


def keys_of(path):
    fields = gguf.GGUFReader(path).fields
    return {field.name: field.contents() for field in fields.values() if not field.name.startswith("GGUF.")}


def without_mlps(directory):
    """What a Gemma's MLPs add is nothing."""
    weights = load_file(directory / "model.safetensors")
    for name, values in weights.items():
        if name.endswith("post_feedforward_layernorm.weight"):
            values[:] = -1.0  # of 1 + weight
    save_file(weights, directory / "model.safetensors", {"format": "pt"})


def floats(file, name):
    """A float32 tensor of an editable GGUF, to be changed in place."""
    return file.rows[name].reshape(-1).view(np.float32)


def error(llama_cpp, path, directory, rope=None, *, select=BEYOND, count=LENGTH, context=None, weights=None):
    found = llama_cpp.run(path, tokens(count), first=select.start, context=context)
    wanted = reference_logits(directory, tokens(count), rope, select=select, weights=weights)
    return relative_error(found, wanted)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", [*FAMILIES, *GEMMAS])
def test_parity(family, method, checkpoints, convert, llama_cpp):
    options, rope = METHODS[method]
    if method == "yarn":
        rope = {**rope, **OWN_YARN.get(family, {})}
    path, _ = convert(checkpoints(family), *options)
    tolerance = GELU_TOLERANCE if family in GEMMAS else F32_TOLERANCE
    assert error(llama_cpp, path, checkpoints(family), rope) <= tolerance


@pytest.mark.parametrize("family", GEMMAS)
def test_gemma_without_what_is_looked_up(family, checkpoints, convert, llama_cpp, tmp_path):
    """What is left of Gemma without its MLPs lies as close as any other family, and the rest of the distance
    is the table's.
    """
    directory = shutil.copytree(checkpoints(family), tmp_path / "model")
    without_mlps(directory)
    path, _ = convert(directory, "--factor", "4")
    assert error(llama_cpp, path, directory, YARN) <= F32_TOLERANCE
    plain = {"rope_type": "default"}
    assert error(llama_cpp, path, directory, plain) > 100 * F32_TOLERANCE
    path, _ = convert(checkpoints(family), "--factor", "4", name="whole.gguf")
    whole = error(llama_cpp, path, checkpoints(family), YARN)
    with activations_in_half():
        assert error(llama_cpp, path, checkpoints(family), YARN) < whole / 2


@pytest.mark.parametrize("family", ["granitemoehybrid", "olmo3"])
def test_eight_bits(family, checkpoints, convert, llama_cpp, tmp_path):
    """Parts of one matrix, and norms behind: the same bytes as the whole's, a float32 copy as close."""
    path, _ = convert(checkpoints(family), "--factor", "4", "--outtype", "q8_0")
    weights = rounded_weights(checkpoints(family), "q8_0")
    copied = dequantised_copy(path, tmp_path / "copy.gguf")
    assert error(llama_cpp, copied, checkpoints(family), YARN, weights=weights) <= F32_TOLERANCE


WINDOWED = {
    "mistral": {"sliding_window": 64},
    "qwen2": {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1},
    "phi3": {"sliding_window": 64},
}


@pytest.mark.parametrize("family", WINDOWED)
def test_a_narrow_window_in_an_architecture_that_reads_it(
    family, checkpoints, convert, llama_cpp, check, tmp_path
):
    directory = checkpoints(family, **WINDOWED[family])
    path, said = convert(directory, "--factor", "4")
    assert "of llama.cpp's architecture granite_swa" in said
    assert "look back over 64 positions only" in said
    keys = keys_of(path)
    assert keys["granite_swa.attention.sliding_window"] == 64
    sinks = [t for t in gguf.GGUFReader(path).tensors if "attn_sinks" in t.name]
    assert len(sinks) == 3
    assert {float(v) for t in sinks for v in t.data} == {float(np.float32(NO_SINK))}
    assert error(llama_cpp, path, directory, YARN) <= F32_TOLERANCE
    edited = load(path)
    edited.keys.uint32("granite_swa.attention.sliding_window", 4096)
    assert error(llama_cpp, edited.write(tmp_path / "wide.gguf"), directory, YARN) > FAR_AWAY


def test_check_of_a_window_and_of_sinks(checkpoints, convert, check, tmp_path):
    directory = checkpoints("mistral", **WINDOWED["mistral"])
    path, _ = convert(directory, "--factor", "4")
    code, report, stderr = check(path, directory, "--factor", "4")
    assert (code, set(report["verdicts"].values())) == (0, {"holds"}), stderr
    wide = load(path)
    wide.keys.uint32("granite_swa.attention.sliding_window", 65)
    code, report, _ = check(wide.write(tmp_path / "wide.gguf"), directory, "--factor", "4")
    assert (code, report["verdicts"]["metadata"]) == (1, "fails")
    with_sinks = load(path)
    floats(with_sinks, "blk.0.attn_sinks.weight")[:] = 1.0
    code, report, _ = check(with_sinks.write(tmp_path / "sinks.gguf"), directory, "--factor", "4")
    assert code == 1
    assert {"structure": "fails", "weights": "fails"}.items() <= report["verdicts"].items()


def test_their_mistral_without_its_window(checkpoints, convert, llama_cpp, llama_cpp_source, tmp_path):
    """llama.cpp's own converter drops it without a word."""
    directory = checkpoints("mistral", **WINDOWED["mistral"])
    with LlamaConverter(llama_cpp_source) as converter:
        theirs = converter.convert(directory, tmp_path / "theirs.gguf")
    ours, _ = convert(directory)
    assert error(llama_cpp, theirs, directory) > FAR_AWAY
    assert error(llama_cpp, ours, directory) <= F32_TOLERANCE


def test_the_converters_tensors(checkpoints, convert, llama_cpp_source, tmp_path):
    """The same names, types and bytes, in the same order, of every family that it converts as a dense one
    (it takes dense Granite 4 for a mixture of experts).
    """
    from tests.targets.gguf.test_converter_equality import facts

    with LlamaConverter(llama_cpp_source) as converter:
        for family in (*FAMILIES, *GEMMAS):
            if family == "granitemoehybrid":
                continue
            theirs = facts(converter.convert(checkpoints(family), tmp_path / "theirs.gguf"))[1]
            ours = facts(convert(checkpoints(family), "--outtype", "f32", name=f"{family}.gguf")[0])[1]
            assert list(ours) == list(theirs), family
            # it cuts Gemma 3's embedding to the entries of its tokenizer, which here has fewer
            own = {"token_embd.weight"} if family == "gemma3_text" else set()
            assert {n for n in ours if ours[n] != theirs[n]} == own, family


PAIRS = 32
SHORT, LONG = (1 + 0.02 * np.arange(PAIRS)).tolist(), (1 + 0.3 * np.arange(PAIRS)).tolist()
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": SHORT,
    "long_factor": LONG,
    "original_max_position_embeddings": ORIGINAL_CONTEXT,
}


@pytest.fixture(scope="module")
def longrope(tmp_path_factory):
    """family -> a checkpoint that is scaled by longrope."""

    def get(family, **changes):
        directory = tmp_path_factory.mktemp("longrope") / "model"
        make_checkpoint(directory, family, max_position_embeddings=1024, **changes)
        edit_config(directory, rope_parameters=LONGROPE, original_max_position_embeddings=ORIGINAL_CONTEXT)
        return directory

    return get


@pytest.mark.parametrize("family", ["phi3", "llama", "granite"])
def test_longrope_by_the_size_of_the_context(family, longrope, convert, llama_cpp):
    directory = longrope(family)
    path, said = convert(directory)
    assert "up to 256 positions (-c 256) they are the short ones" in said
    inside = slice(0, None)
    assert error(llama_cpp, path, directory, select=inside, count=200, context=200) <= F32_TOLERANCE
    assert error(llama_cpp, path, directory) <= F32_TOLERANCE
    # a short request in a large context turns by the long set: 0.03 (Granite, which mutes it) to 0.96
    assert error(llama_cpp, path, directory, select=inside, count=200, context=700) > FAR_AWAY / 10


def test_check_judges_both_sets_of_longrope(longrope, convert, check, tmp_path):
    directory = longrope("phi3")
    path, _ = convert(directory)
    code, report, stderr = check(path, directory)
    assert (code, set(report["verdicts"].values())) == (0, {"holds"}), stderr
    assert {window["bucket"] for window in report["windows"]} == {0, 1}
    for name, bucket in (("short", 0), ("long", 1)):
        file = load(path)
        floats(file, f"rope_factors_{name}.weight")[5:] *= 1.5
        code, report, _ = check(file.write(tmp_path / f"{name}.gguf"), directory)
        assert code == 1
        assert report["verdicts"] == {"structure": "fails", "weights": "holds", "metadata": "fails"}
        bad = {w["bucket"] for w in report["windows"] if w["first_bad_position"] is not None}
        assert bad == {bucket}


def test_longrope_where_its_tensors_are_not_loaded(longrope, refused):
    assert "qwen2 architecture does not load longrope's two sets" in refused(longrope("qwen2"))


def test_an_extension_of_longrope_stays_refused(longrope, convert, yarnconv, tmp_path):
    path, _ = convert(longrope("phi3"))
    code, _, stderr = yarnconv("gguf", path, "--factor", "2", "-o", tmp_path / "more.gguf")
    assert code == 3, stderr


def test_queries_that_grow(checkpoints, convert, llama_cpp, refused, tmp_path):
    """The key matters, and what it counts in is the original context, of the scaling too."""
    directory = checkpoints("ministral3")
    path, _ = convert(directory)
    assert keys_of(path)["mistral3.attention.temperature_scale"] == pytest.approx(0.1)
    assert error(llama_cpp, path, directory) <= F32_TOLERANCE
    without = load(path)
    without.keys.float32("mistral3.attention.temperature_scale", 0.0)
    assert error(llama_cpp, without.write(tmp_path / "without.gguf"), directory) > 100 * F32_TOLERANCE
    # plain RoPE needs the key of the original context for them alone
    plain, _ = convert(directory, "--method", "none", name="plain.gguf")
    assert keys_of(plain)["mistral3.rope.scaling.original_context_length"] == ORIGINAL_CONTEXT


MULTIPLIERS = {
    "embedding_multiplier": ("embedding_scale", 2.0),
    "residual_multiplier": ("residual_scale", 1.0),
    "attention_multiplier": ("attention.scale", 0.125),
    "logits_scaling": ("logit_scale", 1.0),
}


@pytest.mark.parametrize("name", MULTIPLIERS)
def test_each_multiplier_of_granite_counts(name, checkpoints, convert, llama_cpp, tmp_path):
    key, other = MULTIPLIERS[name]
    path, _ = convert(checkpoints("granite"))
    assert error(llama_cpp, path, checkpoints("granite")) <= F32_TOLERANCE
    file = load(path)
    file.keys.float32(f"granite.{key}", other)
    assert error(llama_cpp, file.write(tmp_path / "other.gguf"), checkpoints("granite")) > 10 * F32_TOLERANCE


def test_granite_without_multipliers(convert, llama_cpp, tmp_path):
    names = ("embedding_multiplier", "residual_multiplier", "logits_scaling")
    directory = make_checkpoint(
        tmp_path / "model", "granite", attention_multiplier=0.125, **dict.fromkeys(names, 1.0)
    )
    path, _ = convert(directory)
    assert not {"granite.embedding_scale", "granite.attention.scale"} & keys_of(path).keys()
    assert error(llama_cpp, path, directory) <= F32_TOLERANCE


def test_softcaps_of_gemma2(convert, llama_cpp, refused, tmp_path):
    directory = make_checkpoint(
        tmp_path / "model", "gemma2", attn_logit_softcapping=5.0, final_logit_softcapping=3.0
    )
    path, _ = convert(directory)
    assert error(llama_cpp, path, directory) <= GELU_TOLERANCE
    for key, usual in (("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0)):
        file = load(path)
        file.keys.float32(f"gemma2.{key}", usual)
        assert error(llama_cpp, file.write(tmp_path / "usual.gguf"), directory) > 10 * GELU_TOLERANCE
    for key, what in (("attn_logit_softcapping", "scores"), ("final_logit_softcapping", "logits")):
        own = shutil.copytree(directory, tmp_path / what)
        edit_config(own, **{key: None})
        assert f"gemma2 architecture caps {what} always" in refused(own)


def test_layers_with_a_window_keep_their_own_rope(checkpoints, convert, llama_cpp, tmp_path):
    """Scaling them too is far away, and so is a scaling that they do not keep out."""
    path, _ = convert(checkpoints("olmo3"), "--factor", "4")
    every = {**YARN, "rope_theta": 500000.0}
    wrong = {"full_attention": every, "sliding_attention": every}
    found = llama_cpp.run(path, tokens(), first=ORIGINAL_CONTEXT)
    import transformers

    config = transformers.AutoConfig.from_pretrained(checkpoints("olmo3"))
    config.rope_parameters = wrong
    import torch

    model = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoints("olmo3"), config=config, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        scaled = model(torch.tensor([tokens()]), use_cache=False).logits[0][BEYOND].numpy()
    assert relative_error(found, scaled) > 100 * F32_TOLERANCE


def test_gemma3_of_other_bases_and_patterns(convert, llama_cpp, tmp_path):
    kinds = ["sliding_attention", "full_attention"] * 3
    directory = make_checkpoint(tmp_path / "model", "gemma3_text", layer_types=kinds)
    bases = {"full_attention": 500000.0, "sliding_attention": 20000.0}
    rope = {kind: {"rope_type": "default", "rope_theta": base} for kind, base in bases.items()}
    edit_config(directory, rope_parameters=rope)
    path, _ = convert(directory, "--factor", "4")
    keys = keys_of(path)
    assert keys["gemma3.rope.freq_base_swa"] == 20000.0
    assert keys["gemma3.attention.sliding_window_pattern"] == [True, False] * 3
    assert error(llama_cpp, path, directory, YARN) <= GELU_TOLERANCE


def test_what_gemma3_cannot_carry(checkpoints, refused):
    where = "architecture would put the difference to its own temperature on the layers with a sliding window"
    assert where in refused(checkpoints("gemma3_text"), "--factor", "4", "--attention-factor", "1.3")


@pytest.mark.parametrize("family", ["olmo3", "gemma3_text"])
def test_inspect_names_both_kinds_of_layers(family, checkpoints, convert, inspect):
    path, _ = convert(checkpoints(family), "--factor", "4")
    code, document, severe = inspect(path)
    assert (code, severe) == (0, [])
    layers = [group["layers"] for group in document["carried"]]
    assert layers == ["layers that see the whole context", "layers with a sliding window"]


def test_olmo3_with_another_base_for_its_windows(checkpoints, refused, tmp_path):
    directory = shutil.copytree(checkpoints("olmo3"), tmp_path / "model")
    rope = {"full_attention": {"rope_type": "default", "rope_theta": 500000.0}}
    rope["sliding_attention"] = {"rope_type": "default", "rope_theta": 10000.0}
    edit_config(directory, rope_parameters=rope)
    assert "olmo2 architecture has one base for all layers" in refused(directory)


def test_a_tied_olmo2_has_its_head_twice(convert, llama_cpp, check, tmp_path):
    """llama.cpp wants one of its own there."""
    directory = make_checkpoint(tmp_path / "model", "olmo2", tie_word_embeddings=True)
    path, _ = convert(directory, "--factor", "4")
    assert error(llama_cpp, path, directory, YARN) <= F32_TOLERANCE


REFUSED = {
    "another activation": ("olmo2", {"hidden_act": "gelu"}, "computes silu, not gelu"),
    "the exact gelu": ("gemma2", {"hidden_activation": "gelu"}, "computes gelu_pytorch_tanh, not gelu"),
    "other layers without RoPE": ("smollm3", {"no_rope_layers": [1, 0, 1, 1, 1]}, "leaves out every 4th"),
    "a window and growth": ("ministral3", {"sliding_window": 64}, "reads no window"),
    "a window and norms": (
        "qwen3",
        {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1, "layer_types": None},
        "qwen3 architecture reads no window",
    ),
    "another scale": ("gemma2", {"query_pre_attn_scalar": 100}, "multiplies scores by 0.125, not 0.1"),
    "caps on scores": ("gemma3_text", {"attn_logit_softcapping": 50.0}, "does not describe"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, checkpoints, refused, tmp_path):
    family, changes, why = REFUSED[case]
    directory = shutil.copytree(checkpoints(family), tmp_path / "model")
    edit_config(directory, **changes)
    assert why in refused(directory)


def test_norms_are_stored_whole(checkpoints, convert):
    """llama.cpp multiplies by the weight, Gemma by 1 + weight."""
    path, _ = convert(checkpoints("gemma2"))
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    own = load_file(checkpoints("gemma2") / "model.safetensors")["model.layers.0.input_layernorm.weight"]
    assert stored["blk.0.attn_norm.weight"].tensor_type == TensorType.F32
    assert np.array_equal(stored["blk.0.attn_norm.weight"].data, own + np.float32(1.0))


@pytest.mark.parametrize("family", ["gemma2", "granitemoehybrid", "smollm3"])
def test_check_holds_and_notices_a_lost_temperature(family, checkpoints, convert, check, tmp_path):
    path, _ = convert(checkpoints(family), "--factor", "4")
    code, report, stderr = check(path, checkpoints(family), "--factor", "4")
    assert (code, set(report["verdicts"].values())) == (0, {"holds"}), stderr
    file = load(path)
    file.keys.float32(file.key("rope.scaling.attn_factor"), 1 / 1.138629)
    code, report, _ = check(file.write(tmp_path / "cold.gguf"), checkpoints(family), "--factor", "4")
    assert code == 1
    assert report["verdicts"]["metadata"] == "fails"
    assert report["verdicts"]["structure"] == "fails"


def test_a_depth_that_the_attention_scale_follows(convert, llama_cpp, check, tmp_path):
    """Of 46 layers llama.cpp takes Gemma 2 27B's scale: a copy of the first two would be another model."""
    directory = make_checkpoint(
        tmp_path / "model",
        "gemma2",
        num_hidden_layers=46,
        hidden_size=64,
        intermediate_size=64,
        head_dim=64,
        query_pre_attn_scalar=16,
        deviation=0.02,  # so many sharp layers make 0.2 of float32's rounding
    )
    without_mlps(directory)
    path, _ = convert(directory)  # measured 4e-7; with the scale of other depths 4e-2
    assert error(llama_cpp, path, directory) <= F32_TOLERANCE
    _, report, _ = check(path, directory)
    assert report["verdicts"]["structure"] == "not_judged"
    assert "--layers all" in str(report)
