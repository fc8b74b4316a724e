"""`yarnconv check` of ONNX models: verdicts, exit codes, what it reads and refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.support.models import make_checkpoint
from tests.support.onnx_faults import FAULTS, Editor, top_left_mask
from tests.support.processes import start
from tests.support.selection import product
from tests.verify.test_check import SCHEMA, WINDOW

YARN = ("--factor", "4")
DYNAMIC = (*YARN, "--method", "dynamic-yarn")


@pytest.fixture
def edited(onnx_artefacts, tmp_path):
    """A copy of a right model, changed."""

    def make(edit, family="llama", options=YARN):
        editor = Editor(onnx_artefacts(family, *options), tmp_path / "edited")
        edit(editor)
        return editor.save()

    return make


def test_report(check, onnx_artefacts, checkpoints, tmp_path):
    out = tmp_path / "report.json"
    directory = onnx_artefacts("llama", *YARN, "--dtype", "int4")
    code, report, _ = check(directory, checkpoints("llama"), *YARN, "--output-json", out)
    assert code == 0
    assert json.loads(out.read_text()) == report
    assert report.keys() >= SCHEMA
    assert report["parity"] is True
    assert report["verdicts"] == {"structure": "holds", "weights": "holds", "metadata": "holds"}
    assert (report["layers"], report["expected_from"]) == (2, "options")
    assert report["runtime"]["name"] == "ONNX Runtime"
    assert report["weights"]["types"].keys() == {"F32", "INT4"}
    assert all(window.keys() >= WINDOW for window in report["windows"])
    reached = {(w["phase"], p) for w in report["windows"] for p in range(w["first"], w["last"] + 1)}
    assert reached >= {(phase, p) for phase in ("prefill", "decode") for p in (255, 256)}
    assert reached >= {("prefill", 257), ("decode", 257), ("prefill", 0), ("decode", 1023)}
    assert 1e-3 < max(w["relative"] for w in report["as_is"]["windows"]) < 0.5


def test_every_bucket_is_judged_from_its_edge_to_its_far_end(check, onnx_artefacts, checkpoints):
    code, report, _ = check(onnx_artefacts("qwen3", *DYNAMIC), checkpoints("qwen3"), *DYNAMIC)
    assert code == 0
    last = {w["bucket"]: w["last"] for w in report["windows"]}
    assert last == {2: 1023, 1: 511, 0: 255}
    assert list(last) == [2, 1, 0]  # the long requests first
    assert report["windows"][0]["relative_max"] < 1e-5


def test_table(edited, checkpoints, yarnconv):
    directory = edited(FAULTS["temperature dropped"][0], options=DYNAMIC)
    code, stdout, _ = yarnconv("check", directory, "--reference", checkpoints("llama"))
    assert code == 1
    words = " ".join(stdout.split())
    for said in ("parity does not hold", "attention factor 1, frequencies", "ONNX Runtime", "factor"):
        assert said in words, stdout


def test_provenance_only_fills_in(check, onnx_artefacts, edited, checkpoints):
    by_parts = onnx_artefacts("llama", *YARN, "--method", "ntk-by-parts")
    code, report, _ = check(by_parts, checkpoints("llama"))
    assert (code, report["expected_from"]) == (0, "provenance")
    code, report, _ = check(by_parts, checkpoints("llama"), *YARN)
    assert (code, report["expected_from"]) == (1, "options")
    bare = edited(lambda editor: editor.model.ClearField("metadata_props"))
    code, report, _ = check(bare, checkpoints("llama"))
    assert (code, report["expected_from"]) == (1, "checkpoint")
    assert check(bare, checkpoints("llama"), *YARN)[0] == 0


def test_a_shorter_table_is_no_fault_where_it_is_expected(check, onnx_artefacts, checkpoints):
    directory = onnx_artefacts("llama", *YARN, "--max-context", "700")
    assert check(directory, checkpoints("llama"))[0] == 0
    assert check(directory, checkpoints("llama"), *YARN, "--max-context", "700")[0] == 0
    code, report, _ = check(directory, checkpoints("llama"), *YARN)
    assert code == 1
    assert "700 positions" in report["reasons"]["metadata"]
    assert check(directory, checkpoints("llama"), *YARN, "--max-context", "1025")[0] == 2


@pytest.mark.parametrize("record", ["{", '{"rope_options": {"factor": "4"}}'])
def test_unreadable_provenance(record, check, edited, checkpoints):
    def edit(editor):
        editor.model.metadata_props[0].value = record

    assert check(edited(edit), checkpoints("llama"))[0] == 2
    assert check(edited(edit), checkpoints("llama"), *YARN)[0] == 0


def test_a_senseless_context_in_the_provenance(check, edited, checkpoints):
    def edit(editor):
        document = json.loads(editor.model.metadata_props[0].value)
        document["graph"] = {"max_context": "all"}
        editor.model.metadata_props[0].value = json.dumps(document)

    assert check(edited(edit), checkpoints("llama"))[0] == 0  # the whole target context, which it has


def test_bf16_is_judged_by_its_float32_copy(check, onnx_artefacts, checkpoints, tmp_path):
    directory = onnx_artefacts("llama", *YARN, "--dtype", "bf16")
    code, report, _ = check(directory, checkpoints("llama"), *YARN)
    assert code == 0
    assert "no bfloat16 kernels" in report["as_is"]["note"]
    assert report["weights"]["types"].keys() == {"BF16"}
    editor = Editor(directory, tmp_path / "faulty")
    top_left_mask(editor)
    assert check(editor.save(), checkpoints("llama"), *YARN)[1]["verdicts"]["structure"] == "fails"


@pytest.mark.parametrize("dtype", ["fp32", "int4", "fp8"])
def test_a_tied_head_of_its_own(dtype, check, yarnconv, tmp_path):
    directory = make_checkpoint(tmp_path / "model", "llama", tie_word_embeddings=True)
    out = tmp_path / "onnx"
    assert yarnconv("onnx", directory, *YARN, "--dtype", dtype, "-o", out)[0] == 0
    assert check(out, directory, *YARN)[0] == 0
    if dtype != "fp32":
        editor = Editor(out, tmp_path / "faulty")
        editor.stored("lm_head.weight").reshape(256, -1)[:, 7] = 0x11
        code, report, _ = check(editor.save(), directory, *YARN)
        assert (code, report["verdicts"]["weights"]) == (1, "fails")


@pytest.mark.parametrize("change", [0.99, 1.02])
def test_a_fine_tune_is_not_its_base_model(change, check, yarnconv, tmp_path):
    from safetensors.numpy import load_file, save_file

    base = make_checkpoint(tmp_path / "base", "llama")
    tuned = make_checkpoint(tmp_path / "tuned", "llama")
    tensors = load_file(tuned / "model.safetensors")
    tensors = {n: (v * np.float32(change) if "_proj" in n else v) for n, v in tensors.items()}
    save_file(tensors, tuned / "model.safetensors", metadata={"format": "pt"})
    out = tmp_path / "onnx"
    assert yarnconv("onnx", tuned, *YARN, "--dtype", "int4", "-o", out)[0] == 0
    _, report, _ = check(out, base, *YARN)
    assert report["verdicts"]["weights"] == "fails"


def test_all_weights_and_none(check, edited, checkpoints):
    directory = edited(FAULTS["one block altered"][0])
    code, report, _ = check(directory, checkpoints("llama"), *YARN, "--weights", "none")
    assert (code, report["verdicts"]["weights"]) == (0, "not_judged")
    assert check(directory, checkpoints("llama"), *YARN, "--weights", "all")[0] == 1
    assert check(directory, checkpoints("llama"), *YARN, "--layers", "all")[1]["layers"] == 3


def test_text_and_tokens(check, onnx_artefacts, checkpoints, tmp_path):
    directory, text, tokens = onnx_artefacts("llama", *YARN), tmp_path / "text.txt", tmp_path / "tokens"
    text.write_text("the needle in the haystack, 12 times: naïve")
    tokens.write_text("3 14 15 92 65 35")
    assert check(directory, checkpoints("llama"), *YARN, "--text", text)[0] == 0
    assert check(directory, checkpoints("llama"), *YARN, "--tokens", tokens)[0] == 0
    mute = shutil.copytree(directory, tmp_path / "mute")
    (mute / "tokenizer.json").write_text("{}")
    assert check(mute, checkpoints("llama"), *YARN, "--text", text)[0] == 2
    (mute / "tokenizer.json").unlink()
    assert check(mute, checkpoints("llama"), *YARN, "--text", text)[0] == 2


def test_a_file_instead_of_its_directory(check, onnx_artefacts, checkpoints):
    directory = onnx_artefacts("llama", *YARN)
    assert check(directory / "model.onnx", checkpoints("llama"), *YARN)[0] == 0


def test_another_models_reference(check, onnx_artefacts, checkpoints):
    code, report, _ = check(onnx_artefacts("qwen3", *YARN), checkpoints("llama"), *YARN)
    assert code == 1
    assert report["verdicts"]["weights"] == "fails"
    code, report, _ = check(onnx_artefacts("llama", *YARN), checkpoints("qwen2"), *YARN)
    assert code == 1
    assert report["verdicts"]["structure"] == "not_judged"
    assert "is missing" in {problem["problem"] for problem in report["weights"]["problems"]}


def test_a_graph_built_otherwise_is_not_judged(check, edited, checkpoints):
    """Whose norms are of another kind: its layers do not show."""

    def edit(editor):
        for node in editor.nodes("RMSNormalization"):
            node.op_type, node.domain = "OwnNorm", "com.example"
        editor.model.opset_import.append(helper.make_opsetid("com.example", 1))

    code, report, _ = check(edited(edit), checkpoints("llama"), *YARN)
    assert (code, report["verdicts"]["structure"]) == (5, "not_judged")


def without_biases(editor):
    for node in editor.nodes("Add"):
        made = next((n for n in editor.graph.node if node.input[1] in n.output), None)
        if made is not None and any("bias" in name for name in made.input):
            for other in editor.graph.node:
                other.input[:] = [node.input[0] if v == node.output[0] else v for v in other.input]


def without_default(editor):
    for initialiser in list(editor.graph.initializer):
        if initialiser.name == "rope_context":
            editor.graph.initializer.remove(initialiser)


def another_default(editor):
    without_default(editor)
    editor.graph.initializer.append(onnx.numpy_helper.from_array(np.array(256), "rope_context"))


def another_layers_scales(editor):
    for node in editor.nodes("DequantizeLinear"):
        if "gate_proj" in node.input[0]:
            node.input[1] = node.input[1].replace("gate_proj", "up_proj")


def zero_point(editor):
    node = editor.nodes("DequantizeLinear")[0]
    shape = editor.tensors[node.input[1]].dims
    name = "zero_point"
    count = int(np.prod(shape))
    editor.graph.initializer.append(
        helper.make_tensor(name, TensorProto.INT4, shape, bytes([0x22]) * (count // 2), raw=True)
    )
    node.input.append(name)


def other_axis(editor):
    node = editor.nodes("DequantizeLinear")[1]  # of a square matrix
    next(a for a in node.attribute if a.name == "axis").i = 0


def one_scale(editor):
    editor.stored("model.layers.1.mlp.up_proj.weight.scales")[7] *= 1.05


CONCAT = (*DYNAMIC, "--kv", "concat")
INT4, FP8 = ((*YARN, "--dtype", dtype) for dtype in ("int4", "fp8"))
# (family, options, edit, the verdict that must not hold)
MORE_FAULTS = {
    "biases that nothing takes": ("qwen2", YARN, without_biases, "weights"),
    "no default context": ("llama", CONCAT, without_default, "structure"),
    "another default context": ("llama", CONCAT, another_default, "structure"),
    "another matrix's scales": ("llama", INT4, another_layers_scales, "structure"),
    "a zero point": ("llama", INT4, zero_point, "structure"),
    "another matrix's scales by column": ("llama", FP8, another_layers_scales, "structure"),
    "scales along the inputs": ("llama", FP8, other_axis, "structure"),
    "one scale of a column altered": ("llama", FP8, one_scale, "weights"),
}


@pytest.mark.parametrize("case", MORE_FAULTS)
def test_faults_of_one_form(case, check, edited, checkpoints):
    family, options, edit, verdict = MORE_FAULTS[case]
    rope = DYNAMIC if "dynamic-yarn" in options else YARN
    code, report, stderr = check(edited(edit, family, options), checkpoints(family), *rope)
    assert code in {1, 5}, stderr
    assert report["verdicts"][verdict] != "holds"


WINDOWED = [
    ("mistral", {"sliding_window": 20}),
    ("mistral", {"sliding_window": 300}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}),
]
WINDOWED_FORMS = (YARN, (*YARN, "--dialect", "ort-cuda"), (*YARN, "--kv", "concat"))


@pytest.mark.parametrize(("model", "options"), list(product(WINDOWED, WINDOWED_FORMS, meet=[])), ids=str)
def test_sliding_windows(model, options, check, yarnconv, tmp_path):
    """Right ones hold, and one that is another than the config's does not, however long it is."""
    family, overrides = model
    directory, out = make_checkpoint(tmp_path / "model", family, **overrides), tmp_path / "onnx"
    assert yarnconv("onnx", directory, *options, "-o", out)[0] == 0
    code, report, _ = check(out, directory, *YARN)
    assert code == 0, report["reasons"]
    other = make_checkpoint(
        tmp_path / "other", family, **{**overrides, "sliding_window": overrides["sliding_window"] - 4}
    )
    _, report, _ = check(out, other, *YARN)
    assert report["verdicts"]["metadata"] == "fails"


def test_fewer_layers_than_there_are_kinds(check, yarnconv, tmp_path):
    windows = {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}
    directory, out = make_checkpoint(tmp_path / "model", "qwen2", **windows), tmp_path / "onnx"
    assert yarnconv("onnx", directory, *YARN, "-o", out)[0] == 0
    code, _, stderr = check(out, directory, *YARN, "--layers", "1")
    assert code == 2
    assert "reaches every kind" in stderr


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--factor", "3.9"), ()),
        (("--factor", "1"), ()),
        ((*YARN, "--max-context", "1"), ("--max-context", "1")),
        ((*YARN, "--max-context", "100"), ("--max-context", "100")),
        ((*DYNAMIC, "--original-context", "2"), ()),
        ((*DYNAMIC, "--max-context", "257"), ("--max-context", "257")),
    ],
    ids=str,
)
def test_unusual_contexts(options, expected, check, onnx_artefacts, checkpoints):
    directory = onnx_artefacts("llama", *options)
    rope = options[: options.index("--max-context")] if "--max-context" in options else options
    code, report, stderr = check(directory, checkpoints("llama"), *rope, *expected)
    assert code in {0, 5}, report["reasons"] if report else stderr  # 5: nothing to see at one position
    assert report["verdicts"]["metadata"] == "holds"


@pytest.mark.parametrize("text", ["[/nope]", "[bold]", "\x1b[31mred"])
def test_what_strangers_wrote_is_shown_as_it_is(text, edited, checkpoints, yarnconv):
    def edit(editor):
        path = editor.directory / "genai_config.json"
        document = json.loads(path.read_text())
        document["model"]["context_length"] = text
        path.write_text(json.dumps(document))
        for node in editor.graph.node:
            node.input[:] = [f"{text}{name}" if name == "cos_cache" else name for name in node.input]
        editor.tensors["cos_cache"].name = f"{text}cos_cache"

    code, stdout, stderr = yarnconv("check", edited(edit), "--reference", checkpoints("llama"), *YARN)
    assert code == 1, stderr
    assert "\x1b" not in stdout
    assert text.replace("\x1b", "\\x1b") in stdout


def _unknown_operator(layer):
    def edit(editor):
        node = editor.nodes("Sigmoid")[layer]
        node.op_type, node.domain = "Sigmund", "com.example"
        editor.model.opset_import.append(helper.make_opsetid("com.example", 1))

    return edit


@pytest.mark.parametrize("layer", [0, 2])  # the last one is only in the model as it is
def test_refused_by_the_runtime(layer, check, edited, checkpoints):
    edit = _unknown_operator(layer)

    code, report, _ = check(edited(edit), checkpoints("llama"), *YARN)
    assert (code, report["verdicts"]["structure"]) == (1, "fails")
    assert "Sigmund" in report["reasons"]["structure"]


def test_a_crash_is_not_a_verdict(check, onnx_artefacts, checkpoints, monkeypatch, tmp_path):
    """ONNX Runtime's process dies: here of a limit on its memory."""
    from yarnconv.verify.runners import onnx_runtime

    dying = tmp_path / "worker.py"
    dying.write_text("import os, sys\nsys.stdin.readline()\nsys.stderr.write('no more')\nos.abort()\n")
    monkeypatch.setattr(onnx_runtime, "WORKER", dying)
    code, report, stderr = check(onnx_artefacts("llama", *YARN), checkpoints("llama"), *YARN)
    assert (code, report) == (70, None)
    assert "SIGABRT" in stderr
    assert "no more" in stderr
    assert "Traceback" not in stderr


def test_cuda_where_there_is_none(check, onnx_artefacts, checkpoints):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    code, _, stderr = check(onnx_artefacts("llama", *YARN), checkpoints("llama"), "--provider", "cuda")
    assert code == 4
    assert "gpu" in stderr
    assert check(onnx_artefacts("llama", *YARN), checkpoints("llama"), "--provider", "tpu")[0] == 2


@pytest.mark.gpu
@pytest.mark.parametrize("options", [("--dtype", "fp16"), ("--dtype", "bf16", "--dialect", "ort-cuda")])
def test_on_a_gpu(options, check, onnx_artefacts, checkpoints):
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("no onnxruntime-gpu")
    directory = onnx_artefacts("llama", *DYNAMIC, *options)
    assert check(directory, checkpoints("llama"), *DYNAMIC, "--provider", "cuda")[0] == 0


def test_options_of_the_other_kind(check, artefacts, checkpoints):
    path = artefacts("llama", "f32", *YARN)
    assert check(path, checkpoints("llama"), "--max-context", "100")[0] == 2
    assert check(path, checkpoints("llama"), "--provider", "cuda")[0] == 2


@pytest.mark.parametrize("module", ["onnx", "onnxruntime"])
def test_missing_extras(module, onnx_artefacts, checkpoints):
    script = (
        f"import sys; sys.modules['{module}'] = None; sys.argv = ['yarnconv', *sys.argv[1:]];"
        "from yarnconv.cli import main; main()"
    )
    arguments = ["check", onnx_artefacts("llama", *YARN), "--reference", checkpoints("llama")]
    found = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True
    )
    assert found.returncode == 4
    assert 'pip install "yarnconv[check,onnx]"' in found.stderr


def test_the_report_does_not_go_into_what_was_judged(check, onnx_artefacts, checkpoints):
    directory = onnx_artefacts("llama", *YARN)
    before = sorted(path.name for path in directory.iterdir())
    for place in (directory / "new.json", directory / "model.onnx", checkpoints("llama") / "new.json"):
        assert check(directory, checkpoints("llama"), *YARN, "--output-json", place)[0] == 2
    assert sorted(path.name for path in directory.iterdir()) == before


def test_nothing_is_left_behind(check, onnx_artefacts, checkpoints, monkeypatch, tmp_path):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert check(onnx_artefacts("llama", *YARN), checkpoints("llama"), *YARN)[0] == 0
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing_behind(onnx_artefacts, checkpoints, tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    directory = onnx_artefacts("llama", *YARN)
    process = start("check", directory, "--reference", checkpoints("llama"), env=environment)
    while not any(tmp_path.glob("yarnconv-check-*/model.onnx")):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert list(tmp_path.iterdir()) == []


def _location(value):
    def edit(editor):
        for tensor in editor.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = value

    return edit


def _entry(key, value):
    def edit(editor):
        tensor = next(t for t in editor.graph.initializer if t.external_data)
        for entry in tensor.external_data:
            if entry.key == key:
                entry.value = value

    return edit


def _first_tensor(change):
    return lambda editor: change(editor.graph.initializer[0], editor)


HOSTILE = {
    "outside": (_location("../../../etc/passwd"), "outside the directory"),
    "absolute": (_location("/etc/passwd"), "outside the directory"),
    "parent": (_location(".."), "outside the directory"),
    "no location": (_location(""), "outside the directory"),
    "missing file": (_location("gone.data"), "missing"),
    "directory as file": (_location("sub"), "missing"),
    "offset beyond the end": (_entry("offset", str(10**12)), "lie outside"),
    "negative offset": (_entry("offset", "-8"), "not a number"),
    "offset no number": (_entry("offset", "1e3"), "not a number"),
    "huge offset": (_entry("offset", "9" * 40), "not a number"),
    "length that is not the shape's": (_entry("length", "4"), "its length is not"),
    "negative dimension": (_first_tensor(lambda t, e: t.dims.insert(0, -3)), "has the shape"),
    "huge dimensions": (_first_tensor(lambda t, e: t.dims.extend([2**40, 2**40])), "has the shape"),
    "many dimensions": (_first_tensor(lambda t, e: t.dims.extend([1] * 100)), "has the shape"),
    "unknown type": (_first_tensor(lambda t, e: setattr(t, "data_type", 99)), "is of type"),
    "strings": (_first_tensor(lambda t, e: setattr(t, "data_type", TensorProto.STRING)), "is of type"),
    "too few bytes": (_first_tensor(lambda t, e: setattr(t, "raw_data", b"ab")), "does not hold"),
    "a tensor twice": (
        lambda e: e.graph.initializer.append(e.graph.initializer[-1]),
        "stands twice",
    ),
    "an operator there is none of": (
        lambda e: setattr(e.nodes("Sigmoid")[0], "op_type", "Sigmund"),
        "is not valid ONNX",
    ),
    "a value that needs itself": (
        lambda e: e.nodes("Sigmoid")[0].input.__setitem__(0, e.nodes("Sigmoid")[0].output[0]),
        "is not valid ONNX",
    ),
    "an operator without its inputs": (
        lambda e: e.nodes("RotaryEmbedding")[0].ClearField("input"),
        "is not valid ONNX",
    ),
    "a graph without nodes": (lambda e: e.graph.ClearField("node"), "no graph"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_models(case, check, edited, checkpoints):
    edit, said = HOSTILE[case]
    directory = edited(edit)
    (directory / "sub").mkdir(exist_ok=True)
    code, report, stderr = check(directory, checkpoints("llama"), *YARN)
    assert (code, report) == (2, None)
    assert said in " ".join(stderr.split())
    assert "Traceback" not in stderr


def _truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    "spoil",
    [
        _truncated,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(os.urandom(4096)),
        lambda path: path.write_text("GGUF, perhaps"),
        lambda path: path.unlink(),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (path.rename(path.with_name("a.onnx")), (path.parent / "b.onnx").write_bytes(b"")),
    ],
    ids=["truncated", "empty", "noise", "text", "missing", "directory", "two others"],
)
def test_what_is_no_model(spoil, check, edited, checkpoints):
    directory = edited(lambda editor: None)
    spoil(directory / "model.onnx")
    code, _, stderr = check(directory, checkpoints("llama"), *YARN)
    assert code == 2
    assert "Traceback" not in stderr


def test_a_long_chain_of_nodes_is_walked_without_recursion(check, edited, checkpoints):
    """As deep as a stack is not."""

    def edit(editor):
        norm = editor.nodes("RMSNormalization")[0]
        at, value = list(editor.graph.node).index(norm), norm.input[0]
        chain = []
        for number in range(5000):
            chain.append(helper.make_node("Identity", [value], [f"chain_{number}"]))
            value = f"chain_{number}"
        norm.input[0] = value
        nodes = list(editor.graph.node)
        editor.graph.ClearField("node")
        editor.graph.node.extend([*nodes[:at], *chain, *nodes[at:]])

    code, _report, stderr = check(edited(edit), checkpoints("llama"), *YARN)
    assert code in {0, 1}, stderr


def test_half_a_genai_config(check, edited, checkpoints):
    for text, code in (("{", 2), ("[]", 2), ('{"model": 3}', 1)):
        directory = edited(lambda editor: None)
        (directory / "genai_config.json").write_text(text)
        assert check(directory, checkpoints("llama"), *YARN)[0] == code
    (directory / "genai_config.json").unlink()
    assert check(directory, checkpoints("llama"), *YARN)[0] == 0


def test_tables_made_in_float32_are_right_too(check, edited, checkpoints):
    """As transformers makes them: its own module's, for the same plan."""
    import torch
    import transformers

    def edit(editor):
        config = transformers.AutoConfig.from_pretrained(checkpoints("llama"))
        config.rope_parameters = {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 256,
        }
        module = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
        cos, sin = module(torch.zeros(1), torch.arange(1024)[None])
        for name, values in (("cos_cache", cos), ("sin_cache", sin)):
            editor.stored(name)[:-1] = values[0, :, :32].numpy()

    code, report, _ = check(edited(edit), checkpoints("llama"), *YARN)
    assert code == 0, report["reasons"]
    assert any("made in float32" in fact["found"] for fact in report["metadata"])
    assert not any(np.isnan(window["relative"]) for window in report["windows"])


def test_onnx_loads_what_is_copied(check, onnx_artefacts, checkpoints, monkeypatch):
    """The float32 copy is a valid model by the onnx package's own checker."""
    from yarnconv.targets.onnx.float_copy import FloatCopy

    write, seen = FloatCopy.write, []

    def checked(self, directory, advance):
        path = write(self, directory, advance)
        onnx.checker.check_model(path)
        seen.append(path)
        return path

    monkeypatch.setattr(FloatCopy, "write", checked)
    assert check(onnx_artefacts("qwen3", *DYNAMIC, "--dtype", "fp16"), checkpoints("qwen3"), *DYNAMIC)[0] == 0
    assert len(seen) == 1


def test_data_that_is_a_link_out_of_the_directory(check, edited, checkpoints, tmp_path):
    directory = edited(lambda editor: None)
    outside = tmp_path / "outside.data"
    (directory / "model.onnx.data").rename(outside)
    (directory / "model.onnx.data").symlink_to(outside)
    code, _, stderr = check(directory, checkpoints("llama"), *YARN)
    assert code == 2
    assert "links outside" in stderr


def test_a_directory_of_links_as_in_the_hubs_cache(check, edited, checkpoints, tmp_path):
    """All of them into one store: that is where the model lies."""
    directory = edited(lambda editor: None)
    links = tmp_path / "snapshot"
    links.mkdir()
    for path in directory.iterdir():
        (links / path.name).symlink_to(path)
    code, report, stderr = check(links, checkpoints("llama"), *YARN)
    assert code == 0, report["reasons"] if report else stderr


def test_no_logits(check, edited, checkpoints):
    def edit(editor):
        editor.graph.output[0].name = "Cast_of_them"
        for node in editor.graph.node:
            node.output[:] = ["Cast_of_them" if name == "logits" else name for name in node.output]

    code, report, _ = check(edited(edit), checkpoints("llama"), *YARN)
    assert (code, report["verdicts"]["structure"]) == (5, "not_judged")
