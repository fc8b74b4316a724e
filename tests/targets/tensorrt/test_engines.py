"""Engines that TensorRT-RTX builds without a GPU: what is in them is the plan, and what is not is refused."""

import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.support.onnx_faults import DYNAMIC_FAULTS, FAULTS, Editor
from tests.support.selection import product
from yarnconv.checkpoint.mapped_file import MappedFile
from yarnconv.targets.tensorrt.engine_bytes import find_array

pytest.importorskip("tensorrt_rtx", reason="there are wheels for Linux and Windows on x86-64 only")

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
YARN = ("--factor", "4")
METHODS = {
    "yarn": YARN,
    "dynamic-yarn": (*YARN, "--method", "dynamic-yarn"),
    "linear": (*YARN, "--method", "linear"),
}


def cases():
    """Every method in every dtype, the families in turn."""
    return product(FAMILIES, ("fp16", "bf16"), METHODS, meet=[(1, 2)])


def stored_tables(directory):
    """The tables of the graph that was parsed, as the onnx package reads them."""
    model = onnx.load(directory / "model.onnx", load_external_data=False)
    found = {}
    for tensor in model.graph.initializer:
        if tensor.name.startswith(("cos_cache", "sin_cache")):
            place = {entry.key: entry.value for entry in tensor.external_data}
            data = directory / place["location"]
            offset, count = int(place["offset"]), int(np.prod(tensor.dims))
            found[tensor.name] = np.fromfile(data, "<f4", count, offset=offset).reshape(tensor.dims)
    return found


@pytest.mark.parametrize(("family", "dtype", "method"), list(cases()))
def test_engine_carries_the_plan(family, dtype, method, engines, checkpoints, check):
    """The read-back agrees, every table stands in the engine once, the parsed graph has the reference's
    logits in every bucket and beyond the original context; nobody ran the engine, and `check` says so."""
    directory, document = engines(family, *METHODS[method], "--dtype", dtype)
    assert all(fact["agrees"] for fact in document["read_back"])
    kinds = [fact["key"] for fact in document["read_back"]]
    assert sum(key.startswith("rotation of layer") for key in kinds) == 3
    assert sum(key.startswith("attention of layer") for key in kinds) == 3
    positions = {"dynamic-yarn": [255, 511, 1023]}.get(method, [1023])
    assert [int(key.split()[-1]) for key in kinds if "positions 0 to" in key] == positions
    tables = stored_tables(directory)
    assert len(tables) == 2
    file = MappedFile(directory / "model.engine")
    for name, values in tables.items():
        assert len(find_array(file, values)) == 1, name
    file.close()
    code, report, stderr = check(directory, checkpoints(family), *METHODS[method])
    assert code == 5, report["reasons"] if report else stderr
    verdicts = {"structure": "not_judged", "weights": "not_judged", "metadata": "holds"}
    assert report["verdicts"] == verdicts, report["reasons"]
    reason = report["reasons"]["structure"]
    assert reason.startswith("the graph that was parsed holds")
    assert "the engine was not executed" in reason
    assert report["remark"] == "all that can be seen without running the engine agrees"
    count = report["reasons"]["weights"].split()
    assert count[0] == count[2]  # n of n tensors stand in it; in which place nobody knows
    assert max(window["last"] for window in report["windows"]) == 1023
    assert {window["phase"] for window in report["windows"]} == {"prefill", "decode"}
    assert len({window["bucket"] for window in report["windows"]}) == len(positions)


@pytest.mark.parametrize("method", ["yarn", "dynamic-yarn"])
def test_a_long_past(method, yarnconv, checkpoints, tmp_path):
    """A decode profile of 131072 past tokens builds, and tables that long stand in the engine once: not once
    for each layer."""
    out = tmp_path / "engine"
    options = ("--factor", "513", "--method", method, "--json")
    code, stdout, stderr = yarnconv("trt", checkpoints("llama"), *options, "-o", out)
    assert code == 0, stderr
    engine = json.loads(stdout)["engine"]
    assert engine["profiles"][1]["past_tokens"][2] == 131327
    rows = 131328 + 1 if method == "yarn" else sum(engine["graph"]["bucket_contexts"]) + 1
    assert [(table["rows"], len(table["offsets"])) for table in engine["tables"]] == [(rows, 1), (rows, 1)]
    tables = stored_tables(out)
    assert engine["engine"]["bytes"] < sum(values.nbytes for values in tables.values()) + 12 * 10**6


# fault of the graph -> what the read-back must say of it
READ_BACK = {
    "temperature dropped": "attention factor 1,",
    "table of factor 3.9": "frequencies off by",
    "plain tables": "frequencies off by",
    "table off by one row": "the first position that differs is",
    "table one position short": "1023 positions",
    "fp16 table": "FLOAT16",
    "rows of the tables rounded to bfloat16": "rounded to BFLOAT16",
    "pairing swapped in layer 2, which is not run": "rotation of layer 2",
    "attention scale of layer 2": "attention of layer 2",
}


def one_layers_table(editor):
    """The last layer alone rotates by tables of its own, without the temperature."""
    gathers = {node.output[0]: node for node in editor.nodes("Gather") if node.input[0] in editor.tables}
    last = editor.nodes("RotaryEmbedding")[-1]
    for index in (1, 2):
        node = gathers[last.input[index]]
        values = np.array(editor.stored(node.input[0])) / np.float32(1.1386294)
        other = helper.make_node("Gather", [editor.constant(values), node.input[1]], [f"own_{index}"], axis=0)
        editor.graph.node.insert(list(editor.graph.node).index(node), other)
        last.input[index] = f"own_{index}"


def upper_left_causal(editor):
    """TensorRT takes it without a word: wrong beside a cache."""
    for node in editor.nodes("Attention"):
        del node.input[3:]
        node.attribute.append(helper.make_attribute("is_causal", 1))


def no_mask(editor):
    for node in editor.nodes("Attention"):
        del node.input[3:]


def baked_context(editor):
    """The graph takes rope_context, and nothing depends on it."""
    node = next(n for n in editor.nodes("Unsqueeze") if n.input[0] == "rope_context")
    node.input[0] = editor.constant(np.array(1024))


def _behind(editor, node, output, operator, *inputs, **attributes):
    """A node that takes what `node` makes and makes it for everybody else."""
    value = node.output[output]
    node.output[output] = f"{value}_before"
    made = helper.make_node(
        operator, [node.output[output], *inputs], [value], name=f"added_{value}", **attributes
    )
    editor.graph.node.insert(list(editor.graph.node).index(node) + 1, made)


def turned_again(editor):
    """The last layer's queries and keys, a second time."""
    last = editor.nodes("RotaryEmbedding")[-1]
    attributes = {a.name: helper.get_attribute_value(a) for a in last.attribute}
    _behind(editor, last, 0, "RotaryEmbedding", *last.input[1:], **attributes)


def turned_values(editor):
    rotation = editor.nodes("RotaryEmbedding")[0]
    value = next(n for n in editor.nodes("Concat") if n.output[0] == "present.0.value")
    wide, turned = "wide_values", "turned_values"
    made = [
        helper.make_node("Cast", [value.input[1]], [wide], to=onnx.TensorProto.FLOAT),
        helper.make_node("RotaryEmbedding", [wide, *rotation.input[1:]], [turned], interleaved=0),
        helper.make_node("Cast", [turned], ["narrow_values"], to=onnx.TensorProto.FLOAT16),
    ]
    place = list(editor.graph.node).index(value)
    value.input[1] = "narrow_values"
    for node in reversed(made):
        editor.graph.node.insert(place, node)


def sine_of_another_row(editor):
    sine = next(n for n in editor.nodes("Gather") if n.input[0].startswith("sin_cache"))
    zeros = helper.make_node("Sub", [sine.input[1], sine.input[1]], ["row_zero"])
    editor.graph.node.insert(list(editor.graph.node).index(sine), zeros)
    sine.input[1] = "row_zero"


def positions_through_bfloat16(editor):
    for node in [n for n in editor.nodes("Gather") if n.input[0] in editor.tables]:
        place, name = list(editor.graph.node).index(node), f"rounded_{node.output[0]}"
        narrow = helper.make_node("Cast", [node.input[1]], [f"{name}_narrow"], to=onnx.TensorProto.BFLOAT16)
        wide = helper.make_node("Cast", [f"{name}_narrow"], [name], to=onnx.TensorProto.INT64)
        node.input[1] = name
        editor.graph.node.insert(place, wide)
        editor.graph.node.insert(place, narrow)


OF_TENSORRT = {
    "turned twice": (turned_again, YARN, "rotated 2 and 2 and 0 times, not 1 and 1 and 0"),
    "values turned": (turned_values, YARN, "rotated 1 and 1 and 1 times"),
    "sine of another row": (sine_of_another_row, YARN, "computed in the graph"),
    "positions through bfloat16": (positions_through_bfloat16, YARN, "rounded to BFLOAT16"),
    "one layer's table": (one_layers_table, YARN, "the first position that differs is 0"),
    "upper-left causal": (upper_left_causal, YARN, "masked from the upper left"),
    "no mask": (no_mask, YARN, "not masked"),
    "baked rope_context": (baked_context, METHODS["dynamic-yarn"], "rope_context is unused or baked in"),
}


def without_digest(editor):
    """As an edit that nobody would notice by the digest of the data."""
    entry = next(p for p in editor.model.metadata_props if p.key == "yarnconv.plan")
    record = json.loads(entry.value)
    del record["data_digest"]
    entry.value = json.dumps(record)


@pytest.fixture
def built_of(yarnconv, onnx_artefacts, tmp_path):
    """Edit a concat-form ONNX model and build an engine of it: (exit code, stderr)."""

    def run(edit, family, options, dtype="fp16"):
        editor = Editor(
            onnx_artefacts(family, *options, "--dtype", dtype, "--kv", "concat"), tmp_path / "edited"
        )
        edit(editor)
        without_digest(editor)
        code, _, stderr = yarnconv("trt", editor.save(), "-o", tmp_path / "engine")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["edited"] or code == 0
        return code, " ".join(stderr.split())

    return run


@pytest.mark.parametrize("fault", READ_BACK)
def test_a_faulty_graph_is_read_back(fault, built_of):
    edit, _ = {**FAULTS, **DYNAMIC_FAULTS}[fault]
    code, said = built_of(edit, "llama", YARN)
    assert code == 1, said
    assert READ_BACK[fault] in said


@pytest.mark.parametrize("fault", OF_TENSORRT)
def test_what_tensorrt_takes_without_a_word(fault, built_of):
    edit, options, expected = OF_TENSORRT[fault]
    code, said = built_of(edit, "llama", options)
    assert code == 1, said
    assert expected in said


def test_an_unharmed_graph_is_built(built_of):
    assert built_of(lambda editor: None, "llama", YARN)[0] == 0


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("method", METHODS)
def test_on_a_gpu_the_engine_itself_holds(method, dtype, gpu, engines, checkpoints, check):
    """Executed in every bucket, prefill and decode, and held to what its type does to the reference."""
    directory, _ = engines("llama", *METHODS[method], "--dtype", dtype, "--compute-capability", gpu)
    code, report, stderr = check(directory, checkpoints("llama"), *METHODS[method])
    assert code == 0, report["reasons"] if report else stderr
    assert {window["phase"] for window in report["as_is"]["windows"]} == {"prefill", "decode"}
    assert "tensorrt-rtx" in report["runtime"]["version"]


@pytest.mark.gpu
def test_on_a_gpu_another_engine_fails(gpu, engines, checkpoints, check, tmp_path):
    """An engine without the temperature in the place of a right one, every digest and place made right."""
    right, _ = engines("llama", *YARN, "--dtype", "fp16", "--compute-capability", gpu)
    options = ("--factor", "4", "--method", "ntk-by-parts", "--dtype", "fp16", "--compute-capability", gpu)
    wrong, _ = engines("llama", *options)
    directory = shutil.copytree(right, tmp_path / "engine")
    shutil.copy(wrong / "model.engine", directory / "model.engine")
    document, other = (json.loads((d / "yarnconv.json").read_text()) for d in (right, wrong))
    document |= {key: other[key] for key in ("engine", "tables")}
    (directory / "yarnconv.json").write_text(json.dumps(document))
    code, report, _ = check(directory, checkpoints("llama"), *YARN)
    assert code == 1
    assert report["verdicts"]["structure"] == "fails"
