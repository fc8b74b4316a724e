"""`yarnconv trt`: its options, what it refuses, and that nothing is left behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.support.models import edit_config, make_checkpoint
from tests.support.onnx_faults import Editor
from yarnconv.targets.tensorrt import builder, memory

pytest.importorskip("tensorrt_rtx", reason="there are wheels for Linux and Windows on x86-64 only")

YARN = ("--factor", "4")
CONCAT = ("--kv", "concat", "--dtype", "fp16")
PROFILE = """
[[profile]]
name = "{name}"
batch = {batch}
new_tokens = {new}
past_tokens = {past}
"""


def profile(name="decode", batch="[1, 1, 2]", new="[1, 1, 2]", past="[0, 100, 1000]"):
    return PROFILE.format(name=name, batch=batch, new=new, past=past)


@pytest.fixture
def build(yarnconv, checkpoints, tmp_path):
    """Run `yarnconv trt` on the tiny llama: (exit code, document, stderr in one line)."""

    def run(*options, model=None):
        out = tmp_path / "out" / "engine"
        out.parent.mkdir(exist_ok=True)
        model = model or checkpoints("llama")
        code, stdout, stderr = yarnconv("trt", model, *options, "--json", "-o", out)
        left = [path.name for path in out.parent.iterdir()]
        assert left == (["engine"] if code == 0 else []), stderr
        assert "Traceback" not in stderr
        return code, json.loads(stdout) if code == 0 else None, " ".join(stderr.split())

    return run


@pytest.fixture
def edited(onnx_artefacts, tmp_path):
    return lambda *options: Editor(onnx_artefacts("llama", *options), tmp_path / "edited")


def test_profiles_of_a_file(build, tmp_path):
    file = tmp_path / "profiles.toml"
    file.write_text(profile("prefill", "[1, 2, 3]", "[1, 16, 64]", "[0, 0, 900]") + profile())
    code, document, stderr = build(*YARN, "--profiles", file)
    assert code == 0, stderr
    first, second = document["engine"]["profiles"]
    assert first == {
        "name": "prefill",
        "batch": [1, 2, 3],
        "new_tokens": [1, 16, 64],
        "past_tokens": [0, 0, 900],
    }
    assert second["name"] == "decode"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (profile(new="[3, 2, 4]"), "not in the order min <= opt <= max"),
        (profile(batch="[0, 1, 1]"), "from 1 to"),
        (profile(past="[0, 1, 5000]"), "reach beyond the tables' 1024 positions"),
        (profile(new="[1, 1, 1025]"), "reach beyond the tables"),
        (profile(new='["1", 1, 2]'), "no list of three whole numbers"),
        (profile(new="[true, true, true]"), "no list of three whole numbers"),
        (profile() + profile(), "two profiles have the same name"),
        (profile("a b"), "letters, digits"),
        (profile() + "more = 1\n", "'more' is no key of a profile"),
        (profile().replace("batch", "batches"), "'batch' is missing of a profile"),
        ("profile = 3", "holds no [[profile]]"),
        ("", "holds no [[profile]]"),
        ("[[profile", "is no TOML"),
        ("".join(profile(f"p{i}") for i in range(17)), "17 profiles, more than 16"),
        ("a = " + "[" * 9000, "is no TOML"),
        ("a = " + "9" * 5000, "is no TOML"),
    ],
)
def test_senseless_profiles(text, said, build, tmp_path):
    file = tmp_path / "profiles.toml"
    file.write_text(text)
    code, _, stderr = build(*YARN, "--profiles", file)
    assert code == 2
    assert said in stderr
    assert "profiles.toml" in stderr


def test_a_decode_profile_of_exactly_one_token(build, tmp_path):
    """Planned badly by TensorRT once the past is long; a short past is fine."""
    file = tmp_path / "profiles.toml"
    file.write_text(profile(new="[1, 1, 1]", past="[0, 1, 20000]"))
    code, _, stderr = build("--factor", "128", "--profiles", file)
    assert code == 2
    assert "[1, 1, 2]" in stderr
    file.write_text(profile(new="[1, 1, 1]"))
    assert build(*YARN, "--profiles", file)[0] == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--runtime", "tensorflow"), "Choose one of auto, tensorrt, tensorrt-rtx"),
        (("--dtype", "fp4"), "Choose one of auto, fp16"),
        (("--compute-capability", "9.0"), "Choose among"),
        (("--compute-capability", "8.9,"), "no compute capability"),
        (("--compute-capability", "\x1b[31m"), "no compute capability"),
        (("--dtype", "bf16", "--compute-capability", "7.5"), "has no bf16"),
        (("--dtype", "fp8", "--compute-capability", "8.6"), "has no fp8"),
        (("--opt-level", "6"), "between 0 and 5"),
        (("--workspace", "much"), "is no size"),
        (("--max-context", "1025"), "between 1 and the plan's target context"),
        (("--max-input", "1025"), "between 1 and 1024"),
        (("--max-batch", "0"), "between 1 and"),
        (("--profiles", "none.toml"), "none.toml"),
        (("--runtime-log", "loud"), "Choose one of error, warning"),
    ],
)
def test_senseless_options(options, said, build):
    code, _, stderr = build(*YARN, *options)
    assert code == 2
    assert said in stderr
    assert "\x1b" not in stderr


def test_profiles_say_it_all(build, tmp_path):
    file = tmp_path / "profiles.toml"
    file.write_text(profile())
    code, _, stderr = build(*YARN, "--profiles", file, "--max-batch", "2")
    assert code == 2
    assert "--max-batch: --profiles says it all" in stderr


def test_options_of_the_builder(build):
    options = (
        "--opt-level",
        "0",
        "--workspace",
        "1G",
        "--weight-streaming",
        "--compute-capability",
        "8.9,8.9",
    )
    code, document, stderr = build(*YARN, "--max-batch", "3", "--max-input", "100", *options)
    assert code == 0, stderr
    engine = document["engine"]
    assert engine["compute_capabilities"] == ["8.9"]
    assert engine["build"] | {"seconds": 0, "peak_memory_bytes": 0} == {
        "optimization_level": 0,
        "workspace": 10**9,
        "weight_streaming": True,
        "seconds": 0,
        "peak_memory_bytes": 0,
        "executed": False,
    }
    prefill, decode = engine["profiles"]
    assert (prefill["batch"], prefill["new_tokens"]) == ([1, 1, 3], [1, 100, 100])
    assert (decode["new_tokens"], decode["past_tokens"]) == ([1, 1, 2], [0, 1023, 1023])


@pytest.mark.parametrize(
    ("dtype", "computes", "first"),
    [("fp32", "fp32", "8.0"), ("int4", "fp16", "8.0"), ("fp8", "fp16", "8.9")],
)
def test_other_types(dtype, computes, first, build):
    """float32 attention is decomposed, as there is no fused one; fewer bits are for matrices only."""
    code, document, stderr = build(*YARN, "--dtype", dtype)
    assert code == 0, stderr
    assert document["outtype"] == dtype
    assert document["engine"]["graph"]["cache_type"] == computes
    assert document["engine"]["compute_capabilities"][0] == first


def test_bf16_checkpoints_stay_so_and_leave_out_what_cannot_run_them(build, tmp_path):
    import torch

    directory = make_checkpoint(tmp_path / "bf16", "llama", dtype=torch.bfloat16)
    code, document, stderr = build(*YARN, model=directory)
    assert code == 0, stderr
    assert document["outtype"] == "bf16"
    assert document["notes"] == []  # TensorRT converts nothing
    assert document["engine"]["compute_capabilities"] == ["8.0", "8.6", "8.9", "12.0", "12.1"]


def test_all_logits(build, tmp_path):
    """By default only the last token's are made."""
    assert build(*YARN, "--all-logits")[0] == 0
    model = onnx.load(tmp_path / "out" / "engine" / "model.onnx", load_external_data=False)
    shape = model.graph.output[0].type.tensor_type.shape
    assert [d.dim_param or d.dim_value for d in shape.dim] == ["batch_size", "sequence_length", 512]


def test_longrope_by_the_declared_context(build, checkpoints, tmp_path):
    """Its two sets are the buckets of two ranges of contexts."""
    directory = shutil.copytree(checkpoints("llama"), tmp_path / "longrope")
    factors = [1.0 + i for i in range(32)]
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": factors[::-1]}
    rope |= {"long_factor": factors, "original_max_position_embeddings": 128, "factor": 2.0}
    edit_config(directory, rope_parameters=rope)
    code, _, stderr = build(model=directory)
    assert code == 0, stderr
    sidecar = json.loads((tmp_path / "out" / "engine" / "yarnconv.json").read_text())
    assert sidecar["graph"]["bucket_contexts"] == [128, 256]
    first, last = sidecar["plan"]["groups"][0]["buckets"]
    assert (first["inv_freq"][0], last["inv_freq"][0]) == (1.0 / factors[-1], 1.0)


# what an ONNX directory may be that no engine is made of


def test_an_onnx_directory(build, onnx_artefacts):
    """Its plan is the record's, rope_context has to be given, its data file is linked beside the graph."""
    source = onnx_artefacts("qwen3", *YARN, "--method", "dynamic-yarn", *CONCAT)
    code, document, stderr = build(model=source)
    assert code == 0, stderr
    assert document["plan"]["method"] == "dynamic-yarn"
    assert any(i["found"] == "10 inputs" for i in document["read_back"])
    directory = Path(document["files"][0]["path"]).parent
    assert (directory / "model.onnx.data").samefile(source / "model.onnx.data")
    graph = onnx.load(directory / "model.onnx", load_external_data=False).graph
    assert "rope_context" in [value.name for value in graph.input]
    assert "rope_context" not in [tensor.name for tensor in graph.initializer]


def in_place(edited):
    return edited(*YARN, "--dtype", "fp16").save()


def of_onnx_runtime(edited):
    return edited(*YARN, "--dtype", "fp16", "--dialect", "ort-cuda").save()


def altered_data(edited):
    editor = edited(*YARN, *CONCAT)
    editor.stored("model.norm.weight")[3] += np.float16(1)
    return editor.save()


def missing_data(edited):
    directory = edited(*YARN, *CONCAT).save()
    (directory / "model.onnx.data").unlink()
    return directory


def without_record(edited):
    editor = edited(*YARN, *CONCAT)
    del editor.model.metadata_props[:]
    return editor.save()


def recorded(**changes):
    def edit(edited):
        editor = edited(*YARN, *CONCAT)
        (entry,) = editor.model.metadata_props
        entry.value = json.dumps({**json.loads(entry.value), **changes})
        return editor.save()

    return edit


def old_opset(edited):
    editor = edited(*YARN, *CONCAT)
    for opset in editor.model.opset_import:
        opset.version = 17
    editor.graph.ClearField("node")
    for output in editor.graph.output:
        node = onnx.helper.make_node("Identity", ["input_ids"], [output.name], name=output.name)
        editor.graph.node.append(node)
    return editor.save()


def another_output(edited):
    editor = edited(*YARN, *CONCAT)
    editor.graph.output.pop()
    return editor.save()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (in_place, "writes its cache in place"),
        (of_onnx_runtime, "writes its cache in place"),
        (altered_data, "model.onnx.data: is not the file that was written with the model"),
        (missing_data, "model.onnx.data is missing"),
        (without_record, "does not say which plan it carries"),
        (recorded(config=None), "its record holds no model configuration"),
        (recorded(config={"model_type": "mamba"}), "mamba"),
        (recorded(graph={"max_context": 10**9, "dtype": "fp16"}), "how long its tables are"),
        (recorded(graph=[]), "how long its tables are"),
        (recorded(rope_options={"factor": "4"}), "cannot be read"),
        (old_opset, "opset 17 is too old"),
        (another_output, "present.2.value is missing, or too much"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_no_engine_is_made_of_it(spoil, said, build, edited):
    code, _, stderr = build(model=spoil(edited))
    assert code == (3 if said == "mamba" else 2)  # a family without a data file is no broken input
    assert said in stderr


def test_what_tensorrt_does_not_parse(build, edited):
    """Valid ONNX, and unknown to its parser: the node is named."""
    editor = edited(*YARN, *CONCAT)
    square = editor.constant(np.eye(2, dtype=np.float32))
    editor.graph.node.insert(0, onnx.helper.make_node("Det", [square], ["one"], name="the_odd_one"))
    code, _, stderr = build(model=editor.save())
    assert code == 2
    assert "does not parse the graph: Det the_odd_one" in stderr


def test_what_tensorrt_does_not_build(build):
    code, _, stderr = build(*YARN, "--workspace", "1")
    assert code == 2
    assert "does not build the engine" in stderr


def test_options_that_come_too_late(build, onnx_artefacts):
    source = onnx_artefacts("llama", *YARN, *CONCAT)
    shape = (("--dtype", "fp16"), ("--max-context", "512"), ("--all-logits",))
    for options in (("--factor", "8"), *shape, ("--revision", "main"), ("--no-profile",)):
        code, _, stderr = build(*options, model=source)
        assert code == 2
        assert "made already" in stderr


def test_a_data_file_of_a_name_of_ours(build, edited, tmp_path):
    """What is written beside the engine would go through the link into the source."""
    for name in ("model.engine", "README.md", "engine.py", "generate.py", "tokenizer.json"):
        editor = edited(*YARN, *CONCAT)
        (editor.directory / "model.onnx.data").rename(editor.directory / name)
        for tensor in editor.graph.initializer:
            for entry in tensor.external_data:
                entry.value = name if entry.key == "location" else entry.value
        (entry,) = editor.model.metadata_props
        entry.value = json.dumps({k: v for k, v in json.loads(entry.value).items() if k != "data_digest"})
        before = (editor.save() / name).read_bytes()
        code, _, stderr = build(model=editor.directory)
        assert code == 2
        assert f"has the name {name}, which is taken" in stderr
        assert (editor.directory / name).read_bytes() == before


def test_weights_in_other_files_are_mentioned(build, onnx_artefacts):
    source = onnx_artefacts("llama", *YARN, "--kv", "concat", "--link-weights")
    code, document, stderr = build(model=source)
    assert code == 0, stderr
    assert any("model.safetensors; no digest of it" in note for note in document["notes"])


def test_a_dynamic_plan_of_one_bucket(build, checkpoints, check):
    """Tables that end within the original context: nothing to declare."""
    options = (*YARN, "--method", "dynamic-yarn")
    code, document, stderr = build(*options, "--max-context", "200")
    assert code == 0, stderr
    directory = Path(document["files"][0]["path"]).parent
    code, report, stderr = check(directory, checkpoints("llama"), *options, "--max-context", "200")
    assert code == 5, stderr
    assert report["verdicts"]["metadata"] == "holds"


def test_capabilities_in_any_order(build, checkpoints, check, yarnconv):
    code, document, stderr = build(*YARN, "--compute-capability", "8.9,7.5")
    assert code == 0, stderr
    directory = Path(document["files"][0]["path"]).parent
    assert check(directory, checkpoints("llama"), *YARN)[1]["verdicts"]["metadata"] == "holds"
    assert json.loads(yarnconv("inspect", directory, "--json")[1])["findings"] == []


def test_not_enough_memory(build, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 10**6)
    code, _, stderr = build(*YARN)
    assert code == 2
    assert "of memory" in stderr


def test_memory_is_read_from_the_machine():
    assert 10**8 < memory.available_memory() < 10**14


@pytest.mark.parametrize("runtime", ["auto", "tensorrt", "tensorrt-rtx"])
def test_no_runtime(runtime, build, monkeypatch):
    monkeypatch.setattr(builder, "find_spec", lambda name: None)
    code, _, stderr = build(*YARN, "--runtime", runtime)
    assert code == 4
    extra = "tensorrt" if runtime == "tensorrt" else "trt"
    assert f'pip install "yarnconv[{extra}]"' in stderr


def test_a_runtime_without_its_libraries(build, monkeypatch, tmp_path):
    """The package is there, and cannot be imported: as tensorrt is on a machine without CUDA's libraries."""
    broken = tmp_path / "site" / "tensorrt"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text(
        "raise ImportError('libnvinfer.so.10: cannot open shared object file')"
    )
    monkeypatch.syspath_prepend(broken.parent)
    monkeypatch.setenv("PYTHONPATH", str(broken.parent))
    code, _, stderr = build(*YARN, "--runtime", "tensorrt")
    assert code == 4
    assert "libnvinfer.so.10" in stderr


def test_the_destination_is_no_place_to_lose_things(yarnconv, checkpoints, tmp_path):
    directory = shutil.copytree(checkpoints("llama"), tmp_path / "model")
    for destination, said in ((directory, "destination"), (tmp_path, "destination holds the checkpoint")):
        code, _, stderr = yarnconv("trt", directory, *YARN, "--force", "-o", destination)
        assert code == 2
        assert said in " ".join(stderr.split())
    assert (directory / "config.json").exists()


def test_a_file_that_may_not_grow(checkpoints, tmp_path):
    """As a full disk: the advice is about the disk."""
    command = f"ulimit -f 1000; exec {sys.executable} -m yarnconv trt {checkpoints('llama')} --factor 4"
    found = subprocess.run(
        ["bash", "-c", f"{command} -o {tmp_path / 'engine'}"], capture_output=True, text=True, cwd=tmp_path
    )
    assert found.returncode == 2, found.stderr
    assert "Free some space" in found.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing_behind(checkpoints, tmp_path):
    """Ctrl-C in the middle of the build; the builder's process ends too."""
    out = tmp_path / "engine"
    command = [sys.executable, "-m", "yarnconv", "trt", str(checkpoints("llama")), *YARN, "-o", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".engine.*.partial/model.engine")) and time.monotonic() < deadline:
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    assert b"Traceback" not in stderr
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
