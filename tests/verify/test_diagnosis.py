"""The diagnosis: each mistake is called by its name, two at once by none, and what is right is not wrong."""

import itertools
import math
import shutil

import numpy as np
import pytest

from tests.support.faults import FAULTS, TEMPERATURE
from tests.support.gguf_editing import load
from tests.support.models import edit_config, make_checkpoint
from tests.support.onnx_faults import FAULTS as ONNX_FAULTS
from tests.support.onnx_faults import Editor, bucket_of_the_length_so_far
from yarnconv.verify.hypotheses import REMEDIES, head_order, hypotheses

YARN = ("--factor", "4")
OWN_TEMPERATURE = (*YARN, "--attention-factor", "1.5")
OWN_BETAS = (*YARN, "--beta-fast", "16", "--beta-slow", "2")
BY_PARTS = (*YARN, "--method", "ntk-by-parts")


def number(key, value):
    return lambda file: file.keys.float32(file.key(key), value)


def whole(key, value):
    return lambda file: file.keys.uint32(file.key(key), value)


def both(*edits):
    return lambda file: [edit(file) for edit in edits]


ATTENTION, FACTOR, THETA = "rope.scaling.attn_factor", "rope.scaling.factor", "rope.freq_base"
ORIGINAL = "rope.scaling.original_context_length"
# code -> (rope options, the edit of a right GGUF)
IN_A_GGUF = {
    "plain-rope": (YARN, FAULTS["plain"][0]),
    "linear": (YARN, FAULTS["linear"][0]),
    "ntk-aware": (
        YARN,
        both(FAULTS["plain"][0], lambda file: number(THETA, 10000.0 * 4.0 ** (64 / 62))(file)),
    ),
    "temperature-missing": (YARN, FAULTS["temperature dropped"][0]),
    "temperature-twice": (YARN, FAULTS["temperature twice"][0]),
    "temperature-relogged": (
        YARN,
        number(ATTENTION, (0.1 * TEMPERATURE * math.log(4) + 1) / TEMPERATURE),
    ),
    "temperature-relogged, by its logarithm": (
        YARN,
        number(ATTENTION, (1 + 0.1 * math.log(TEMPERATURE)) / TEMPERATURE),
    ),
    "temperature-twice, of a temperature of one's own": (OWN_TEMPERATURE, number(ATTENTION, 1.5)),
    "attention-factor-dropped": (OWN_TEMPERATURE, number(ATTENTION, 1.0)),
    "wrong-original-context": (YARN, whole(ORIGINAL, 1024)),
    "wrong-original-context, twice as many": (YARN, whole(ORIGINAL, 512)),
    "wrong-original-context, half as many": (YARN, whole(ORIGINAL, 128)),
    "contexts-swapped": (YARN, both(whole(ORIGINAL, 1024), number(FACTOR, 0.25))),
    "wrong-factor": (YARN, number(FACTOR, 8.0)),
    "wrong-factor, half of it": (YARN, number(FACTOR, 2.0)),
    "wrong-theta": (YARN, number(THETA, 500000.0)),
    "wrong-theta, the highest": (YARN, number(THETA, 1000000.0)),
    "by-parts": ((*YARN, "--method", "linear"), None),
}


def mistakes():
    """One for each code, the others under `slow`."""
    return [pytest.param(m, marks=pytest.mark.slow if "," in m else ()) for m in IN_A_GGUF]


@pytest.mark.parametrize("mistake", mistakes())
def test_a_mistake_in_a_gguf_is_named(mistake, check, artefacts, checkpoints, tmp_path):
    options, edit = IN_A_GGUF[mistake]
    # the families differ in the pairs they rotate and in the norms on q and k; the size of a head is 64
    family = ("llama", "qwen3")[list(IN_A_GGUF).index(mistake) % 2]
    path = artefacts(family, "q8_0", *(options if edit else YARN))
    if edit is not None:
        file = load(path)
        edit(file)
        path = file.write(tmp_path / "faulty.gguf")
    code, report, stderr = check(path, checkpoints(family), *options)
    assert code == 1, stderr
    diagnosis = report["diagnosis"]
    expected = mistake.split(",")[0]
    assert diagnosis["label"] == expected, diagnosis["explanation"]
    assert REMEDIES[expected] in diagnosis["explanation"]
    distances = list(diagnosis["distances"].values())
    assert distances == sorted(distances)
    assert diagnosis["distances"][expected] == distances[0] < 1e-3
    assert diagnosis["distances"]["expected"] > 1e-2


def test_what_is_the_same_on_a_model_is_mentioned(check, artefacts, checkpoints, tmp_path):
    """A factor of max_position_embeddings / original is 1 here, which is plain RoPE."""
    file = load(artefacts("llama", "f32", *YARN))
    FAULTS["plain"][0](file)
    diagnosis = check(file.write(tmp_path / "plain.gguf"), checkpoints("llama"), *YARN)[1]["diagnosis"]
    assert diagnosis["label"] == "plain-rope"
    assert "The same logits here: wrong-factor." in diagnosis["explanation"]
    assert diagnosis["distances"]["plain-rope"] == diagnosis["distances"]["wrong-factor"]


@pytest.mark.parametrize(
    ("first", "second"),
    list(itertools.combinations(("temperature-missing", "wrong-theta", "wrong-original-context"), 2)),
)
def test_two_mistakes_at_once_have_no_name(first, second, check, artefacts, checkpoints, tmp_path):
    file = load(artefacts("llama", "f32", *YARN))
    for mistake in (first, second):
        IN_A_GGUF[mistake][1](file)
    code, report, _ = check(file.write(tmp_path / "faulty.gguf"), checkpoints("llama"), *YARN)
    assert code == 1
    diagnosis = report["diagnosis"]
    assert diagnosis["label"] is None, diagnosis["explanation"]
    nearest = next(iter(diagnosis["distances"]))
    assert nearest in diagnosis["explanation"]
    assert diagnosis["distances"][nearest] > 1e-2


def test_a_number_that_is_no_mistake_anyone_makes_has_no_name(check, artefacts, checkpoints, tmp_path):
    file = load(artefacts("llama", "f32", *YARN))
    number(FACTOR, 3.9)(file)
    report = check(file.write(tmp_path / "faulty.gguf"), checkpoints("llama"), *YARN)[1]
    assert report["diagnosis"]["label"] is None


def test_a_right_artefact_has_no_diagnosis_unless_asked(check, artefacts, checkpoints):
    path = artefacts("llama", "q8_0", *YARN)
    code, report, _ = check(path, checkpoints("llama"), *YARN)
    assert (code, report["diagnosis"]) == (0, None)
    code, report, _ = check(path, checkpoints("llama"), *YARN, "--diagnose")
    assert code == 0
    assert report["diagnosis"]["label"] == "expected"
    assert next(iter(report["diagnosis"]["distances"])) == "expected"


def test_what_cannot_tell_names_nothing(check, artefacts, checkpoints, tmp_path):
    tokens = tmp_path / "tokens.txt"
    tokens.write_text("7")
    path = artefacts("llama", "f32", *YARN)
    code, report, _ = check(path, checkpoints("llama"), *YARN, "--tokens", tokens, "--diagnose")
    assert code == 5
    assert report["diagnosis"]["label"] is None
    assert report["diagnosis"]["distances"] == {}
    assert "give other tokens" in report["diagnosis"]["explanation"]


def test_table(artefacts, checkpoints, yarnconv, tmp_path):
    file = load(artefacts("llama", "f32", *YARN))
    FAULTS["temperature twice"][0](file)
    path = file.write(tmp_path / "faulty.gguf")
    code, stdout, _ = yarnconv("check", path, "--reference", checkpoints("llama"), *YARN)
    assert code == 1
    assert "diagnosis: temperature-twice" in stdout
    shown = " ".join(stdout.split())
    assert "its key takes the quotient" in shown
    assert "explains the logits" in shown


# code -> (options of the artefact, rope options it is held against)
PLANS = {
    "plain-rope": (("--method", "none"), YARN),
    "linear": ((*YARN, "--method", "linear"), YARN),
    "ntk-aware": ((*YARN, "--method", "ntk"), YARN),
    "temperature-missing": (BY_PARTS, YARN),
    "temperature-twice": ((*YARN, "--attention-factor", f"{TEMPERATURE**2!r}"), YARN),
    "temperature-relogged": (
        (*YARN, "--attention-factor", f"{0.1 * TEMPERATURE * math.log(4) + 1!r}"),
        YARN,
    ),
    "attention-factor-dropped": (YARN, BY_PARTS),
    "wrong-original-context": ((*YARN, "--original-context", "1024"), YARN),
    "wrong-factor": (("--factor", "8"), YARN),
    "betas-ignored": (YARN, OWN_BETAS),
    "truncate-ignored": ((*YARN, "--no-truncate"), YARN),
    "by-parts": (YARN, (*YARN, "--method", "ntk")),
}


def plans(default):
    """All of them; by default those that no edit of a GGUF makes, and some."""
    return [pytest.param(p, marks=() if p in default else pytest.mark.slow) for p in PLANS]


@pytest.mark.parametrize("expected", plans({"plain-rope", "truncate-ignored", "temperature-relogged"}))
def test_another_plan_in_an_onnx_model_is_named(expected, check, onnx_artefacts, checkpoints):
    made, wanted = PLANS[expected]
    family = ("qwen2", "mistral")[list(PLANS).index(expected) % 2]
    _, report, stderr = check(onnx_artefacts(family, *made), checkpoints(family), *wanted)
    if expected == "plain-rope":  # whose tables reach as far as that plan does
        assert "There are no numbers at position 256:" in report["diagnosis"]["explanation"]
    assert report["diagnosis"]["label"] == expected, (stderr, report["diagnosis"]["explanation"])


@pytest.mark.parametrize("expected", plans({"betas-ignored", "temperature-missing", "wrong-factor"}))
def test_another_plan_in_a_checkpoint_is_named(expected, check, checkpoints, yarnconv, tmp_path):
    made, wanted = PLANS[expected]
    out = tmp_path / "extended"
    assert yarnconv("hf", checkpoints("llama"), *made, "-o", out)[0] == 0
    _, report, stderr = check(out, checkpoints("llama"), *wanted)
    assert report["diagnosis"]["label"] == expected, (stderr, report["diagnosis"]["explanation"])


DYNAMIC = (*YARN, "--method", "dynamic-yarn")


def test_buckets_of_a_dynamic_model(check, onnx_artefacts, checkpoints, tmp_path):
    editor = Editor(onnx_artefacts("llama", *DYNAMIC), tmp_path / "faulty")
    bucket_of_the_length_so_far(editor)
    report = check(editor.save(), checkpoints("llama"), *DYNAMIC)[1]
    # no passage is as long as its positions are high, so each is served by the shortest bucket
    assert report["diagnosis"]["label"] == "plain-rope"
    assert "bucket-of-length-so-far" in report["diagnosis"]["explanation"]
    report = check(onnx_artefacts("llama", *YARN), checkpoints("llama"), *DYNAMIC)[1]
    assert report["diagnosis"]["label"] == "dynamic-frozen"
    report = check(onnx_artefacts("llama", *DYNAMIC), checkpoints("llama"), *DYNAMIC, "--diagnose")[1]
    assert report["diagnosis"]["label"] == "expected"


@pytest.mark.parametrize("method", ["dynamic-ntk", "ntk", "linear"])
def test_right_extended_checkpoints_are_as_expected(method, check, checkpoints, yarnconv, tmp_path):
    out, options = tmp_path / "extended", (*YARN, "--method", method)
    assert yarnconv("hf", checkpoints("llama"), *options, "-o", out)[0] == 0
    code, report, _ = check(out, checkpoints("llama"), *options, "--diagnose")
    assert (code, report["diagnosis"]["label"]) == (0, "expected")


def test_a_dynamic_base_that_is_static(check, checkpoints, yarnconv, tmp_path):
    out = tmp_path / "extended"
    assert yarnconv("hf", checkpoints("llama"), *YARN, "--method", "ntk", "-o", out)[0] == 0
    report = check(out, checkpoints("llama"), *YARN, "--method", "dynamic-ntk")[1]
    assert report["diagnosis"]["label"] == "ntk-aware"


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_pairs_of_the_other_kind(family, check, onnx_artefacts, checkpoints, tmp_path):
    editor = Editor(onnx_artefacts(family, *YARN), tmp_path / "faulty")
    for node in editor.nodes("RotaryEmbedding"):
        attribute = next(a for a in node.attribute if a.name == "interleaved")
        attribute.i = 1 - attribute.i
    report = check(editor.save(), checkpoints(family), *YARN)[1]
    assert report["diagnosis"]["label"] == "wrong-pairing", report["diagnosis"]["explanation"]
    # with norms on q and k the two are not the same
    assert ("query-key-permutation" in report["diagnosis"]["explanation"]) == (family == "llama")


def test_tables_that_end_too_soon(check, onnx_artefacts, checkpoints):
    path = onnx_artefacts("llama", *YARN, "--max-context", "512")
    report = check(path, checkpoints("llama"), *YARN)[1]
    assert report["verdicts"]["structure"] == "fails"
    assert report["diagnosis"]["label"] == "table-short"
    assert "no numbers at position 641: the tables end before it" in report["diagnosis"]["explanation"]


def test_no_numbers_at_all_have_no_name(check, onnx_artefacts, checkpoints, tmp_path):
    editor = Editor(onnx_artefacts("llama", *YARN), tmp_path / "faulty")
    for name in editor.tables:
        editor.stored(name)[...] = np.nan
    report = check(editor.save(), checkpoints("llama"), *YARN)[1]
    assert report["diagnosis"]["label"] is None


def test_pairs_of_one_layer_have_no_name(check, onnx_artefacts, checkpoints, tmp_path):
    editor = Editor(onnx_artefacts("llama", *YARN), tmp_path / "faulty")
    ONNX_FAULTS["pairing swapped in layer 0"][0](editor)
    report = check(editor.save(), checkpoints("llama"), *YARN)[1]
    assert report["diagnosis"]["label"] is None


def test_position_of_decoded_tokens(check, onnx_artefacts, checkpoints, tmp_path):
    """A graph that counts a lone token's position one too high, or too low."""
    from onnx import TensorProto, helper

    for shift in (1, -1):
        editor = Editor(onnx_artefacts("llama", *YARN), tmp_path / f"{shift}")
        for node in editor.graph.node:
            node.input[:] = ["shifted_positions" if name == "position_ids" else name for name in node.input]
        one, amount = editor.constant(np.array([1])), editor.constant(np.array([shift]))
        nodes = [
            helper.make_node("Shape", ["position_ids"], ["how_many"], start=1, end=2),
            helper.make_node("Equal", ["how_many", one], ["is_alone"]),
            helper.make_node("Cast", ["is_alone"], ["alone"], to=TensorProto.INT64),
            helper.make_node("Mul", ["alone", amount], ["shift"]),
            helper.make_node("Add", ["position_ids", "shift"], ["shifted_positions"]),
        ]
        for node in reversed(nodes):
            editor.graph.node.insert(0, node)
        report = check(editor.save(), checkpoints("llama"), *YARN)[1]
        assert report["diagnosis"]["label"] == "position-off-by-one", report["diagnosis"]["explanation"]
        assert ("too high" if shift > 0 else "too low") in report["diagnosis"]["explanation"]


def test_a_window_that_was_dropped(check, yarnconv, tmp_path):
    windowed = make_checkpoint(tmp_path / "windowed", "mistral", sliding_window=48)
    unwindowed = shutil.copytree(windowed, tmp_path / "plain")
    edit_config(unwindowed, sliding_window=None)
    out = tmp_path / "model"
    assert yarnconv("onnx", unwindowed, *YARN, "-o", out)[0] == 0
    report = check(out, windowed, *YARN)[1]
    assert report["diagnosis"]["label"] == "window-dropped", report["diagnosis"]["explanation"]
    # and a right one is right, though the hypothesis of none is there
    out = tmp_path / "right"
    assert yarnconv("onnx", windowed, *YARN, "-o", out)[0] == 0
    code, report, _ = check(out, windowed, *YARN, "--diagnose")
    assert (code, report["diagnosis"]["label"]) == (0, "expected")
    assert report["diagnosis"]["distances"]["window-dropped"] > 1e-2


@pytest.mark.parametrize(("family", "outtype"), [("llama", "q4_k_m"), ("qwen3", "f32")])
def test_rows_permuted_once_too_often_or_not(family, outtype, check, artefacts, checkpoints, tmp_path):
    """The reference computes with the artefact's own weights, so that only the weights show it."""
    file = load(artefacts(family, outtype, *YARN))
    FAULTS["q/k permutation"][0](file)
    report = check(file.write(tmp_path / "faulty.gguf"), checkpoints(family), *YARN)[1]
    assert report["verdicts"]["structure"] == "holds"
    assert report["diagnosis"]["label"] == "query-key-permutation"
    problems = report["weights"]["problems"]
    assert len(problems) == 6
    assert all("rows in another order" in entry["problem"] for entry in problems)


def test_other_weights_are_not_called_permuted(check, artefacts, checkpoints, tmp_path):
    file = load(artefacts("llama", "f32", *YARN))
    FAULTS["q/k permutation"][0](file)
    FAULTS["one block altered"][0](file)
    report = check(file.write(tmp_path / "faulty.gguf"), checkpoints("llama"), *YARN)[1]
    assert report["verdicts"]["weights"] == "fails"
    assert report["diagnosis"] is None


@pytest.mark.parametrize("dtype", ["fp32", "int4"])
def test_permuted_rows_of_an_onnx_model_and_of_a_checkpoint(dtype, check, checkpoints, yarnconv, tmp_path):
    from safetensors.numpy import load_file, save_file

    source = checkpoints("qwen2")
    moved = shutil.copytree(source, tmp_path / "moved")
    tensors = load_file(moved / "model.safetensors")
    for name, values in tensors.items():
        if "q_proj" in name or "k_proj" in name:
            heads = np.arange(len(values)).reshape(-1, 64)[:, head_order(64, 64, "separated")]
            tensors[name] = np.ascontiguousarray(values[heads.reshape(-1)])
    save_file(tensors, moved / "model.safetensors", metadata={"format": "pt"})
    for command, options in (("onnx", ("--dtype", dtype)), ("hf", ())):
        out = tmp_path / command
        assert yarnconv(command, moved, *YARN, *options, "-o", out)[0] == 0
        report = check(out, source, *YARN)[1]
        assert report["verdicts"] == {"structure": "holds", "weights": "fails", "metadata": "holds"}
        assert report["diagnosis"]["label"] == "query-key-permutation", report["reasons"]


def test_every_hypothesis_has_a_remedy(checkpoints):
    from yarnconv.checkpoint.checkpoint import open_checkpoint
    from yarnconv.plan import plan_conversion
    from yarnconv.rope.request import RopeRequest

    codes = set()
    for method, family in itertools.product(("yarn", "linear", "dynamic-yarn"), ("llama", "qwen3")):
        with open_checkpoint(checkpoints(family)) as checkpoint:
            plan = plan_conversion(checkpoint, RopeRequest(method=method, factor=4.0))
            found = hypotheses(plan)
        codes |= {hypothesis.code for hypothesis in found}
        assert all(bool(hypothesis.remedy) == (hypothesis.code != "expected") for hypothesis in found)
        assert found[0].code == "expected"
    assert codes - {"expected"} <= REMEDIES.keys()


def test_the_graph_of_an_engine(check, engines, checkpoints):
    directory, _ = engines("llama", *YARN)
    report = check(directory, checkpoints("llama"), *BY_PARTS)[1]
    assert report["verdicts"]["structure"] == "fails"
    assert report["diagnosis"]["label"] == "attention-factor-dropped"
