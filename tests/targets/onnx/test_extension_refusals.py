"""What `yarnconv onnx` refuses of an ONNX model that is there already. Nothing is left, nothing touched."""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.support.genai_builder import build
from tests.support.onnx_faults import Editor
from tests.targets.onnx.test_extension import digests, extend, graph_of, record_of  # noqa: F401 - a fixture


@pytest.fixture(scope="module")
def builders(checkpoints, tmp_path_factory):
    """What onnxruntime-genai's builder makes. Not to be edited: copy it."""
    return build(checkpoints("llama"), tmp_path_factory.mktemp("builder") / "llama", "fp32")


@pytest.fixture
def edited(builders, onnx_artefacts, tmp_path):
    """A copy of a right one to be edited: of ours, or of the builder's."""

    def make(which, *options):
        return Editor(builders if which == "builder" else onnx_artefacts("llama", *options), tmp_path / which)

    return make


# options and places


@pytest.mark.parametrize(
    "option",
    [
        ("--dtype", "fp32"),
        ("--kv", "in-place"),
        ("--dialect", "standard"),
        ("--last-token-only",),
        ("--int4-head",),
        ("--no-int4-head",),
        ("--int4-embeddings",),
        ("--link-weights",),
        ("--revision", "main"),
    ],
    ids=" ".join,
)
def test_options_of_a_conversion(option, onnx_artefacts, extend):  # noqa: F811
    stderr = extend(onnx_artefacts("llama"), "--factor", "4", *option, code=2)
    assert option[0] in stderr
    assert "no meaning" in stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "nothing is asked"),
        (("--factor", "4", "--max-context", "1025"), "target context of 1024"),
        (("--factor", "4", "--max-context", "1"), "--max-context"),
        (("--target-context", "100"), "below the original context"),
    ],
    ids=str,
)
def test_what_cannot_be_asked(options, message, onnx_artefacts, extend):  # noqa: F811
    assert message in extend(onnx_artefacts("llama"), *options, code=2)


def test_destinations(onnx_artefacts, yarnconv, tmp_path, monkeypatch):
    model = tmp_path / "models" / "mine"
    shutil.copytree(onnx_artefacts("llama"), model)
    before = digests(model)
    monkeypatch.chdir(tmp_path)
    for destination in (model, model / "inside", model.parent, tmp_path, ".", model / "model.onnx"):
        for source in (model, model / "model.onnx"):
            code, _, stderr = yarnconv("onnx", source, "--factor", "4", "-o", destination, "--force")
            assert code == 2, destination
            assert "the destination" in stderr
    assert digests(model) == before
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_force(onnx_artefacts, yarnconv, tmp_path):
    """An older artefact gives way; what it was linked to does not."""
    source, out = onnx_artefacts("llama"), tmp_path / "out"
    before = digests(source)
    for factor in ("2", "4"):
        assert yarnconv("onnx", source, "--factor", factor, "-o", out, "--force")[0] == 0
    assert record_of(out)["factor"] == 4.0
    assert yarnconv("onnx", source, "--factor", "4", "-o", out)[0] == 2
    assert digests(source) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_where_links_do_not_reach(onnx_artefacts, yarnconv):
    source, memory = onnx_artefacts("llama"), Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == source.stat().st_dev:
        pytest.skip("there is no other file system")
    with tempfile.TemporaryDirectory(dir=memory) as other:
        out = Path(other) / "out"
        code, stdout, _ = yarnconv("onnx", source, "--factor", "4", "-o", out)
        assert code == 0
        assert "copies" in stdout
        assert (out / "model.onnx.data").read_bytes() == (source / "model.onnx.data").read_bytes()


def test_a_full_disk_is_noticed_before_writing(onnx_artefacts, extend, monkeypatch):  # noqa: F811
    usage, artefact = shutil.disk_usage("/"), onnx_artefacts("llama")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert "are free" in extend(artefact, "--factor", "4", code=2)


# what the tables and their record say


@pytest.mark.parametrize("which", ["ours", "builder"])
def test_a_table_one_position_short(which, edited, extend):  # noqa: F811
    editor = edited(which)
    for name in editor.tables:
        rows = np.array(editor.stored(name))
        short = np.concatenate([rows[:-2], rows[-1:]]) if which == "ours" else rows[:-1]
        editor.tensors[name].CopyFrom(numpy_helper.from_array(short, name))
    stderr = extend(editor.save(), "--factor", "4", code=3 if which == "ours" else 2)
    assert "look rows up" in stderr if which == "ours" else "end after 255 positions" in stderr


@pytest.mark.parametrize("which", ["ours", "builder"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_table_with_no_number_in_it(which, value, edited, extend):  # noqa: F811
    editor = edited(which)
    editor.stored("sin_cache")[100, 3] = value
    assert "no number at position 100" in extend(editor.save(), "--factor", "4", code=2)


@pytest.mark.parametrize("shape", [(256 * 32,), (1, 32), (64, 4, 32), (128, 32), (0, 32)], ids=str)
def test_tables_of_an_odd_shape(shape, edited, extend):  # noqa: F811
    editor = edited("builder")
    values = np.resize(np.array(editor.stored("cos_cache")), shape)
    editor.tensors["cos_cache"].CopyFrom(numpy_helper.from_array(values, "cos_cache"))
    extend(editor.save(), "--factor", "4", code=2)
    if shape == (128, 32):
        return  # alike they are half a table, which the next test's are
    editor.tensors["sin_cache"].CopyFrom(numpy_helper.from_array(values, "sin_cache"))
    extend(editor.save(), "--factor", "4", code=2)


@pytest.mark.parametrize("which", ["ours", "builder"])
def test_one_value_that_is_another(which, edited, extend):  # noqa: F811
    editor = edited(which)
    editor.stored("cos_cache")[200, 20] += 1e-4
    assert "the first position that differs is 200" in extend(editor.save(), "--factor", "4", code=3)


def rewrite_record(editor, **changes):
    recorded = next(p for p in editor.model.metadata_props if p.key == "yarnconv.plan")
    recorded.value = json.dumps({**json.loads(recorded.value), **changes})


def test_a_record_that_lies_is_not_believed(edited, yarnconv, check, checkpoints, tmp_path):
    """Its tables are plain, whatever it says, and the extension is one of plain RoPE."""
    editor = edited("ours")
    rewrite_record(editor, rope_options={"factor": 2.0})
    out = tmp_path / "out"
    code, stdout, _ = yarnconv("onnx", editor.save(), "--factor", "4", "-o", out)
    assert code == 0
    assert "Not believed: its record" in stdout
    assert check(out, checkpoints("llama"), "--factor", "4")[0] == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"graph": None},
        {"rope_options": {"factor": "2"}},
        {"config": {"model_type": "llama"}},
        {"config": None, "original_context": 1e400},
        {"config": None, "rope_parameters": {"rope_type": "yarn", "factor": -1}},
    ],
    ids=str,
)
def test_records_of_nonsense(changes, edited, extend):  # noqa: F811
    editor = edited("ours", "--factor", "2")
    rewrite_record(editor, **changes)
    assert "nothing names exactly" in extend(editor.save(), "--factor", "2", code=3)


def test_a_record_that_is_no_json(edited, extend, checkpoints, check):  # noqa: F811
    editor = edited("ours")
    next(p for p in editor.model.metadata_props if p.key == "yarnconv.plan").value = "{"
    out = extend(editor.save(), "--factor", "4")
    assert check(out, checkpoints("llama"), "--factor", "4")[0] == 0


def test_a_client_that_is_told_nonsense(edited, extend):  # noqa: F811
    editor = edited("builder")
    path = editor.directory / "genai_config.json"
    config = json.loads(path.read_text())
    config["model"]["context_length"] = "long"
    path.write_text(json.dumps(config))
    assert "no number of positions" in extend(editor.directory, "--factor", "4", code=2)


# graphs


def insert(editor, *nodes):
    kept = [*nodes, *editor.graph.node]
    del editor.graph.node[:]
    editor.graph.node.extend(kept)


def test_caches_that_are_computed_at_run_time(edited, extend):  # noqa: F811
    editor = edited("builder")
    angles = numpy_helper.from_array(np.ones((256, 32), np.float32), "angles")
    kept = [t for t in editor.graph.initializer if "cache" not in t.name]
    del editor.graph.initializer[:]
    editor.graph.initializer.extend([*kept, angles])
    insert(
        editor,
        helper.make_node("Cos", ["angles"], ["cos_cache"]),
        helper.make_node("Sin", ["angles"], ["sin_cache"]),
    )
    assert "computed at run time" in extend(editor.save(), "--factor", "4", code=3)


def test_two_caches_by_length(edited, extend):  # noqa: F811
    editor = edited("builder")
    branches = []
    for name in ("short", "long"):
        made = [
            helper.make_node("Identity", [f"{which}_table"], [f"{name}_{which}"]) for which in ("cos", "sin")
        ]
        outputs = [helper.make_tensor_value_info(n.output[0], TensorProto.FLOAT, None) for n in made]
        branches.append(helper.make_graph(made, name, [], outputs))
    for which in ("cos", "sin"):
        editor.tensors[f"{which}_cache"].name = f"{which}_table"
    editor.graph.initializer.append(numpy_helper.from_array(np.array(True), "is_long"))
    insert(
        editor,
        helper.make_node(
            "If", ["is_long"], ["cos_cache", "sin_cache"], then_branch=branches[1], else_branch=branches[0]
        ),
    )
    assert "two caches" in extend(editor.save(), "--factor", "4", code=3)


def test_layers_of_several_caches(edited, extend):  # noqa: F811
    editor = edited("builder")
    for which in ("cos", "sin"):
        other = onnx.TensorProto()
        other.CopyFrom(editor.tensors[f"{which}_cache"])
        other.name = f"{which}_local"
        editor.graph.initializer.append(other)
    node = editor.nodes("GroupQueryAttention")[1]
    node.input[7:9] = ["cos_local", "sin_local"]
    assert "2 different pairs" in extend(editor.save(), "--factor", "4", code=3)


def test_a_graph_that_does_not_rotate(edited, extend):  # noqa: F811
    editor = edited("builder")
    for node in editor.nodes("GroupQueryAttention"):
        next(a for a in node.attribute if a.name == "do_rotary").i = 0
    assert "nothing in it rotates" in extend(editor.save(), "--factor", "4", code=3)


def test_a_cache_that_something_else_takes(edited, extend):  # noqa: F811
    editor = edited("builder")
    insert(editor, helper.make_node("Shape", ["cos_cache"], ["reach"]))
    editor.graph.output.append(helper.make_tensor_value_info("reach", TensorProto.INT64, [2]))
    assert "taken by Shape" in extend(editor.save(), "--factor", "4", code=3)


def test_a_lookup_that_is_not_ours(edited, extend):  # noqa: F811
    """Positions that are moved by one on their way."""
    editor = edited("ours")
    node = next(n for n in editor.nodes("Add") if n.input[0] == "position_ids")
    node.input[1] = editor.constant([1])
    assert "does not look rows up" in extend(editor.save(), "--factor", "4", code=3)


def test_one_table_cannot_follow_requests(builders, extend):  # noqa: F811
    stderr = extend(builders, "--factor", "4", "--method", "dynamic-yarn", code=3)
    assert "cannot follow the context" in stderr


def test_a_narrow_window_is_told_and_kept(edited, yarnconv, tmp_path):
    editor, out = edited("builder"), tmp_path / "out"
    for node, softcap in zip(editor.nodes("GroupQueryAttention"), (0.0, 30.0, 50.0), strict=True):
        next(a for a in node.attribute if a.name == "local_window_size").i = 64
        next(a for a in node.attribute if a.name == "softcap").f = softcap
    code, stdout, _ = yarnconv("onnx", editor.save(), "--factor", "4", "-o", out)
    assert code == 0
    assert "looks back over 64 positions" in stdout
    assert graph_of(out).graph.node == editor.graph.node


# strangers' files


@pytest.mark.parametrize("location", ["../data", "/etc/passwd", "a/b", "..", "missing"])
def test_data_outside_the_directory(location, edited, extend):  # noqa: F811
    editor = edited("builder")
    place = editor.tensors["model.layers.0.input_layernorm.weight"].external_data
    next(entry for entry in place if entry.key == "location").value = location
    extend(editor.save(), "--factor", "4", code=2)


def test_data_of_two_places(edited, extend):  # noqa: F811
    editor = edited("builder")
    place = editor.tensors["model.layers.0.input_layernorm.weight"].external_data
    place.insert(0, onnx.StringStringEntryProto(key="location", value="../outside"))
    assert "twice" in extend(editor.save(), "--factor", "4", code=2)


@pytest.mark.parametrize(
    "name", ["genai_config.json", "README.md", "check.yml", "model.onnx", "model.onnx.tables"]
)
def test_data_under_a_name_that_is_written_to(name, edited, extend):  # noqa: F811
    """A hard link of that name would let the source be overwritten."""
    editor = edited("builder")
    place = editor.tensors["model.layers.0.input_layernorm.weight"].external_data
    if name == "model.onnx.tables":
        shutil.copy(editor.directory / "model.onnx.data", editor.directory / name)
    for entry in place:
        if entry.key == "location":
            entry.value = name
        if entry.key == "offset":
            entry.value = "0" if "tables" not in name else entry.value
    editor.save()
    for text in ("genai_config.json", "README.md", "check.yml"):
        path = editor.directory / text
        path.write_text((path.read_text() if path.exists() else "") + " " * 1024)
    assert "a name that is taken" in extend(editor.directory, "--factor", "4", code=2)


@pytest.mark.parametrize("keep", [0, 1, 100, 5000])
def test_truncated_files(keep, edited, extend):  # noqa: F811
    for which in ("ours", "builder"):
        editor = edited(which)
        path = editor.directory / "model.onnx"
        path.write_bytes(path.read_bytes()[:keep])
        extend(editor.directory, "--factor", "4", code=2)


@pytest.mark.parametrize("old", [b"cos_cache", b"model.onnx.data", b"position_ids", b"yarnconv.plan"])
def test_names_that_are_no_text(old, edited, extend):  # noqa: F811
    editor = edited("ours")
    path = editor.directory / "model.onnx"
    path.write_bytes(path.read_bytes().replace(old, b"\xff" + old[1:]))
    assert "no text" in extend(editor.directory, "--factor", "4", code=2)


def test_links_out_of_the_directory_are_left_out(edited, extend, tmp_path):  # noqa: F811
    editor = edited("builder")
    secret = tmp_path / "secret"
    secret.write_text("mine")
    (editor.directory / "extra.json").symlink_to(secret)
    (editor.directory / "code.py").write_text("")
    out = extend(editor.directory, "--factor", "4")
    assert not (out / "extra.json").exists()
    assert not (out / "code.py").exists()


def test_several_models_together(edited, extend):  # noqa: F811
    editor = edited("builder")
    shutil.copy(editor.directory / "model.onnx", editor.directory / "vision.onnx")
    assert "in one piece" in extend(editor.directory, "--factor", "4", code=2)
