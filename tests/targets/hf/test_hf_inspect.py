"""`yarnconv inspect` on checkpoints: what a config.json asks for, and what of it is not heard."""

import json

import pytest

from tests.support.models import ORIGINAL_CONTEXT, edit_config, make_checkpoint

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL_CONTEXT}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model", "llama")


@pytest.fixture
def inspect(directory, yarnconv):
    """(exit code, document, codes) of the checkpoint with another scaling."""

    def run(rope, *options, **config):
        config = {"max_position_embeddings": 4 * ORIGINAL_CONTEXT} | config
        edit_config(directory, rope_parameters={"rope_theta": 10000.0, **rope}, **config)
        code, stdout, _ = yarnconv("inspect", directory, *options, "--json")
        document = json.loads(stdout)
        return code, document, [f["code"] for f in document["findings"]]

    return run


def test_a_right_one_has_no_findings(inspect, yarnconv, directory):
    code, document, codes = inspect(YARN)
    assert (code, codes, document["target"], document["method"]) == (0, [], "checkpoint", "yarn")
    plan = json.loads(yarnconv("plan", directory, "--json")[1])
    assert document["inv_freq"] == plan["inv_freq"]
    assert yarnconv("inspect", directory / "config.json")[0] == 0
    assert inspect(YARN, max_position_embeddings=ORIGINAL_CONTEXT)[2] == []  # as Qwen's recipe has it


@pytest.mark.parametrize(
    ("rope", "config", "code"),
    [
        ({**YARN, "attn_factor": 1.2}, {}, "config-ignored"),
        ({**YARN, "mscale": 1.0}, {}, "config-ignored"),
        ({**YARN, "rope_type": "ntk"}, {}, "config-ignored"),
        ({**YARN, "rope_type": "dynamic-yarn"}, {}, "config-ignored"),
        ({"rope_type": "yarn", "factor": 4.0}, {"max_position_embeddings": 256}, "original-context-unknown"),
        (YARN, {"max_position_embeddings": 4096}, "context-length"),
    ],
)
def test_what_is_not_heard(rope, config, code, inspect):
    assert inspect(rope, **config)[2] == [code]


def test_against_another_checkpoint(inspect, directory, yarnconv, tmp_path):
    reference = make_checkpoint(tmp_path / "reference", "llama")
    assert inspect(YARN, "--reference", reference, "--factor", "4")[:3:2] == (0, [])
    code, _, codes = inspect(YARN, "--reference", reference, "--factor", "4", "--no-truncate")
    assert (code, codes) == (1, ["truncate-ignored"])
    assert inspect(PLAIN, "--reference", reference, "--factor", "4")[2] == ["plain-rope"]


def test_a_family_that_nobody_knows(inspect, directory):
    """Its RoPE can be read all the same."""
    code, document, _ = inspect(YARN, model_type="novel", architectures=["NovelForCausalLM"])
    assert (code, document["method"], document["factor"]) == (0, "yarn", 4.0)
    edit_config(directory, model_type="llama", architectures=["LlamaForCausalLM"])


def test_what_is_nothing_of_it(yarnconv, tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        code, _, stderr = yarnconv("inspect", path)
        assert (code, "Give a" in stderr) == (2, True)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert yarnconv("inspect", tmp_path)[0] == 2


def test_kinds_of_layers_without_their_original_context(yarnconv, tmp_path):
    """By layer type as at the top: said once, and no other key is called unheard."""
    linear = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    config = {
        "model_type": "windowed",
        "head_dim": 64,
        "max_position_embeddings": ORIGINAL_CONTEXT,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "rope_parameters": {"sliding_attention": PLAIN, "full_attention": linear},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    code, stdout, _ = yarnconv("inspect", tmp_path, "--json")
    codes = [finding["code"] for finding in json.loads(stdout)["findings"]]
    assert (code, codes) == (0, ["original-context-unknown"])
