"""`yarnconv check` of ONNX models that others exported: run as a whole, read by their numbers."""

import shutil

import numpy as np
import onnx
import pytest
import transformers
from onnx import TensorProto, helper, numpy_helper

from tests.support.genai_builder import build
from tests.support.models import ORIGINAL_CONTEXT, make_checkpoint
from tests.support.torch_export import export, export_cached, rope_config

YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": ORIGINAL_CONTEXT,
}
BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}
EXTENDED = 4 * ORIGINAL_CONTEXT
PLAIN = ("--method", "none")
HOLDS = {"structure": "holds", "weights": "holds", "metadata": "holds"}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(family, precision, RoPE) -> a checkpoint and what onnxruntime-genai's builder makes of it."""
    root, made = tmp_path_factory.mktemp("builder"), {}

    def get(family, precision="fp32", rope=None, provider="cpu"):
        key = family, precision, provider, str(rope)
        if key not in made:
            scaled = {} if rope is None else {"rope_parameters": rope, "max_position_embeddings": EXTENDED}
            checkpoint = make_checkpoint(root / f"{len(made)}", family, num_hidden_layers=2, **scaled)
            made[key] = checkpoint, build(checkpoint, root / f"{len(made)}-onnx", precision, provider)
        return made[key]

    return get


@pytest.fixture
def edited(built, tmp_path):
    """The builder's Llama, plain as it is whatever was asked for, changed: (checkpoint, directory)."""

    def get(edit):
        checkpoint, directory = built("llama", rope=YARN)
        copy = shutil.copytree(directory, tmp_path / "edited")
        model = onnx.load(copy / "model.onnx")
        edit(model)
        (copy / "model.onnx.data").unlink()
        onnx.save(model, copy / "model.onnx")
        return checkpoint, copy

    return get


def tensor(model, name):
    """(the initialiser, its values), to be changed with `change`."""
    return next(t for t in model.graph.initializer if t.name == name)


def change(model, name, values):
    tensor(model, name).CopyFrom(numpy_helper.from_array(values, name))


def differing(report):
    return {fact["key"]: fact["found"] for fact in report["metadata"] if not fact["agrees"]}


# what onnxruntime-genai's builder writes


def test_a_llamas_yarn_that_the_builder_left_out(check, built):
    checkpoint, directory = built("llama", rope=YARN)
    code, report, _ = check(directory, checkpoint)
    assert code == 1
    assert report["verdicts"] == {"structure": "fails", "weights": "not_judged", "metadata": "fails"}
    assert report["diagnosis"]["label"] == "plain-rope"
    assert "plain RoPE, base 10000" in differing(report)["frequencies"]
    assert "not called as the checkpoint's" in report["reasons"]["weights"]


def test_the_same_model_is_right_where_plain_rope_is_expected(check, built):
    checkpoint, directory = built("llama", rope=YARN)
    code, report, _ = check(directory, checkpoint, *PLAIN)
    assert (code, report["verdicts"], report["diagnosis"]) == (0, HOLDS, None)
    assert (report["layers"], report["all_layers"]) == (2, 2)
    assert max(window["relative_max"] for window in report["windows"]) < 1e-5
    phases = {(window["name"], window["phase"]) for window in report["windows"]}
    assert phases >= {("inside", "prefill"), ("far end", "decode")}
    assert max(window["last"] for window in report["windows"]) == EXTENDED - 1


def test_what_holds_is_said_to_hold(built, yarnconv):
    """In the last line, and without a word on how far."""
    checkpoint, directory = built("llama", rope=YARN)
    code, stdout, _ = yarnconv("check", directory, "--reference", checkpoint, *PLAIN)
    assert (code, stdout.strip().splitlines()[-1].strip()) == (0, "parity holds")


def test_betas_whose_range_the_builder_never_rounds(check, built):
    checkpoint, directory = built("qwen3", rope={**YARN, **BETAS})
    code, report, _ = check(directory, checkpoint)
    assert code == 1
    assert report["diagnosis"]["label"] == "truncate-ignored"
    assert "truncate-ignored" in differing(report)["frequencies"]
    code, report, _ = check(directory, checkpoint, "--factor", "4", "--no-truncate")
    assert (code, report["verdicts"]) == (0, HOLDS)
    assert {("edge", 256), ("crossing", 256), ("far end", 1023)} <= {
        (window["name"], position)
        for window in report["windows"]
        for position in range(window["first"], window["last"] + 1)
    }


def test_quantised_weights_are_no_false_alarm_and_no_parity(check, built):
    checkpoint, directory = built("qwen2", "int4")
    code, report, _ = check(directory, checkpoint)
    assert code == 5
    assert report["parity"] is None
    assert report["verdicts"] == {"structure": "not_judged", "weights": "not_judged", "metadata": "holds"}
    assert "MatMulNBits" in report["reasons"]["structure"]
    assert report["as_is"]["windows"]
    assert report["diagnosis"]["label"] is None
    distances = report["diagnosis"]["distances"]
    assert distances["expected"] < distances["wrong-theta"]


def test_what_a_quantised_model_turns_by_is_judged_all_the_same(check, built):
    checkpoint, directory = built("qwen2", "int4")
    code, report, _ = check(directory, checkpoint, "--factor", "4")
    assert code == 1
    assert report["verdicts"] == {"structure": "not_judged", "weights": "not_judged", "metadata": "fails"}
    assert set(differing(report)) >= {"frequencies", "positions"}
    distances = report["diagnosis"]["distances"]
    assert distances["plain-rope"] < distances["expected"]


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "provider"), [("fp32", "cpu"), ("fp16", "cuda")])
def test_right_models_of_the_builder(precision, provider, check, built):
    checkpoint, directory = built("qwen2", precision, provider=provider)
    code, report, _ = check(directory, checkpoint)
    assert (code, report["verdicts"]) == (0, HOLDS)
    relative = max(window["relative_max"] for window in report["windows"])
    assert relative < 1e-5 if precision == "fp32" else 1e-4 < relative < 1e-2


@pytest.mark.slow
def test_what_this_tool_made_of_the_builders_model(check, built, yarnconv, tmp_path):
    checkpoint, directory = built("qwen2")
    out = tmp_path / "extended"
    assert yarnconv("onnx", directory, "--factor", "4", "-o", out)[0] == 0
    code, report, _ = check(out, checkpoint)
    assert (code, report["verdicts"], report["expected_from"]) == (0, HOLDS, "provenance")
    code, report, _ = check(out, checkpoint, "--method", "linear", "--factor", "4")
    assert (code, report["verdicts"]["structure"]) == (1, "fails")
    assert report["diagnosis"]["label"] == "yarn"


# faults of one right model


def test_a_temperature_in_the_tables_is_named(check, edited):
    def edit(model):
        for name in ("cos_cache", "sin_cache"):
            change(model, name, numpy_helper.to_array(tensor(model, name)) * np.float32(1.2))

    checkpoint, directory = edited(edit)
    code, report, _ = check(directory, checkpoint, *PLAIN)
    assert (code, report["verdicts"]["structure"]) == (1, "fails")
    assert "attention-factor-wrong" in differing(report)["attention factor"]


def test_a_weight_that_is_not_the_checkpoints_shows_in_the_logits(check, edited):
    def edit(model):
        name = "model.layers.1.mlp.up_proj.MatMul.weight"
        values = numpy_helper.to_array(tensor(model, name)).copy()
        values[:, 7] *= 1.5
        change(model, name, values)

    checkpoint, directory = edited(edit)
    code, report, _ = check(directory, checkpoint, *PLAIN)
    assert code == 1
    assert report["verdicts"] == {"structure": "fails", "weights": "not_judged", "metadata": "holds"}
    assert report["diagnosis"]["label"] is None


def test_tables_that_end_early(check, edited):
    def edit(model):
        for name in ("cos_cache", "sin_cache"):
            change(model, name, numpy_helper.to_array(tensor(model, name))[:700].copy())

    checkpoint, directory = edited(edit)
    code, report, _ = check(directory, checkpoint, *PLAIN)
    assert code == 1
    assert "end after 700 positions" in differing(report)["positions"]
    assert check(directory, checkpoint, *PLAIN, "--max-context", "700")[1]["verdicts"]["structure"] == "holds"


def unknown_input(model):
    model.graph.input.append(helper.make_tensor_value_info("speaker\x1b[2J", TensorProto.INT64, ["n"]))


def renamed_cache(model):
    for node in model.graph.node:
        node.output[:] = [name.replace("present.1.key", "later") for name in node.output]
    next(o for o in model.graph.output if o.name == "present.1.key").name = "later"


def two_outputs(model):
    output = model.graph.output[0]
    for name in ("one", "other"):
        model.graph.node.append(helper.make_node("Identity", [output.name], [name]))
        model.graph.output.append(output)
        model.graph.output[-1].name = name
    del model.graph.output[0]


def fixed_length(model):
    next(i for i in model.graph.input if i.name == "input_ids").type.tensor_type.shape.dim[1].dim_value = 64


UNKNOWN = {
    "nobody here knows what to give as speaker": unknown_input,
    "its cache goes in by other names than it comes out": renamed_cache,
    "which of its outputs are logits nobody knows": two_outputs,
    "nobody here knows what to give as input_ids": fixed_length,
}


@pytest.mark.parametrize("said", UNKNOWN)
def test_what_nobody_knows_how_to_run_is_not_judged(said, check, edited):
    checkpoint, directory = edited(UNKNOWN[said])
    code, report, _ = check(directory, checkpoint, *PLAIN)
    assert (code, report["parity"]) == (5, None)
    assert said in report["reasons"]["structure"]
    assert report["verdicts"]["metadata"] == ("not_judged" if UNKNOWN[said] is renamed_cache else "holds")


def test_what_onnx_runtime_does_not_load_fails(check, edited):
    def edit(model):
        node = next(node for node in model.graph.node if node.op_type == "MatMul")
        node.domain, node.op_type = "com.microsoft", "NobodysProduct"

    checkpoint, directory = edited(edit)
    code, report, _ = check(directory, checkpoint, *PLAIN)
    assert (code, report["verdicts"]["structure"]) == (1, "fails")
    assert "NobodysProduct" in report["reasons"]["structure"]


def test_a_graph_that_gives_the_last_tokens_logits_alone(check, edited):
    def edit(model):
        output = model.graph.output[0]
        for node in model.graph.node:
            node.output[:] = ["every" if name == output.name else name for name in node.output]
        ends = {"first": -1, "last": 2**31 - 1, "axis": 1}
        for name, value in ends.items():
            model.graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
        model.graph.node.append(helper.make_node("Slice", ["every", *ends], [output.name]))
        output.type.tensor_type.shape.dim[1].dim_param = "sequence_length"  # which it is not

    checkpoint, directory = edited(edit)
    code, report, _ = check(directory, checkpoint, *PLAIN)
    assert (code, report["verdicts"]) == (0, HOLDS)


def test_a_dynamic_scaling_that_a_plain_model_lacks(check, built):
    """Each set of frequencies is asked of a request long enough to get it."""
    checkpoint, directory = built("llama", rope=YARN)
    dynamic = ("--method", "dynamic-yarn", "--factor", "4", "--original-context", ORIGINAL_CONTEXT)
    code, report, _ = check(directory, checkpoint, *dynamic)
    assert code == 1
    wrong = {w["bucket"]: w["first_bad_position"] is not None for w in report["windows"]}
    assert wrong == {0: False, 1: True, 2: True}
    assert report["diagnosis"]["label"] == "plain-rope"
    assert differing(report)["frequencies"].startswith("plain-rope: ")


def test_what_was_too_long_to_run_is_said(check, built, monkeypatch):
    from yarnconv.verify.onnx import foreign_structure

    checkpoint, directory = built("llama", rope=YARN)
    monkeypatch.setattr(foreign_structure, "LONGEST", 300)
    code, report, _ = check(directory, checkpoint, *PLAIN)
    assert code == 0
    assert max(window["last"] for window in report["windows"]) == 299
    assert "positions from 300 to 1023 were not run" in report["reasons"]["structure"]
    monkeypatch.setattr(foreign_structure, "AS_IS_REFERENCE_BYTES", 0)
    monkeypatch.setattr(foreign_structure, "SHARE_OF_MEMORY", 0.0)
    code, report, _ = check(directory, checkpoint, *PLAIN)
    assert (code, report["verdicts"]["metadata"]) == (5, "holds")
    assert "a reference of all layers would take" in report["reasons"]["structure"]


def test_a_crash_is_not_a_verdict(check, built, monkeypatch, tmp_path):
    from yarnconv.verify.runners import foreign_onnx

    dying = tmp_path / "worker.py"
    dying.write_text("import os, sys\nsys.stdin.readline()\nsys.stderr.write('no more')\nos.abort()\n")
    monkeypatch.setattr(foreign_onnx, "WORKER", dying)
    checkpoint, directory = built("llama", rope=YARN)
    code, report, stderr = check(directory, checkpoint, *PLAIN)
    assert (code, report) == (70, None)
    assert "no more" in stderr


def test_a_config_alone_judges_what_it_turns_by(yarnconv, built):
    checkpoint, directory = built("llama", rope=YARN)
    alone = ("check", directory, "--reference-config", checkpoint / "config.json")
    code, stdout, _ = yarnconv(*alone)
    assert code == 1
    assert "plain RoPE, base 10000" in " ".join(stdout.split())
    assert yarnconv(*alone, *PLAIN)[0] == 5


def test_fewer_than_all_layers_are_refused(check, built):
    checkpoint, directory = built("llama", rope=YARN)
    assert check(directory, checkpoint, "--layers", "1")[0] == 2


def test_all_values_cannot_be_compared(check, built):
    checkpoint, directory = built("llama", rope=YARN)
    code, report, _ = check(directory, checkpoint, *PLAIN, "--weights", "all")
    assert (code, report["verdicts"]) == (5, {**HOLDS, "weights": "not_judged"})
    assert check(directory, checkpoint, *PLAIN, "--weights", "none")[0] == 0


# what torch.onnx writes


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A Llama of YaRN without a cache, by torch's newer exporter, and its checkpoint."""
    root, config = tmp_path_factory.mktemp("torch"), rope_config("yarn", num_hidden_layers=2)
    checkpoint = make_checkpoint(root / "model", "llama", **shape(config))
    return checkpoint, export(config, root / "onnx", dynamo=True)


def shape(config):
    return {
        "num_hidden_layers": config.num_hidden_layers,
        "max_position_embeddings": config.max_position_embeddings,
        "rope_parameters": dict(config.rope_parameters),
    }


def test_a_graph_without_a_cache(check, exported):
    checkpoint, directory = exported
    code, report, _ = check(directory, checkpoint)
    assert (code, report["verdicts"]) == (0, HOLDS)
    assert {fact["key"]: fact["found"] for fact in report["metadata"]}["positions"].startswith("angles are")
    assert max(window["last"] for window in report["windows"]) == EXTENDED - 1


def test_a_graph_with_a_cache_and_positions_and_a_mask_of_its_own(check, exported, tmp_path):
    checkpoint, _ = exported
    directory = export_cached(rope_config("yarn", num_hidden_layers=2), tmp_path / "cached")
    code, report, _ = check(directory, checkpoint)
    assert (code, report["verdicts"]) == (0, HOLDS)
    code, report, _ = check(directory, checkpoint, "--factor", "4", "--attention-factor", "1")
    assert (code, report["verdicts"]["structure"]) == (1, "fails")
    assert report["diagnosis"]["label"] == "attention-factor-dropped"


def test_another_attention_factor_than_the_exported_one_is_named(check, exported, tmp_path):
    _, directory = exported
    config = rope_config("yarn", num_hidden_layers=2)
    rope = {**config.rope_parameters, "attention_factor": 1.3}
    checkpoint = make_checkpoint(tmp_path / "model", "llama", **{**shape(config), "rope_parameters": rope})
    code, report, _ = check(directory, checkpoint)
    assert code == 1
    assert report["diagnosis"]["label"] == "attention-factor-dropped"
    assert "attention-factor-dropped" in differing(report)["attention factor"]
    assert transformers.AutoConfig.from_pretrained(checkpoint).rope_parameters["attention_factor"] == 1.3
