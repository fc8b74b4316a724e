"""The check of mixtures of experts and latent attention must be able to fail: every fault, noticed by the
verdicts that it shows in. And llama.cpp's own converter's right files hold.
"""

import pytest

from tests.support.expert_faults import (
    EXPERTS_MOVED,
    FROM_ALL_GROUPS,
    NO_SINKS,
    NORMALISED,
    NOT_NORMALISED,
    NOT_SCALED,
    NOTHING_SHARED,
    SCORES_ALONE,
    SIGMOID,
    SOFTMAX,
    TAKES_ONE,
    count,
    floats,
    number,
    one_expert_swapped,
    swapped_halves,
    without_keys,
)
from tests.support.gguf_editing import load
from tests.support.llama_converter import LlamaConverter
from tests.support.models import edit_config, make_checkpoint

YARN = ("--factor", "4")
BOTH = {"structure", "metadata"}
LATENT = "rope.scaling.yarn_log_multiplier"


def one_value(name):
    """The first value of a tensor is another one."""

    def edit(file):
        floats(file, name).reshape(-1)[0] += 1.0

    return edit


# (family, what) -> (edit, the verdicts that fail)
FAULTS = {
    ("qwen3_moe", "takes one"): (TAKES_ONE, BOTH),
    ("qwen3_moe", "takes three"): (count("expert_used_count", 3), BOTH),
    ("qwen3_moe", "experts in other places"): (EXPERTS_MOVED, {"weights"}),
    ("qwen3_moe", "one expert of one matrix in another's place"): (one_expert_swapped, {"weights"}),
    ("qwen3_moe", "one value of a router"): (one_value("blk.1.ffn_gate_inp.weight"), {"weights"}),
    ("mixtral", "rows of q in the other order"): (swapped_halves("attn_q.weight", 64), {"weights"}),
    ("qwen2_moe", "no shared expert"): (NOTHING_SHARED, {"weights"}),
    ("glm4_moe", "softmax"): (count("expert_gating_func", SOFTMAX), BOTH),
    ("glm4_moe", "not scaled"): (NOT_SCALED, BOTH),
    ("glm4_moe", "no correction"): (SCORES_ALONE, {"weights"}),
    # a small copy has as many experts as a token takes, whose softmax scores add up to 1 whatever is said
    ("deepseek_v2", "normalised"): (NORMALISED, {"metadata"}),
    ("deepseek_v2", "sigmoid"): (count("expert_gating_func", SIGMOID), BOTH),
    ("deepseek_v2", "rows of q in the other order"): (swapped_halves("attn_q.weight", 96, 32), {"weights"}),
    ("deepseek_v3", "softmax"): (count("expert_gating_func", SOFTMAX), BOTH),
    ("deepseek_v3", "not normalised"): (NOT_NORMALISED, BOTH),
    ("deepseek_v3", "no correction"): (SCORES_ALONE, {"weights"}),
    ("deepseek_v3", "of all groups"): (FROM_ALL_GROUPS, BOTH),
    ("deepseek_v3", "of three groups"): (count("expert_group_used_count", 3), BOTH),
    ("deepseek_v3", "another log multiplier"): (number(LATENT, -0.05), BOTH),
    ("deepseek_v3", "no log multiplier"): (without_keys(LATENT), BOTH),
    ("deepseek_v3", "no dense layer"): (count("leading_dense_block_count", 0), BOTH),
    ("deepseek_v3", "dense layers only"): (count("leading_dense_block_count", 2), BOTH),
    ("gpt_oss", "no sinks"): (NO_SINKS, {"weights"}),
    ("gpt_oss", "a window of one more"): (count("attention.sliding_window", 65), BOTH),
}


# a check takes seconds: of each kind of fault one, and the rest with the slow ones
ALWAYS = {
    *("takes one", "one expert of one matrix in another's place", "no shared expert", "softmax"),
    *(
        "not normalised",
        "normalised",
        "of all groups",
        "another log multiplier",
        "no dense layer",
        "no sinks",
    ),
}


def some(cases, always):
    return [case if always(case) else pytest.param(*case, marks=pytest.mark.slow) for case in cases]


@pytest.mark.parametrize(
    ("family", "fault"), some(FAULTS, lambda case: case[1] in ALWAYS and case != ("glm4_moe", "softmax"))
)
def test_fault_is_found(family, fault, artefacts, checkpoints, check, tmp_path):
    edit, wrong = FAULTS[family, fault]
    file = load(artefacts(family, "f32", *YARN))
    edit(file)
    code, report, stderr = check(file.write(tmp_path / "faulty.gguf"), checkpoints(family), *YARN)
    assert code == 1, stderr
    failed = {name for name, verdict in report["verdicts"].items() if verdict == "fails"}
    assert failed == wrong, report["reasons"]


# what llama.cpp asserts, which ends its process: more experts for a token than there are, groups that do not
# divide them, none at all
CRASHES = {
    "takes more than there are": count("expert_used_count", 9),
    "no experts": count("expert_count", 0),
    "groups that do not divide": count("expert_group_count", 3),
    "as many groups as experts": count("expert_group_count", 8),
    "all groups are chosen": count("expert_group_used_count", 4),
}


@pytest.mark.parametrize("fault", CRASHES)
def test_a_crash_is_reported(fault, artefacts, checkpoints, yarnconv, tmp_path):
    file = load(artefacts("deepseek_v3", "f32", *YARN))
    CRASHES[fault](file)
    path = file.write(tmp_path / "faulty.gguf")
    code, stdout, stderr = yarnconv("check", path, "--reference", checkpoints("deepseek_v3"), *YARN)
    assert (code, stdout) == (70, "")
    assert "llama.cpp was killed by SIGABRT while it ran this file" in " ".join(stderr.split())
    assert "Traceback" not in stderr


RIGHT = {
    "mixtral": {},
    "qwen2_moe": {},
    "qwen3_moe": {},
    "glm4_moe": {"num_nextn_predict_layers": 0},
    # V2-Lite's depth, by which llama.cpp knows that no latent vector makes its queries
    "deepseek_v2": {
        "num_hidden_layers": 27,
        "hidden_size": 64,
        "intermediate_size": 64,
        "moe_intermediate_size": 32,
        "deviation": 0.05,
        "scoring_func": "softmax",
    },
    "deepseek_v3": {"scoring_func": "sigmoid"},
    "gpt_oss": {},
}


KINDS = ("qwen2_moe", "deepseek_v2", "deepseek_v3", "gpt_oss")


@pytest.fixture(scope="module")
def converter(llama_cpp_source):
    with LlamaConverter(llama_cpp_source) as one:
        yield one


@pytest.mark.parametrize(
    "family", [*KINDS, *(pytest.param(one, marks=pytest.mark.slow) for one in RIGHT if one not in KINDS)]
)
def test_right_files_of_llama_cpps_converter_hold(family, converter, check, tmp_path):
    directory = make_checkpoint(tmp_path / "model", family, **RIGHT[family])
    edit_config(directory, **{k: v for k, v in RIGHT[family].items() if k != "deviation"})
    path = converter.convert(directory, tmp_path / "theirs.gguf")
    code, report, stderr = check(path, directory)
    assert code == 0, report["reasons"] if report else stderr
