"""`yarnconv inspect` on ONNX models of several makers: what they turn by, and which mistake they have."""

import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.support.genai_builder import build
from tests.support.models import ORIGINAL_CONTEXT, make_checkpoint
from tests.support.onnx_faults import Editor, half_precision_table, temperature_dropped
from tests.support.selection import slow

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL_CONTEXT}
BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}
EXTENDED = 4 * ORIGINAL_CONTEXT
FACTOR = ("--factor", "4")
METHODS = {
    "none": (("--method", "none"), ["none"]),
    "linear": (("--method", "linear", *FACTOR), ["linear"]),
    "ntk": (("--method", "ntk", *FACTOR), ["ntk"]),
    "ntk-by-parts": (("--method", "ntk-by-parts", *FACTOR), ["ntk-by-parts"]),
    "yarn": (FACTOR, ["yarn"]),
    "not truncated": ((*FACTOR, "--no-truncate"), ["yarn"]),
    "dynamic-yarn": ((*FACTOR, "--method", "dynamic-yarn"), ["none", "yarn", "yarn"]),
    "dynamic-ntk": ((*FACTOR, "--method", "dynamic-ntk"), ["none", "none", "none"]),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["fp32", "int4"])
def test_ours_are_read_back(method, dtype, onnx_artefacts, checkpoints, inspect, yarnconv):
    """By their tables; the record only tells which of the names that fit was meant."""
    options, named = METHODS[method]
    path = onnx_artefacts("qwen3", *options, "--dtype", dtype)
    code, document, severe = inspect(path, "--reference", checkpoints("qwen3"), *options)
    assert (code, severe, document["maker"]) == (0, [], "yarnconv")
    (group,) = document["carried"]
    assert [bucket["method"] for bucket in group["buckets"]] == named
    plan = json.loads(yarnconv("plan", checkpoints("qwen3"), *options, "--json")[1])
    for found, wanted in zip(group["buckets"], plan["groups"][0]["buckets"], strict=True):
        np.testing.assert_allclose(found["inv_freq"], wanted["inv_freq"], rtol=found["uncertainty"])
        assert found["attention_factor"] == pytest.approx(wanted["attention_factor"], rel=1e-6)


# the checkpoint's RoPE -> what the model builder made of it, and the codes against the checkpoint
# 11 s each
BY_THE_BUILDER = {
    "llama yarn": ("llama", YARN, "none", ["plain-rope"]),
    "llama linear": ("llama", {"rope_type": "linear", "factor": 4.0}, "none", ["plain-rope"]),
    "qwen3 yarn": ("qwen3", {**YARN, **BETAS}, "yarn", ["truncate-ignored"]),
    "qwen3 attention_factor": (
        "qwen3",
        {**YARN, **BETAS, "attention_factor": 1.3},
        "yarn",
        ["truncate-ignored", "attention-factor-dropped"],
    ),
    "qwen3 plain": ("qwen3", {"rope_type": "default"}, "none", []),
    "llama3": (
        "llama",
        {**YARN, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        "llama3",
        [],
    ),
}


@pytest.mark.parametrize(
    "case",
    [
        "llama yarn",
        "qwen3 attention_factor",
        "llama3",
        *slow("llama linear", "qwen3 yarn", "qwen3 plain"),
    ],
)
def test_what_genais_builder_drops(case, inspect, tmp_path):
    """By another's hand, and nothing beside it says what was asked for."""
    family, rope, method, codes = BY_THE_BUILDER[case]
    directory = make_checkpoint(
        tmp_path / "model",
        family,
        rope_parameters={"rope_theta": 10000.0, **rope},
        max_position_embeddings=EXTENDED,
    )
    path = build(directory, tmp_path / "out", "fp32")
    _, document, severe = inspect(path)
    assert (document["maker"], document["method"], severe) == ("onnxruntime-genai", method, [])
    code, _, severe = inspect(path, "--reference", directory)
    assert (code, severe) == (1 if codes else 0, codes)
    shutil.copy(directory / "config.json", path / "config.json")  # which some exporters leave there
    assert inspect(path)[2] == codes


def test_16_bit_tables_of_the_builder(inspect, tmp_path):
    path = build(make_checkpoint(tmp_path / "model", "qwen2"), tmp_path / "out", "fp16")
    code, document, severe = inspect(path)
    assert (code, document["method"], severe) == (0, "none", ["table-rounded"])
    assert document["rope_theta"] == 10000.0


@pytest.fixture
def edited(onnx_artefacts, tmp_path):
    """A right YaRN model, edited; without its record, which would tell."""

    def get(edit, *options):
        editor = Editor(onnx_artefacts("llama", *FACTOR, "--dtype", "fp32", *options), tmp_path / "edited")
        edit(editor)
        del editor.model.metadata_props[:]
        return editor.save()

    return get


def test_a_table_without_temperature(edited, inspect, checkpoints):
    path = edited(temperature_dropped)
    assert inspect(path)[::2] == (0, ["temperature-missing"])
    assert inspect(path, "--reference", checkpoints("llama"), *FACTOR)[::2] == (1, ["temperature-missing"])


def test_a_table_that_was_rounded(edited, inspect):
    """And widened again on its way."""
    code, document, severe = inspect(edited(half_precision_table))
    assert (code, severe, document["method"]) == (0, ["table-rounded"], "yarn")


def test_a_damaged_row(edited, inspect):
    def damage(editor):
        editor.stored("cos_cache")[700, 3] += 0.01

    code, document, severe = inspect(edited(damage))
    assert (code, severe) == (1, ["table-damaged"])
    assert "row 700" in document["carried"][0]["buckets"][0]["broken"]


def test_a_table_that_ends_too_early(onnx_artefacts, inspect, checkpoints):
    path = onnx_artefacts("llama", *FACTOR, "--max-context", "512")
    assert inspect(path)[::2] == (0, [])  # clients are told 512
    assert inspect(path, "--reference", checkpoints("llama"), *FACTOR)[::2] == (0, [])
    config = json.loads((path / "genai_config.json").read_text())
    config["model"]["context_length"] = 1024
    (path / "genai_config.json").write_text(json.dumps(config))
    assert inspect(path)[::2] == (1, ["table-short"])


def test_pairs_in_another_order(edited, inspect, checkpoints):
    def interleave(editor):
        for node in editor.nodes("RotaryEmbedding"):
            kept = [attribute for attribute in node.attribute if attribute.name != "interleaved"]
            del node.attribute[:]
            node.attribute.extend([*kept, onnx.helper.make_attribute("interleaved", 1)])

    code, _, severe = inspect(edited(interleave), "--reference", checkpoints("llama"), *FACTOR)
    assert (code, severe) == (1, ["wrong-pairing"])


def turned_otherwise(editor, layers):
    """The first layers by tables of their own: plain ones."""
    names = {}
    for name in ("cos_cache", "sin_cache"):
        rows = np.array(editor.stored(name))
        pairs, count = rows.shape[1], len(rows) - 1
        angles = np.arange(count)[:, None] * 10000.0 ** (-np.arange(pairs) / pairs)
        rows[:count] = np.cos(angles) if name.startswith("cos") else np.sin(angles)
        editor.graph.initializer.append(numpy_helper.from_array(rows, f"other_{name}"))
        names[name] = f"other_{name}"
    for gather in [node for node in editor.nodes("Gather") if node.input[0] in names]:
        copy = onnx.NodeProto()
        copy.CopyFrom(gather)
        copy.name, copy.input[0] = f"{gather.name}_other", names[gather.input[0]]
        copy.output[0] = f"{gather.output[0]}_other"
        editor.graph.node.insert(list(editor.graph.node).index(gather) + 1, copy)
        for node in editor.nodes("RotaryEmbedding")[:layers]:
            for index, value in enumerate(node.input):
                if value == gather.output[0]:
                    node.input[index] = copy.output[0]


def test_one_layer_that_turns_otherwise(edited, inspect):
    _, document, severe = inspect(edited(lambda editor: turned_otherwise(editor, 1)))
    assert severe == ["tables-differ"]
    assert [group["layers"] for group in document["carried"]] == ["layers 1 to 2", "layer 0"]


def test_layers_of_two_kinds(edited, inspect, tmp_path):
    """Most have a window and turn by themselves: right where the config says so. The others are judged."""
    path = edited(lambda editor: turned_otherwise(editor, 2)).rename(tmp_path / "two")
    plain = {"rope_type": "default", "rope_theta": 10000.0}
    config = {
        "model_type": "windowed",
        "head_dim": 64,
        "max_position_embeddings": EXTENDED,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "rope_parameters": {"sliding_attention": plain, "full_attention": {**YARN, "rope_theta": 10000.0}},
    }
    (path / "config.json").write_text(json.dumps(config))
    code, document, severe = inspect(path)
    assert (code, severe, document["method"]) == (0, [], "yarn")
    all_plain = edited(lambda editor: turned_otherwise(editor, 3))
    (all_plain / "config.json").write_text(json.dumps(config))
    assert inspect(all_plain)[2] == [
        "plain-rope"
    ]  # the right tables stand there still, and nothing takes them
    config["rope_parameters"]["full_attention"]["factor"] = 8.0
    (path / "config.json").write_text(json.dumps(config))
    assert inspect(path)[0] == 1


def test_the_config_of_before_beside_an_extended_model(edited, inspect, checkpoints):
    path = edited(lambda editor: None)
    shutil.copy(checkpoints("llama") / "config.json", path / "config.json")
    code, document, severe = inspect(path)
    assert (code, severe) == (0, [])
    assert [f["code"] for f in document["findings"]] == ["config-ignored"]


def test_a_config_that_does_not_state_the_original_context(inspect, tmp_path):
    """Nobody says how far its tables should reach."""
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    from tests.support.torch_export import export_as_optimum, rope_config

    config = rope_config("linear", max_position_embeddings=EXTENDED)
    config.rope_parameters = rope
    assert inspect(export_as_optimum(config, tmp_path / "out"))[::2] == (0, [])


def test_a_record_that_lies(onnx_artefacts, inspect, tmp_path):
    editor = Editor(onnx_artefacts("llama", *FACTOR, "--dtype", "fp32"), tmp_path / "edited")
    temperature_dropped(editor)
    code, document, severe = inspect(editor.save())
    assert (code, severe) == (1, ["temperature-missing"])
    assert "its record" in document["findings"][0]["message"]


def test_for_people(onnx_artefacts, yarnconv):
    code, stdout, _ = yarnconv("inspect", onnx_artefacts("llama", *FACTOR))
    assert code == 0
    for said in ("ONNX by yarnconv", "carries up to 1024", "YaRN x4 of 256", "nothing odd was found"):
        assert said in stdout


def test_a_graph_that_turns_nothing(inspect, tmp_path):
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    values = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [4, 4]) for n in "xy"]
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "model.onnx")
    code, document, severe = inspect(tmp_path / "model.onnx")
    assert (code, severe, document["carried"]) == (0, ["tables-unknown"], [])


@pytest.mark.parametrize("method", ["dynamic-yarn", "dynamic-ntk"])
@pytest.mark.parametrize("positions", [200, 256, 300, 512, 600])
def test_tables_that_end_early_need_no_more_buckets(method, positions, onnx_artefacts, inspect):
    """A dynamic model may be made for shorter requests than its plan reaches, with what those choose from."""
    options = ("--method", method, "--factor", "4", "--max-context", positions)
    out = onnx_artefacts("llama", *map(str, options))
    code, _, severe = inspect(out)
    assert (code, severe) == (0, [])
