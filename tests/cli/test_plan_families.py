"""`plan` and `inspect` of models whose layers differ, and of families without a data file."""

import json

import pytest

from yarnconv.model.family import families
from yarnconv.rope_plan import layer_ranges

FULL, SLIDING = "full_attention", "sliding_attention"
NOVEL = {
    "model_type": "novel",
    "architectures": ["NovelForCausalLM"],
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_hidden_layers": 5,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e6}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}


@pytest.fixture
def written(tmp_path):
    """A directory with nothing but a config.json."""

    def write(config):
        (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    return write


@pytest.fixture
def tiny(written):
    """That of a tiny model of a family."""

    def write(family, **edits):
        return written({"model_type": family, **families()[family].tiny, **edits})

    return write


@pytest.mark.parametrize(
    ("layers", "text"),
    [((), ""), ((3,), "3"), ((0, 1, 2, 4), "0-2, 4"), ((0, 2, 3), "0, 2-3"), (tuple(range(9)), "0-8")],
)
def test_ranges(layers, text):
    assert layer_ranges(layers) == text


# family, edits, per group: (layers, layer type that RoPE is spelled by, method, theta, factor, its attention)
GROUPS = {
    "olmo3": (
        {},
        [
            ([3], FULL, "yarn", 500000.0, 4.0, [([3], FULL, None)]),
            ([0, 1, 2, 4], SLIDING, "none", 500000.0, 1.0, [([0, 1, 2, 4], SLIDING, 64)]),
        ],
    ),
    "gemma3_text": (
        {},
        [
            ([5], FULL, "yarn", 1000000.0, 4.0, [([5], FULL, None)]),
            ([0, 1, 2, 3, 4], SLIDING, "none", 10000.0, 1.0, [([0, 1, 2, 3, 4], SLIDING, 64)]),
        ],
    ),
    "smollm3": (
        {},
        [
            ([0, 1, 2, 4], None, "yarn", 10000.0, 4.0, [([0, 1, 2, 4], FULL, None)]),
            ([3], None, None, None, None, [([3], FULL, None)]),
        ],
    ),
    "qwen2": (
        {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1},
        [([0, 1, 2], None, "yarn", 10000.0, 4.0, [([0], FULL, None), ([1, 2], SLIDING, 64)])],
    ),
}


@pytest.mark.parametrize("family", GROUPS)
def test_groups_in_json(yarnconv, tiny, family):
    edits, expected = GROUPS[family]
    edits = {"rope_theta": 10000.0, **edits} if family == "qwen2" else edits
    code, stdout, stderr = yarnconv("plan", tiny(family, **edits), "--factor", "4", "--json")
    assert code == 0, stderr
    found = [
        (
            *(group[key] for key in ("layers", "layer_type", "method", "rope_theta", "factor")),
            [(kind["layers"], kind["layer_type"], kind["window"]) for kind in group["attention"]],
        )
        for group in json.loads(stdout)["groups"]
    ]
    assert sorted(found, key=str) == sorted(expected, key=str)


ROWS = {
    "olmo3": ("3: yarn x4, theta 500000", "0-2, 4: plain RoPE, theta 500000, window 64"),
    "gemma3_text": ("5: yarn x4, theta 1e+06", "0-4: plain RoPE, theta 10000, window 64"),
    "smollm3": ("0-2, 4: yarn x4, theta 10000", "3: no RoPE"),
    "qwen3": ("0-2: yarn x4, theta 10000",),
}


@pytest.mark.parametrize("width", ["80", "120"])
@pytest.mark.parametrize("family", ROWS)
def test_groups_as_a_table(yarnconv, tiny, monkeypatch, family, width):
    monkeypatch.setenv("COLUMNS", width)
    code, stdout, _ = yarnconv("plan", tiny(family), "--factor", "4")
    assert code == 0
    for row in ROWS[family]:
        assert row in stdout
    assert all(len(line) <= int(width) for line in stdout.splitlines())
    assert ("windows see" in stdout) == ("window 64" in stdout)  # of a cache that keeps no more


def test_a_head_with_more_bars_than_a_line_has_room_for(yarnconv, tiny, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    stdout = yarnconv("plan", tiny("gemma3_text", head_dim=256), "--factor", "4")[1]
    assert sum(stdout.count(bar) for bar in "▁▂▃▄▅▆▇█") == 128


def test_inspect_names_the_layers(yarnconv, tiny):
    def carried(directory):
        code, stdout, stderr = yarnconv("inspect", directory, "--json")
        assert code == 0, stderr
        document = json.loads(stdout)
        return {group["layers"]: [b["method"] for b in group["buckets"]] for group in document["carried"]}

    rope = {FULL: YARN, SLIDING: PLAIN}
    assert carried(tiny("olmo3", rope_parameters=rope)) == {
        "3 (full_attention)": ["yarn"],
        "0-2, 4 (sliding_attention, 64)": ["none"],
    }
    assert carried(tiny("smollm3")) == {"0-2, 4 (full_attention)": ["none"], "3 (full_attention)": []}
    assert carried(tiny("qwen3")) == {"all layers": ["none"]}


# -- families without a data file -----------------------------------------------------------------


def test_a_plan_of_a_family_without_a_data_file(yarnconv, written):
    directory = written(NOVEL)
    code, stdout, stderr = yarnconv("plan", directory, "--factor", "4", "--json")
    assert code == 0, stderr
    document = json.loads(stdout)
    assert (document["family"], document["method"], document["factor"]) == ("novel", "yarn", 4.0)
    assert (document["kv_cache_bytes_per_token"], document["tensors"]) == (None, [])
    (group,) = document["groups"]
    assert (group["layers"], group["attention"]) == ([0, 1, 2, 3, 4], None)
    warning = document["warnings"][0]
    assert "no data file" in warning
    assert all(name in warning for name in families())
    known = json.loads(yarnconv("plan", written({**NOVEL, **LLAMA}), "--factor", "4", "--json")[1])
    assert known["inv_freq"] == document["inv_freq"]
    code, stdout, _ = yarnconv("plan", written(NOVEL), "--factor", "4")
    assert code == 0
    assert "novel, no data file, 5 layers" in stdout
    assert "0-4: yarn x4, theta 10000" in stdout
    assert "KV cache" not in stdout


LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "intermediate_size": 384,
    "vocab_size": 512,
}


def test_its_layers_are_told_apart_by_their_types(yarnconv, written):
    types = [SLIDING, SLIDING, "chunked\x1b[2J", FULL, SLIDING]
    rope = {FULL: YARN, SLIDING: PLAIN, types[2]: None}
    directory = written({**NOVEL, "layer_types": types, "rope_parameters": rope})
    code, stdout, _ = yarnconv("plan", directory, "--json")
    assert code == 0
    groups = {group["layer_type"]: group for group in json.loads(stdout)["groups"]}
    assert [groups[kind]["layers"] for kind in (FULL, SLIDING, types[2])] == [[3], [0, 1, 4], [2]]
    assert [groups[kind]["method"] for kind in (FULL, SLIDING, types[2])] == ["yarn", "none", None]
    code, stdout, _ = yarnconv("plan", directory)
    assert "3: full_attention, yarn x4, theta 1e+06" in stdout
    assert "\x1b[2J" not in stdout


def test_latent_attention_has_a_head_of_its_own(yarnconv, written):
    parts = {"qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "kv_lora_rank": 512}
    code, stdout, _ = yarnconv("plan", written({**NOVEL, **parts}), "--factor", "4", "--json")
    document = json.loads(stdout)
    assert (code, document["rotary_dim"], document["head_dim"]) == (0, 64, 192)


def test_a_known_family_that_its_data_file_does_not_describe(yarnconv, tiny):
    """Gemma 3 that looks ahead: planned with the defaults of its class."""
    directory = tiny("gemma3_text", use_bidirectional_attention=True)
    code, stdout, _ = yarnconv("plan", directory, "--factor", "4", "--json")
    assert code == 0
    document = json.loads(stdout)
    assert "use_bidirectional_attention is True" in document["warnings"][0]
    assert {group["layer_type"]: group["rope_theta"] for group in document["groups"]} == {
        FULL: 1000000.0,
        SLIDING: 10000.0,
    }
    assert yarnconv("gguf", directory)[0] == 2  # there are no weights


HOSTILE = {
    "no layers": {"num_hidden_layers": None},
    "layers as text": {"num_hidden_layers": "five"},
    "layers that are true": {"num_hidden_layers": True},
    "a billion layers": {"num_hidden_layers": 10**9},
    "fewer than no layers": {"num_hidden_layers": -1},
    "a fraction of layers": {"num_hidden_layers": 4.5},
    "types of other layers": {"layer_types": [FULL] * 4},
    "types as text": {"layer_types": "full_attention"},
    "types as a number": {"layer_types": 10**9},
    "types as an object": {"layer_types": {"full_attention": 1}},
    "types that are lists": {"layer_types": [[FULL]] * 5},
    "very many types": {"layer_types": [FULL] * 100_000},
    "no context": {"max_position_embeddings": None},
    "a context of 0": {"max_position_embeddings": 0},
    "a negative context": {"max_position_embeddings": -256},
    "a fraction of a position": {"max_position_embeddings": 256.5},
    "an endless context": {"max_position_embeddings": 10**30},
    "no base": {"rope_theta": None},
    "a base of 0": {"rope_theta": 0},
    "no heads": {"num_attention_heads": 0},
    "heads that are lists": {"num_attention_heads": [4]},
    "a negative head": {"head_dim": -64},
    "a huge head": {"head_dim": 10**18},
    "an odd head": {"head_dim": 63},
    "a head of a fraction": {"qk_rope_head_dim": 64, "qk_nope_head_dim": 0.5},
    "scalings as a list": {"rope_parameters": [YARN]},
    "a type without parameters": {"layer_types": [FULL] * 4 + ["x"], "rope_parameters": {FULL: YARN}},
    "no type that sees everything": {"layer_types": ["x"] * 5, "rope_parameters": {"x": YARN}},
    "nothing that rotates": {"layer_types": [FULL] * 5, "rope_parameters": {FULL: None}},
    "a scaling that nobody knows": {"rope_parameters": {"rope_type": "magic"}},
    "a model among other parts": {"rope_theta": None, "text_config": {}},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_configs_of_unknown_families(yarnconv, written, name):
    directory = written({**NOVEL, **HOSTILE[name]})
    for options in ((), ("--factor", "4")):
        code, stdout, stderr = yarnconv("plan", directory, *options, "--json")
        assert (code, stdout) == (2, ""), stderr
        assert "config.json" in stderr
    code, _, stderr = yarnconv("inspect", directory)  # which needs less of it
    assert code in {0, 2}
    assert "Traceback" not in stderr


def test_a_text_model_among_other_parts_is_pointed_to(yarnconv, written):
    _, _, stderr = yarnconv("plan", written({"model_type": "novel", "text_config": NOVEL}))
    assert "text_config" in stderr


def test_bad_options_are_still_the_options(yarnconv, written):
    code, _, stderr = yarnconv("plan", written(NOVEL), "--factor", "0.5")
    assert code == 2
    assert "--factor" in stderr
    assert "data file" not in stderr


def test_an_unknown_text_model_of_a_known_whole(yarnconv, written):
    code, stdout, _ = yarnconv("plan", written({"model_type": "gemma3", "text_config": NOVEL}), "--json")
    document = json.loads(stdout)
    assert (code, document["rope_theta"]) == (0, 10000.0)
    assert "no data file" in document["warnings"][0]
