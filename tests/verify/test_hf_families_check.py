"""`yarnconv check` of extended checkpoints whose layers differ: right ones hold, wrong groups are found."""

import json
import shutil

import pytest

from tests.support.models import edit_config
from tests.verify.test_hf_check import ALL_HOLD
from yarnconv.model.family import families

FAMILIES = (
    *("gemma2", "gemma3_text", "glm4", "granite", "granitemoehybrid", "ministral3", "olmo2", "olmo3"),
    *("phi3", "smollm3", "mixtral", "qwen2_moe", "qwen3_moe", "glm4_moe", "deepseek_v2", "deepseek_v3"),
    "gpt_oss",
)
OPTIONS = {
    "none": ("--method", "none"),
    "linear": ("--method", "linear", "--factor", "4"),
    "ntk": ("--method", "ntk", "--factor", "4"),
    "dynamic-ntk": ("--method", "dynamic-ntk", "--factor", "4"),
    "yarn": (
        *("--factor", "4", "--beta-fast", "16", "--beta-slow", "2"),
        *("--attention-factor", "1.5", "--no-truncate"),
    ),
}
# by default one method of each family that is not told from the others', and all where something may differ
TELLING = {
    **dict.fromkeys(FAMILIES, ("yarn",)),
    "phi3": ("ntk",),
    "ministral3": ("none", "linear", "yarn"),
    "gemma3_text": ("none", "ntk", "dynamic-ntk", "yarn"),
    "olmo3": ("linear", "ntk"),
}


def cases():
    for family in FAMILIES:
        types = families()[family].structure.rope_types
        for method in OPTIONS:
            if types is None or method in {"none", "ntk"}:
                marks = () if method in TELLING[family] else pytest.mark.slow
                yield pytest.param(family, method, marks=marks)


@pytest.mark.parametrize(("family", "method"), list(cases()))
def test_right_ones_hold(check, extend, checkpoints, family, method):
    out = extend(checkpoints(family), *OPTIONS[method])
    code, report, stderr = check(out, checkpoints(family), *OPTIONS[method])
    assert code == 0, (stderr, report and report["reasons"])
    assert report["verdicts"] == ALL_HOLD
    # as in test_hf_check: 0 where types are static, 4.7e-6 of a dynamic type's base (measured)
    assert max(window["relative_max"] for window in report["windows"]) < 2e-5


def edited(directory, change):
    """Change config.json in place, as a function of its document."""
    path = directory / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def sliding_theta(config):
    config["rope_parameters"]["sliding_attention"]["rope_theta"] = 3000.0
    if "rope_local_base_freq" in config:
        config["rope_local_base_freq"] = 3000.0


def full_theta(config):
    config["rope_theta"] = config["rope_parameters"]["full_attention"]["rope_theta"] = 20000.0


def exchanged(config):
    """The scaling on the layers that look back over a window."""
    rope = config["rope_parameters"]
    thetas = {kind: rope[kind].pop("rope_theta") for kind in rope}
    rope["full_attention"], rope["sliding_attention"] = rope["sliding_attention"], rope["full_attention"]
    for kind, theta in thetas.items():
        rope[kind]["rope_theta"] = theta
    config["rope_scaling"] = None


def on_both(config):
    rope = config["rope_parameters"]
    theta = rope["sliding_attention"]["rope_theta"]
    rope["sliding_attention"] = {**rope["full_attention"], "rope_theta": theta}


def types_exchanged(config):
    other = {"full_attention": "sliding_attention", "sliding_attention": "full_attention"}
    config["layer_types"] = [other[kind] for kind in config["layer_types"]]


def without_scaling(config):
    theta = config["rope_parameters"]["full_attention"]["rope_theta"]
    config["rope_parameters"]["full_attention"] = {"rope_type": "default", "rope_theta": theta}
    config["rope_scaling"] = None


def older_factor(config):
    config["rope_scaling"]["factor"] = 3.9


def newer_factor(config):
    config["rope_parameters"]["full_attention"]["factor"] = 3.9


def without_older(config):
    config["rope_scaling"] = None


def window(config):
    config["sliding_window"] = 32


def rounded(config):
    """Where only the older spelling says it, nobody who reads the newer hears it."""
    config["rope_scaling"]["truncate"] = False


BOTH = {"structure", "metadata"}
FAULTS = {
    sliding_theta: BOTH,
    full_theta: BOTH,
    exchanged: BOTH,
    on_both: BOTH,
    types_exchanged: BOTH,
    without_scaling: BOTH,
    older_factor: BOTH,  # transformers 5 lays it over the other
    newer_factor: {"metadata"},
    without_older: {"metadata"},
    window: {"metadata"},  # the masks of a comparison are its own
    rounded: {"metadata"},
}


# those that others stand for, or that are the same in the other family, are slow for what they tell
ALIKE = {full_theta, types_exchanged, without_scaling}
FAULTY = [
    pytest.param(fault, family, marks=pytest.mark.slow if fault in ALIKE or family == "olmo3" else ())
    for fault in FAULTS
    for family in ("gemma3_text", "olmo3")
]


@pytest.mark.parametrize(("fault", "family"), FAULTY)
def test_wrong_groups_are_found(check, extend, checkpoints, fault, family):
    out = extend(checkpoints(family), "--factor", "4")
    edited(out, fault)
    code, report, stderr = check(out, checkpoints(family), "--factor", "4")
    assert code == 1, stderr
    assert {name for name, verdict in report["verdicts"].items() if verdict == "fails"} == FAULTS[fault]


def test_the_other_base_of_the_older_spelling(check, extend, checkpoints):
    out = extend(checkpoints("gemma3_text"), "--factor", "4")
    edit_config(out, rope_local_base_freq=3000.0)
    code, report, _ = check(out, checkpoints("gemma3_text"), "--factor", "4")
    assert (code, report["verdicts"]["structure"]) == (1, "holds")  # transformers 5 does not look there
    assert "rope_local_base_freq is 3000, expected 10000" in report["reasons"]["metadata"]


def test_layers_without_rope(check, extend, checkpoints):
    out = extend(checkpoints("smollm3"), "--factor", "4")
    edit_config(out, no_rope_layers=[1, 1, 1, 1, 1])
    code, report, _ = check(out, checkpoints("smollm3"), "--factor", "4")
    assert code == 1
    assert {name for name, verdict in report["verdicts"].items() if verdict == "fails"} == BOTH


@pytest.mark.parametrize(
    "edit",
    [
        {"llama_4_scaling_beta": 0.0},
        pytest.param({"llama_4_scaling_beta": 0.3}, marks=pytest.mark.slow),
        pytest.param({"original_max_position_embeddings": 128}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_growth_of_queries(check, extend, checkpoints, edit):
    options = ("--method", "linear", "--factor", "4")  # whose original context is that of the growth alone
    out = extend(checkpoints("ministral3"), *options)

    def change(config):
        for spelling in ("rope_scaling", "rope_parameters"):
            config[spelling] |= edit

    edited(out, change)
    code, report, _ = check(out, checkpoints("ministral3"), *options)
    assert code == 1
    assert {name for name, verdict in report["verdicts"].items() if verdict == "fails"} == BOTH


def test_longrope_of_its_own(check, extend, checkpoints, tmp_path):
    rope = {
        "type": "longrope",
        "short_factor": [1.0 + 0.01 * i for i in range(32)],
        "long_factor": [1.0 + 0.5 * i for i in range(32)],
    }
    source = shutil.copytree(checkpoints("phi3"), tmp_path / "phi3")
    edit_config(source, remove=["rope_parameters"], rope_scaling=rope, max_position_embeddings=1024)
    out = extend(source)
    code, report, _ = check(out, source)
    assert (code, report["verdicts"]) == (0, ALL_HOLD)


def test_a_family_without_a_data_file(yarnconv, checkpoints, tmp_path):
    """Every command that converts refuses, and check of one too."""
    source = shutil.copytree(checkpoints("llama"), tmp_path / "source")
    edit_config(source, model_type="novel", architectures=["NovelForCausalLM"])
    out = tmp_path / "out"
    commands = [(name, source, "--factor", "4", "-o", out) for name in ("gguf", "onnx", "trt", "hf")]
    commands += [("check", source, "--reference", checkpoints("llama"))]
    commands += [("check", checkpoints("llama"), "--reference", source)]
    for command in commands:
        code, _, stderr = yarnconv(*command)
        assert code == 3, (command, stderr)
        said = " ".join(stderr.split())
        assert "no data file" in said
        assert all(name in said for name in families())
        assert not out.exists()
