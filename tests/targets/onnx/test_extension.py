"""`yarnconv onnx` of an ONNX model that is there already: only its tables change, and it is proved again."""

import hashlib
import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.parity.onnx_requests import tokens
from tests.parity.test_llama_cpp import FAMILIES, YARN
from tests.parity.test_onnx_runtime import TOLERANCE, stored_weights
from tests.support.genai_builder import BuilderModel, build, dequantised_weights, in_float32
from tests.support.markdown import assert_tidy
from tests.support.models import make_checkpoint, reference_logits, relative_error
from tests.support.onnx_runtime import OnnxModel
from tests.support.selection import product


def digests(directory):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in directory.iterdir()}


def graph_of(directory):
    return onnx.load(directory / "model.onnx", load_external_data=False)


def unlinked(directory):
    """A copy, because the onnx package does not load what is hard-linked."""
    copy = directory.with_name(f"{directory.name}-unlinked")
    shutil.rmtree(copy, ignore_errors=True)
    return shutil.copytree(directory, copy)


def tables(directory):
    model = onnx.load(unlinked(directory) / "model.onnx")
    return {
        t.name: numpy_helper.to_array(t)
        for t in model.graph.initializer
        if t.name in {"cos_cache", "sin_cache"}
    }


def record_of(directory):
    return json.loads({p.key: p.value for p in graph_of(directory).metadata_props}["yarnconv.plan"])


@pytest.fixture
def extend(yarnconv, tmp_path):
    """Extend a directory, which stays as it was; the new one."""

    def run(source, *options, name="extended", code=0):
        out, before = tmp_path / name, digests(source)
        found, stdout, stderr = yarnconv("onnx", source, *options, "-o", out)
        assert found == code, stderr or stdout
        assert digests(source) == before
        if code:
            assert not out.exists()
            assert not list(tmp_path.glob(".*"))
            return stderr
        return out

    return run


@pytest.fixture(scope="module")
def built(checkpoints, tmp_path_factory):
    """(family, precision, provider) -> what the builder makes of it, once. Not to be edited."""
    root, made = tmp_path_factory.mktemp("builder"), {}

    def get(family, precision, provider="cpu"):
        key = (family, precision, provider)
        if key not in made:
            made[key] = build(checkpoints(family), root / "-".join(key), precision, provider)
        return made[key]

    return get


# what this tool wrote


@pytest.mark.parametrize(
    ("family", "dtype", "kv"),
    list(product(FAMILIES, ("fp32", "fp16", "int4"), ("in-place", "concat"), meet=[(0, 1), (1, 2)])),
)
def test_a_plain_model_of_ours(family, dtype, kv, checkpoints, onnx_artefacts, extend, check):
    source = onnx_artefacts(family, "--dtype", dtype, "--kv", kv)
    out = extend(source, "--factor", "4")
    assert (out / "model.onnx.data").samefile(source / "model.onnx.data")
    weights = stored_weights(unlinked(out), checkpoints(family)) if dtype == "int4" else None
    wanted = reference_logits(checkpoints(family), tokens(700), YARN, weights=weights)
    assert relative_error(OnnxModel(out).run(tokens(700), capacity=1024), wanted) <= TOLERANCE[dtype]
    code, report, stderr = check(out, checkpoints(family), "--factor", "4")
    assert code == 0, stderr or report
    # what it says of itself is enough for the check too
    assert record_of(out)["rope_options"]["factor"] == 4.0
    assert check(out, checkpoints(family))[0] == 0


def test_twice_is_once(onnx_artefacts, extend):
    """The same tables bit for bit as by the product, and as the writer's from the checkpoint."""
    source = onnx_artefacts("llama")
    once = extend(source, "--factor", "6", name="once")
    twice = extend(extend(source, "--factor", "2", name="half"), "--factor", "3", name="twice")
    for name, table in tables(onnx_artefacts("llama", "--factor", "6")).items():
        assert table.tobytes() == tables(once)[name].tobytes() == tables(twice)[name].tobytes()
    assert record_of(once) == {**record_of(twice), "warnings": record_of(once)["warnings"]}
    assert {p.name for p in twice.iterdir()} == {p.name for p in once.iterdir()}
    assert len(graph_of(once).graph.node) == len(graph_of(source).graph.node)


# what a model carries, what is asked for on top of it, and what it is then
ON_TOP = [
    (("--factor", "2"), ("--factor", "2"), ("--factor", "4")),
    (("--factor", "2"), ("--factor", "4", "--original-context", "256"), ("--factor", "4")),
    (("--factor", "2"), ("--target-context", "1024"), ("--factor", "4")),
    (("--factor", "4"), ("--method", "none"), ("--method", "none")),
    (("--factor", "4"), ("--attention-factor", "1.3"), ("--factor", "4", "--attention-factor", "1.3")),
    (
        ("--factor", "2", "--beta-fast", "16"),
        ("--factor", "2"),
        ("--factor", "4", "--beta-fast", "16"),
    ),
    (("--method", "linear", "--factor", "2"), ("--factor", "2"), ("--factor", "4")),
    ((), ("--factor", "4", "--max-context", "700"), ("--factor", "4", "--max-context", "700")),
    ((), ("--method", "dynamic-ntk", "--factor", "4"), ("--method", "dynamic-ntk", "--factor", "4")),
]


@pytest.mark.parametrize(("case", "kv"), list(product(ON_TOP, ("in-place", "concat"), meet=[])), ids=str)
def test_on_top_of_what_it_carries(case, kv, checkpoints, onnx_artefacts, extend, check):
    own, more, check_options = case
    out = extend(onnx_artefacts("qwen3", "--kv", kv, *own), *more)
    code, report, stderr = check(out, checkpoints("qwen3"), *check_options)
    assert code == 0, stderr or report
    assert check(out, checkpoints("qwen3"))[0] == 0
    onnx.checker.check_model(unlinked(out) / "model.onnx", full_check=True)


@pytest.mark.parametrize(
    ("overrides", "own", "more", "check_options"),
    [
        ({"max_position_embeddings": 40960}, (), ("--factor", "2"), ("--factor", "2")),
        (
            {"max_position_embeddings": 40960},
            (),
            ("--factor", "2", "--no-profile"),
            ("--factor", "2", "--no-profile"),
        ),
        (
            {"rope_parameters": {"rope_theta": 10000.0, **YARN, "factor": 2.0}},
            (),
            ("--factor", "2"),
            ("--factor", "4"),
        ),
        (
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 10000.0,
                    "factor": 2.0,
                    "original_max_position_embeddings": 128,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                }
            },
            (),
            ("--factor", "2", "--original-context", "256"),
            ("--factor", "2", "--original-context", "256"),
        ),
        ({}, ("--factor", "2", "--max-context", "300"), ("--factor", "2"), ("--factor", "4")),
        ({}, ("--factor", "2", "--max-context", "300"), ("--max-context", "512"), ("--factor", "2")),
    ],
    ids=str,
)
def test_checkpoints_of_other_kinds(
    overrides, own, more, check_options, checkpoints, yarnconv, extend, check, tmp_path
):
    """What is recorded of the checkpoint counts: profiles, and scalings of its own."""
    directory = make_checkpoint(tmp_path / "model", "qwen3", **overrides)
    assert yarnconv("onnx", directory, *own, "-o", tmp_path / "source")[0] == 0
    out = extend(tmp_path / "source", *more)
    code, report, stderr = check(out, directory, *check_options)
    assert code == 0, stderr or report
    assert check(out, directory)[0] == 0


def test_linked_weights(checkpoints, onnx_artefacts, extend, check):
    source = onnx_artefacts("llama", "--link-weights")
    out = extend(source, "--factor", "4")
    assert (out / "model.safetensors").samefile(checkpoints("llama") / "model.safetensors")
    assert not (out / "model.onnx.data").exists()  # which held nothing but the tables
    assert "data_digest" not in record_of(out)
    assert check(out, checkpoints("llama"), "--factor", "4")[0] == 0


def test_from_where_files_are_links_to_blobs(onnx_artefacts, extend, check, checkpoints, tmp_path):
    """As in the Hub's cache."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    shutil.copytree(onnx_artefacts("llama"), blobs)
    snapshot.mkdir()
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(path)
    out = extend(snapshot, "--factor", "4")
    assert not any(path.is_symlink() for path in out.iterdir())
    assert (out / "model.onnx.data").samefile(blobs / "model.onnx.data")
    assert check(out, checkpoints("llama"), "--factor", "4")[0] == 0


def test_bfloat16_tables_are_rounded_once():
    """Between two of them, and a little above the middle: float32 on the way would land on the middle."""
    from yarnconv.targets.onnx.rope import _rounded

    middle = 1.0 + 2.0**-8
    values = np.array([middle, middle + 2.0**-30, middle - 2.0**-30, 3 * 2.0**-8 + 1.0, 0.0, -middle])
    wanted = np.array([1.0, 1.0 + 2.0**-7, 1.0, 1.0 + 2.0**-6, 0.0, -1.0], np.float32)
    found = (_rounded(values, "BFLOAT16").astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(found, wanted)


DYNAMIC = ("--method", "dynamic-yarn")


BUCKETS = {
    "to": ((), (*DYNAMIC, "--factor", "4"), (*DYNAMIC, "--factor", "4")),
    "further": ((*DYNAMIC, "--factor", "2"), (*DYNAMIC, "--factor", "3"), (*DYNAMIC, "--factor", "6")),
    "from": ((*DYNAMIC, "--factor", "4"), ("--method", "yarn"), ("--factor", "4")),
}
FORMS = (("--kv", "in-place"), ("--kv", "concat"), ("--dialect", "ort-cuda"))


@pytest.mark.parametrize(("case", "form"), list(product(BUCKETS, FORMS, meet=[])))
def test_buckets(case, form, checkpoints, onnx_artefacts, extend, check):
    own, more, check_options = BUCKETS[case]
    out = extend(onnx_artefacts("llama", *form, *own), *more)
    code, report, stderr = check(out, checkpoints("llama"), *check_options)
    assert code == 0, stderr or report
    names = {i.name for i in graph_of(out).graph.input}
    assert ("rope_context" in names) == ("concat" in form and "dynamic-yarn" in more)


def test_what_stands_beside(onnx_artefacts, extend, yarnconv):
    import subprocess
    import sys

    source = onnx_artefacts("llama")
    out = extend(source, "--factor", "4")
    assert {p.name for p in out.iterdir()} == {"model.onnx.tables", *(p.name for p in source.iterdir())}
    before, after = (json.loads((d / "genai_config.json").read_text()) for d in (source, out))
    assert (after["model"].pop("context_length"), after["search"].pop("max_length")) == (1024, 256)
    assert (before["model"].pop("context_length"), before["search"].pop("max_length")) == (256, 256)
    assert after == before
    card = (out / "README.md").read_text()
    assert "extended from 256 to 1024 positions" in card
    assert "with the weights of an ONNX model" in card
    command = [sys.executable, out / "generate.py", "abc", "--max-new-tokens", "400"]
    assert subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.parametrize("form", [(), ("--dialect", "ort-cuda"), ("--kv", "concat", "--dtype", "int4")])
@pytest.mark.parametrize("method", ["yarn", "dynamic-yarn"])
def test_a_card_of_ours_is_that_of_a_conversion(method, form, onnx_artefacts, extend):
    """Line by line, but for the title and for where it comes from."""
    options = ("--method", method, "--factor", "4")
    written = (onnx_artefacts("llama", *form, *options) / "README.md").read_text().splitlines()
    card = (extend(onnx_artefacts("llama", *form), *options) / "README.md").read_text()
    assert_tidy(card)
    different = [pair for pair in zip(written[1:], card.splitlines()[1:], strict=True) if len({*pair}) > 1]
    assert [pair[0].split(" ")[0] for pair in different if "yarnconv check" not in pair[0]] == ["A"]


def test_json(onnx_artefacts, yarnconv, tmp_path):
    out = tmp_path / "out"
    code, stdout, _ = yarnconv("onnx", onnx_artefacts("llama"), "--factor", "4", "-o", out, "--json")
    assert code == 0
    report = json.loads(stdout)
    assert report["plan"]["target_context"] == 1024
    assert report["outtype"] == "fp32"
    assert {file["path"] for file in report["files"]} == {str(path) for path in out.iterdir()}
    assert report["files"][0]["path"] == str(out / "model.onnx")


def test_the_name_says_what_it_holds(onnx_artefacts, yarnconv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "tiny-yarn-x2-fp32-onnx"
    shutil.copytree(onnx_artefacts("llama", "--factor", "2"), source)
    assert yarnconv("onnx", source, "--factor", "2")[0] == 0
    assert (tmp_path / "tiny-yarn-x4-fp32-onnx" / "model.onnx").exists()


def test_it_builds_an_engine_as_one_of_the_checkpoint_does(onnx_artefacts, extend):
    """The tables' own file is no strange weights, and the digest is still that of the data."""
    from yarnconv.rope.request import RopeRequest
    from yarnconv.targets.onnx.reader import open_onnx
    from yarnconv.targets.tensorrt.source import from_onnx

    out = extend(onnx_artefacts("llama", "--kv", "concat", "--dtype", "fp16"), "--factor", "4")
    with open_onnx(out) as artefact:
        source = from_onnx(artefact, RopeRequest(), 1)
    assert source.notes == ()
    assert source.rope.target_context == 1024


# what onnxruntime-genai's builder wrote


@pytest.mark.parametrize(("family", "precision"), list(product(FAMILIES, ("fp32", "int4"), meet=[])))
def test_a_model_of_the_builders(family, precision, checkpoints, built, extend):
    """Prefilled up to the original context, decoded across it and to 300; and in one go to 700."""
    source = built(family, precision)
    out = extend(source, "--factor", "4")
    assert (out / "model.onnx.data").samefile(source / "model.onnx.data")
    weights = None
    if precision == "int4":
        key = next(i for i in graph_of(out).graph.input if i.name == "past_key_values.0.key")
        heads = key.type.tensor_type.shape.dim[1].dim_value
        weights = dequantised_weights(unlinked(out), heads * BuilderModel(out).width)
    wanted = reference_logits(checkpoints(family), tokens(700), YARN, weights=weights)
    model = BuilderModel(in_float32(out))
    assert relative_error(model.run(tokens(300), 250), wanted[:300]) <= TOLERANCE[precision]
    assert relative_error(model.run(tokens(700), 700), wanted) <= TOLERANCE[precision]
    plain = reference_logits(checkpoints(family), tokens(700), {"rope_type": "default"}, weights=weights)
    assert relative_error(wanted, plain) > 0.1


@pytest.mark.parametrize("provider", ["dml", "webgpu"])
def test_a_builders_model_in_float16(provider, checkpoints, built, extend):
    """Tables of float16; one of the two rotates by nodes of its own, with position_ids."""
    out = extend(built("llama", "fp16", provider), "--factor", "4")
    rotating = {node.op_type for node in graph_of(out).graph.node if "cos_cache" in node.input}
    assert rotating == {"RotaryEmbedding" if provider == "dml" else "GroupQueryAttention"}
    assert tables(out)["cos_cache"].dtype == np.float16
    wanted = reference_logits(checkpoints("llama"), tokens(700), YARN)
    assert relative_error(BuilderModel(out).run(tokens(700), 690), wanted) <= TOLERANCE["fp16"]


def test_the_builders_graph_keeps_its_structure(built, extend):
    source = built("qwen3", "fp32")
    out = extend(source, "--factor", "4")
    before, after = graph_of(source), graph_of(out)
    assert list(before.graph.node) == list(after.graph.node)
    kept = {t.name: t for t in before.graph.initializer if "cache" not in t.name}
    assert kept == {t.name: t for t in after.graph.initializer if "cache" not in t.name}
    config = json.loads((out / "genai_config.json").read_text())
    assert (config["model"]["context_length"], config["search"]["max_length"]) == (1024, 256)
    assert {p.name for p in out.iterdir()} - {p.name for p in source.iterdir()} == {
        "README.md",
        "model.onnx.tables",
    }
    card = (out / "README.md").read_text()
    assert_tidy(card)
    assert "runtime's affair" in card


def test_the_builders_twice_is_once(built, extend):
    source = built("llama", "fp32")
    once = extend(source, "--factor", "6", name="once")
    twice = extend(extend(source, "--factor", "2", name="half"), "--factor", "3", name="twice")
    for name, table in tables(once).items():
        assert table.tobytes() == tables(twice)[name].tobytes()
    assert record_of(twice)["rope_options"]["factor"] == 6.0


def test_genai_runs_it(checkpoints, built, extend):
    """Its greedy tokens are transformers' own, beyond the original context."""
    import onnxruntime_genai as genai

    out = extend(built("llama", "fp32"), "--factor", "4")
    parameters = genai.GeneratorParams(model := genai.Model(str(out)))
    parameters.set_search_options(max_length=320)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array([tokens(300)], np.int32))
    made = []
    for _ in range(12):
        generator.generate_next_token()
        made.append(int(generator.get_next_tokens()[0]))
    wanted = reference_logits(checkpoints("llama"), [*tokens(300), *made], YARN)
    assert made == wanted[299:-1].argmax(axis=-1).tolist()


def test_a_base_is_read_from_its_tables(extend, tmp_path):
    directory = make_checkpoint(
        tmp_path / "model", "llama", rope_parameters={"rope_type": "default", "rope_theta": 567890.0}
    )
    out = extend(build(directory, tmp_path / "built", "fp32"), "--factor", "4")
    assert record_of(out)["rope_theta"] == 567890.0
    wanted = reference_logits(directory, tokens(700), YARN)
    assert relative_error(BuilderModel(out).run(tokens(700), 700), wanted) <= TOLERANCE["fp32"]


def with_rope(checkpoints, tmp_path, **parameters):
    """What the builder makes of a checkpoint with a scaling of its own."""
    directory = tmp_path / "scaled"
    rope = {"rope_theta": 10000.0, "original_max_position_embeddings": 256, **parameters}
    make_checkpoint(directory, "qwen3", rope_parameters=rope, max_position_embeddings=512)
    return build(directory, tmp_path / "built", "fp32"), directory / "config.json"


def test_a_scaling_that_nobody_names(checkpoints, extend, tmp_path):
    source, _ = with_rope(checkpoints, tmp_path, rope_type="linear", factor=2.0)
    stderr = extend(source, "--factor", "2", code=3)
    assert "nothing names exactly" in stderr
    assert "Convert the checkpoint" in stderr


def test_a_scaling_that_the_config_beside_it_names(checkpoints, extend, tmp_path):
    source, config = with_rope(checkpoints, tmp_path, rope_type="linear", factor=2.0)
    shutil.copy(config, source)
    out = extend(source, "--method", "linear", "--factor", "2")
    assert record_of(out)["factor"] == 4.0
    assert record_of(out)["original_context"] == 256
    assert not (out / "config.json").exists()  # it would say another scaling than the tables hold
    directory = config.parent
    wanted = reference_logits(directory, tokens(700), {"rope_type": "linear", "factor": 4.0})
    assert relative_error(BuilderModel(out).run(tokens(700), 700), wanted) <= TOLERANCE["fp32"]
