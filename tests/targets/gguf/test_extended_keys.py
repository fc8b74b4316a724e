"""GGUFs of every architecture of the table, of metadata and one tensor: the RoPE keys that an extension
writes are those written out here by hand, or it is refused.
"""

import json
import math
from dataclasses import replace

import gguf
import numpy as np
import pytest

from yarnconv.targets.gguf.file_format import Metadata, TensorInfo, TensorType, align, pack_header
from yarnconv.targets.gguf.rope_keys import ROPE_KEYS

CONTEXT, THETA, PAIRS = 4096, 10000.0, 32
LOADS_DIVISORS = {"apertus", "arcee", "deci", "exaone", "exaone4", "granite", "granitehybrid", "granitemoe"}
LOADS_DIVISORS |= {"granite_swa", "llama", "llama4", "minicpm", "mistral3"}
READS_BETAS = {"grok", "mistral3"}
LATENT = {"deepseek2", "deepseek32", "mistral4"}
SWITCHES = {"granite", "granitehybrid"}  # whose scaling.finetuned stays what it is
AUTOMATIC = 1.0 + 0.1 * math.log(4.0)  # what llama.cpp multiplies by under YaRN
UNDONE = (1.0 / AUTOMATIC - 1.0) / math.log(4.0)  # the log multiplier that takes it back
ENLARGED = THETA * 4.0 ** (64 / 62)

COUNTS = ("context_length", "block_count", "embedding_length", "attention.head_count")
COUNTS += ("attention.sliding_window", "rope.scaling.original_context_length")


def tiny(path, architecture, keys=(), tensors=()):
    """keys: name (behind the architecture's) -> value. tensors: name -> float32 values."""
    metadata = Metadata()
    metadata.string("general.architecture", architecture)
    sizes = {"context_length": CONTEXT, "block_count": 2, "embedding_length": 256, "attention.head_count": 4}
    for name, value in {**sizes, "rope.freq_base": THETA, **dict(keys)}.items():
        write = {bool: metadata.boolean, str: metadata.string}.get(type(value), metadata.float32)
        (metadata.uint32 if name in COUNTS else write)(f"{architecture}.{name}", value)
    infos, data = [], b""
    for name, values in {"t": np.ones(32), **dict(tensors)}.items():
        infos.append(
            TensorInfo(name=name, shape=(len(values),), tensor_type=TensorType.F32, offset=len(data))
        )
        data += np.asarray(values, "<f4").tobytes()
        data += bytes(align(len(data)) - len(data))
    path.write_bytes(pack_header(metadata, infos) + data)
    return path


@pytest.fixture
def extend(yarnconv, tmp_path):
    """(exit code, RoPE keys and the context of the file that was written, its divisors, stdout or stderr)"""

    def run(architecture, *options, keys=(), tensors=()):
        source = tiny(tmp_path / "source.gguf", architecture, keys, tensors)
        out = tmp_path / "out.gguf"
        out.unlink(missing_ok=True)
        code, stdout, stderr = yarnconv("gguf", source, *options, "-o", out, "--json")
        if code:
            assert (stdout, out.exists()) == ("", False)
            return code, None, None, " ".join(stderr.split())
        reader = gguf.GGUFReader(out)
        found = {
            field.name.removeprefix(f"{architecture}."): field.contents()
            for field in reader.fields.values()
            if field.name.startswith(f"{architecture}.rope.") or field.name.endswith(".context_length")
        }
        divisors = [tensor.data for tensor in reader.tensors if tensor.name == "rope_freqs.weight"]
        return code, found, divisors[0] if divisors else None, json.loads(stdout)

    return run


def yarn_keys(**more):
    return {
        "scaling.type": "yarn",
        "scaling.factor": 4.0,
        "scaling.original_context_length": CONTEXT,
        "scaling.attn_factor": 1.0,
        **more,
    }


def temperature(architecture):
    """Of plain YaRN: A on cos and sin, and on nothing else."""
    if architecture == "deepseek2":
        return {"scaling.attn_factor": AUTOMATIC, "scaling.yarn_log_multiplier": UNDONE}
    if architecture in {"deepseek32", "mistral4"}:
        return {"scaling.attn_factor": 1.0 / AUTOMATIC, "scaling.yarn_log_multiplier": UNDONE}
    return {}


def betas(architecture, fast, slow):
    if architecture not in READS_BETAS:
        return {}
    return {"scaling.yarn_beta_fast": fast, "scaling.yarn_beta_slow": slow}


def by_divisors():
    return {"scaling.type": "none", "scaling.attn_factor": AUTOMATIC}


def expected(architecture, method):
    """The keys, or None where it is refused."""
    if method == "yarn":
        return yarn_keys(**temperature(architecture), **betas(architecture, 32.0, 1.0))
    if method == "linear":
        undone = {"scaling.yarn_log_multiplier": UNDONE} if architecture in LATENT else {}
        return {"scaling.type": "linear", "scaling.factor": 4.0, **undone}
    if method == "ntk":
        return {"freq_base": ENLARGED}
    if method == "ntk-by-parts":
        without = {"scaling.attn_factor": 1.0 / AUTOMATIC}
        return yarn_keys(**without, **betas(architecture, 32.0, 1.0))
    if method == "betas" and architecture in READS_BETAS:
        return yarn_keys(**betas(architecture, 16.0, 2.0))
    return by_divisors() if architecture in LOADS_DIVISORS else None


def assert_keys(found, wanted):
    """Those of RoPE, and the context; numbers but for what a float32 loses."""
    wanted = {f"rope.{name}": value for name, value in wanted.items()} | {"context_length": 4 * CONTEXT}
    assert sorted(found) == sorted(wanted)
    for key, value in wanted.items():
        same = value if isinstance(value, str | bool) else pytest.approx(value, rel=2e-7)
        assert found[key] == same, key


OPTIONS = {
    "yarn": ("--factor", "4"),
    "linear": ("--method", "linear", "--factor", "4"),
    "ntk": ("--method", "ntk", "--factor", "4"),
    "ntk-by-parts": ("--method", "ntk-by-parts", "--factor", "4"),
    "betas": ("--factor", "4", "--beta-fast", "16", "--beta-slow", "2"),
    "not truncated": ("--factor", "4", "--no-truncate"),
}
# what a file can hold that its architecture does not read
STALE = {"rope.scaling.yarn_beta_fast": 7.0, "rope.scaling.yarn_attn_factor": 1.5, "rope.scale_linear": 1.0}
STALE |= {"rope.scaling.yarn_log_multiplier": 0.3, "rope.scaling.yarn_ext_factor": 0.5}


def divisors_of(method):
    """float64[pairs]: what YaRN divides the plain frequencies by: betas of 16 and 2, or not truncated."""

    def dimension(rotations):
        return 64 * math.log(CONTEXT / (rotations * 2 * math.pi)) / (2 * math.log(THETA))

    low, high = (12.0, 21.0) if method == "betas" else (dimension(32), dimension(1))
    ramp = np.clip((np.arange(PAIRS) - low) / (high - low), 0, 1)
    return 1.0 / (ramp / 4.0 + 1.0 - ramp)


@pytest.mark.parametrize("method", OPTIONS)
@pytest.mark.parametrize("architecture", ROPE_KEYS)
def test_the_keys_are_exactly_these(architecture, method, extend):
    stale = {} if architecture in READS_BETAS | LATENT else STALE
    code, found, divisors, said = extend(architecture, *OPTIONS[method], keys=stale)
    wanted = expected(architecture, method)
    if wanted is None:
        assert (code, "would be wrong" in said) == (3, True)
        return
    assert code == 0, said
    wanted = {"freq_base": THETA, **wanted}
    if "scaling.type" in wanted and architecture not in SWITCHES:
        wanted["scaling.finetuned"] = False
    assert_keys(found, wanted)
    if wanted.get("scaling.type") == "none":
        np.testing.assert_allclose(divisors, divisors_of(method), rtol=2e-6)
    else:
        assert divisors is None


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("yarn", {"betas": True}),
        ("yarn", {"log_multiplier": "deepseek32"}),
        ("yarn", {"finetuned_is_switch": True}),
        ("linear", {"log_multiplier": "deepseek2"}),
        ("betas", {"rope_freqs": True}),
    ],
)
def test_with_a_wrong_entry_they_are_others(method, changes, extend, monkeypatch):
    monkeypatch.setitem(ROPE_KEYS, "qwen2", replace(ROPE_KEYS["qwen2"], **changes))
    code, found, _, _ = extend("qwen2", *OPTIONS[method])
    assert code == 0
    with pytest.raises(AssertionError):
        assert_keys(
            found, {"freq_base": THETA, "scaling.finetuned": False, **(expected("qwen2", method) or {})}
        )


@pytest.mark.parametrize("architecture", sorted(ROPE_KEYS.keys() - LOADS_DIVISORS - READS_BETAS))
def test_betas_that_another_original_context_gives(architecture, extend):
    """64 and 2 at 4096 round to the dimensions 8 and 21, as 32 and 1 do at 2048 and around."""
    options = ("--factor", "4", "--beta-fast", "64", "--beta-slow", "2")
    code, found, divisors, said = extend(architecture, *options)
    assert (code, divisors) == (0, None), said
    original = found["rope.scaling.original_context_length"]

    def dimension(rotations):
        return 64 * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(THETA))

    assert (math.floor(dimension(32)), math.ceil(dimension(1))) == (8, 21)
    assert found["context_length"] == 4 * CONTEXT


WINDOW = {"attention.sliding_window": 512}


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        ("gemma3", ("--factor", "4", "--attention-factor", "1.2"), "on the layers with a sliding window too"),
        ("gemma3", OPTIONS["ntk-by-parts"], "on the layers with a sliding window too"),
        ("olmo2", OPTIONS["ntk"], "would enlarge that of the layers with a sliding window too"),
    ],
)
def test_what_would_reach_layers_with_a_window(architecture, options, message, extend):
    """And does not where the file has none, of which nothing is said then."""
    code, _, _, said = extend(architecture, *options, keys=WINDOW)
    assert code == 3
    assert message in said
    code, _, _, said = extend(architecture, *options)
    assert code == 0
    assert "sliding" not in " ".join(said["plan"]["warnings"])


@pytest.mark.parametrize("architecture", ["gemma3", "olmo2"])
def test_layers_with_a_window_that_keep_their_own(architecture, extend):
    own = {**WINDOW, "rope.freq_base_swa": 5000.0}
    code, found, _, said = extend(architecture, "--factor", "4", keys=own)
    assert code == 0
    assert found["rope.freq_base_swa"] == 5000.0
    assert "Layers with a sliding window keep their own RoPE." in said["plan"]["warnings"]


@pytest.mark.parametrize("architecture", ["gemma2", "gpt-oss", "llama4"])
def test_layers_with_a_window_that_turn_like_all_others(architecture, extend):
    """Their base is freq_base where it is left out; kept, it would not be ntk's."""
    same = {**WINDOW, "rope.freq_base_swa": THETA}
    code, found, _, _ = extend(architecture, *OPTIONS["ntk"], keys=same)
    assert code == 0
    assert "rope.freq_base_swa" not in found
    code, _, _, said = extend(architecture, "--factor", "4", keys={**WINDOW, "rope.freq_base_swa": 5000.0})
    assert code == 3
    assert "have a RoPE of their own" in said
    only = {"rope.scaling.type": "none", "rope.scaling.factor": 8.0}
    code, _, _, said = extend(architecture, "--factor", "4", keys=only)
    assert code == 3
    assert "and no others" in said


@pytest.mark.parametrize("architecture", sorted(SWITCHES))
def test_granites_switch_stays(architecture, extend):
    code, found, _, _ = extend(architecture, "--factor", "4", keys={"rope.scaling.finetuned": True})
    assert (code, found["rope.scaling.finetuned"]) == (0, True)
    code, _, _, said = extend(architecture, "--factor", "4", keys={"rope.scaling.finetuned": False})
    assert code == 3
    assert "its RoPE is switched off" in said


def test_what_is_no_switch_is_said_anew(extend):
    code, found, _, _ = extend("granitemoe", "--factor", "4", keys={"rope.scaling.finetuned": True})
    assert (code, found["rope.scaling.finetuned"]) == (0, False)


def own_yarn(**more):
    keys = {f"rope.{name}": value for name, value in yarn_keys(**more).items()}
    return {**keys, "context_length": 4 * CONTEXT}


@pytest.mark.parametrize("mscale", [1.0, 0.707])
def test_deepseeks_pair_of_mscales_follows_the_factor(mscale, extend):
    """A is 1 and the softmax scale that of the new factor; the converter writes a tenth of mscale_all_dim."""
    own = own_yarn(**{"scaling.yarn_log_multiplier": 0.1 * mscale})
    code, found, _, said = extend("deepseek2", "--factor", "2", keys=own)
    assert code == 0
    assert said["plan"]["factor"] == 8.0
    assert found["rope.scaling.attn_factor"] == pytest.approx(1.0)
    assert found["rope.scaling.yarn_log_multiplier"] == pytest.approx(0.1 * mscale, rel=1e-6)


def test_deepseek_without_a_multiplier(extend):
    """What the converter makes of a YaRN without mscales: the temperature is on the rest of the head too."""
    code, found, _, said = extend("deepseek2", "--factor", "2", keys=own_yarn())
    assert (code, found["rope.scaling.attn_factor"]) == (0, pytest.approx(1.0))
    assert "rope.scaling.yarn_log_multiplier" not in found
    assert "which transformers does not" in " ".join(said["plan"]["warnings"])
    own = own_yarn(**{"scaling.yarn_log_multiplier": 0.1})
    without = {**own_yarn(), "rope.scaling.attn_factor": 1.0 / AUTOMATIC}
    for keys in ({}, own, without):
        assert "transformers does not" not in json.dumps(extend("deepseek2", "--factor", "2", keys=keys)[3])


def test_deepseeks_attention_factor(extend):
    """a on cos and sin is the key itself; nothing on the rest of the head."""
    code, found, _, _ = extend("deepseek2", "--factor", "4", "--attention-factor", "1.3")
    assert code == 0
    assert found["rope.scaling.attn_factor"] == pytest.approx(1.3)
    assert found["rope.scaling.yarn_log_multiplier"] == pytest.approx((1 / 1.3 - 1) / math.log(4))


def test_ministrals_pair_of_mscales_follows_the_factor(extend):
    """A is m(1) / m(mscale_all_dim), 1 for every factor; plain YaRN's would be multiplied on top."""
    own = own_yarn(**{"scaling.yarn_log_multiplier": 1.0})
    code, found, _, said = extend("mistral3", "--factor", "2", keys=own)
    assert code == 0
    assert said["plan"]["attention_factor"] == pytest.approx(1.0)
    assert found["rope.scaling.attn_factor"] == pytest.approx(1.0 / (1.0 + 0.1 * math.log(8.0)))
    assert "rope.scaling.yarn_log_multiplier" not in found


@pytest.mark.parametrize("method", OPTIONS)
def test_a_temperature_by_position_counts_from_where_it_did(method, extend):
    """Left out, the key of the original context would be the new context."""
    keys = {"attention.temperature_scale": 0.1}
    code, found, _, _ = extend("mistral3", *OPTIONS[method], keys=keys)
    assert (code, found["rope.scaling.original_context_length"]) == (0, CONTEXT)
    code, _, _, said = extend("mistral3", "--factor", "4", "--original-context", "2048", keys=keys)
    assert code == 3
    assert "counts from the original context of 4096" in said


def test_an_unknown_architecture(extend):
    code, _, _, said = extend("llama9", "--factor", "4")
    assert code == 3
    assert "add --trust-generic-keys" in said
    code, found, _, said = extend("llama9", "--factor", "4", "--trust-generic-keys")
    assert code == 0
    assert_keys(found, yarn_keys(freq_base=THETA) | {"scaling.finetuned": False})
    assert "is trusted and not known" in " ".join(said["plan"]["warnings"])
    code, _, _, said = extend("llama9", *OPTIONS["betas"], "--trust-generic-keys")
    assert (code, "would be wrong" in said) == (3, True)
    code, _, _, said = extend("bloom", "--factor", "4", "--trust-generic-keys")
    assert (code, "has no RoPE" in said) == (3, True)


FOREIGN = {
    "an unknown type": ("qwen2", {"rope.scaling.type": "magic"}, {}, 2, "at which llama.cpp aborts"),
    "longrope": ("llama", {"rope.scaling.type": "longrope"}, {}, 3, "scaled by longrope"),
    "longrope's long set": ("phi3", {}, {"rope_factors_long.weight": np.full(PAIRS, 2.0)}, 3, "by longrope"),
    "its short set": ("phimoe", {}, {"rope_factors_short.weight": np.ones(PAIRS)}, 3, "by longrope"),
    "divisors of no name": ("arcee", {}, {"rope_freqs.weight": np.full(PAIRS, 2.0)}, 3, "is not known"),
    "an alpha": ("hunyuan-dense", {"rope.scaling.alpha": 1000.0}, {}, 3, "rope.scaling.alpha"),
    "half extrapolated": ("grok", {"rope.scaling.yarn_ext_factor": 0.5}, {}, 3, "as no method does"),
    "YaRN by another key": ("grok", {"rope.scaling.yarn_ext_factor": 1.0}, {}, 3, "as no method does"),
    "another temperature": ("grok", {"rope.scaling.yarn_attn_factor": 1.5}, {}, 3, "a temperature"),
    "a temperature without YaRN": ("glm4", {"rope.scaling.attn_factor": 1.5}, {}, 3, "a temperature"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_what_no_plan_has_is_refused(case, extend):
    architecture, keys, tensors, wanted, message = FOREIGN[case]
    code, _, _, said = extend(architecture, "--factor", "4", keys=keys, tensors=tensors)
    assert code == wanted
    assert message.replace("a temperature", "attention temperature") in said


HARMLESS = {
    "an alpha of 0": ("hunyuan-dense", {"rope.scaling.alpha": 0.0}),
    "an alpha that is not read": ("qwen2", {"rope.scaling.alpha": 1000.0}),
    "grok's own": ("grok", own_yarn(**{"scaling.yarn_ext_factor": 1.0, "scaling.yarn_attn_factor": 1.0})),
    "by the type": ("grok", {"rope.scaling.yarn_ext_factor": -1.0}),
}


@pytest.mark.parametrize("case", HARMLESS)
def test_what_changes_nothing_is_not(case, extend):
    architecture, keys = HARMLESS[case]
    code, found, _, said = extend(architecture, "--factor", "2", keys=keys)
    assert code == 0, said
    assert found["rope.scaling.type"] == "yarn"
    assert "rope.scaling.yarn_ext_factor" not in found
