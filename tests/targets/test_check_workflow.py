"""The workflow beside an artefact: YAML, and a command that does check it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.selection import slow
from yarnconv.targets.check_workflow import Reference, check_workflow

EXPRESSION = re.compile(r"\$\{\{ '(.*?)' \}\}")


def jobs(text):
    """The one job, its expressions replaced as GitHub replaces them."""
    document = yaml.safe_load(text)
    assert set(document) == {"name", "on", "permissions", "jobs"}
    assert document["permissions"] == {"contents": "read"}
    (job,) = document["jobs"].values()
    assert step(job, "Keep the report")["with"]["path"] == "${{ runner.temp }}/report.json"
    strangers = {name: value for name, value in job.items() if name != "steps"}
    assert "${{" not in EXPRESSION.sub("", json.dumps(strangers))
    assert "${{" not in step(job, "Check")["run"] + step(job, "Install")["run"]
    job["env"] = {name: EXPRESSION.sub(r"\1", value) for name, value in job["env"].items()}
    return job


def step(job, name):
    (found,) = [step for step in job["steps"] if step.get("name") == name]
    return found


def run(job, directory):
    """(exit code, verdict) of its check, run where the artefact lies, by this interpreter's yarnconv."""
    programs = directory.parent / "programs"
    programs.mkdir(exist_ok=True)
    program = programs / "yarnconv"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m yarnconv "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, **job["env"], "PATH": f"{programs}:{os.environ['PATH']}"}
    environment["RUNNER_TEMP"] = str(programs)
    (programs / "report.json").unlink(missing_ok=True)
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    script = step(job, "Check")["run"]
    ended = subprocess.run(["bash", "-e", "-c", script], cwd=directory, env=environment, capture_output=True)
    assert (programs / "report.json").exists(), ended.stderr
    return ended.returncode, json.loads((programs / "report.json").read_text())["parity"]


def repository(checkpoints, tmp_path):
    """A directory with the checkpoint in it, by its own name."""
    place = tmp_path / "repository"
    place.mkdir()
    shutil.copytree(checkpoints("llama"), place / checkpoints("llama").name)
    return place


NAME = 'it\'s ${{ github.token }} $(touch pwned) `touch pwned` "a": #.gguf'


@pytest.mark.parametrize("name", [NAME, *slow("model.gguf")])
def test_a_gguf(name, checkpoints, yarnconv, tmp_path):
    place = repository(checkpoints, tmp_path)
    arguments = ("gguf", checkpoints("llama"), "--factor", "4", "--emit", "ci", "--json", "-o", place / name)
    code, stdout, stderr = yarnconv(*arguments)
    assert code == 0, stderr
    file = place / f"{name.removesuffix('.gguf')}.check.yml"
    assert [entry["path"] for entry in json.loads(stdout)["files"]][1:] == [str(file)]
    job = jobs(file.read_text())
    assert job["env"] == {"ARTEFACT": name, "REFERENCE": checkpoints("llama").name}
    assert '"yarnconv[check,llama]==' in step(job, "Install")["run"]
    assert run(job, place) == (0, True)
    assert not list(tmp_path.rglob("pwned"))
    # and it does fail
    assert yarnconv("gguf", checkpoints("llama"), "--factor", "2", "-o", place / name)[0] == 0
    assert run(job, place) == (1, False)


def test_a_dynamic_plan_is_checked_as_the_plain_file_it_is(checkpoints, yarnconv, tmp_path):
    place = repository(checkpoints, tmp_path)
    options = ("--method", "dynamic-yarn", "--factor", "4", "--emit", "llama-server,ci")
    assert yarnconv("gguf", checkpoints("llama"), *options, "-o", place / "m.gguf")[0] == 0
    job = jobs((place / "m.check.yml").read_text())
    assert "--method none" in step(job, "Check")["run"]
    assert run(job, place) == (0, True)


def test_an_onnx_directory(checkpoints, yarnconv, tmp_path):
    place = tmp_path / "onnx"
    options = ("--method", "dynamic-yarn", "--factor", "4", "--max-context", "700", "--emit", "all")
    code, stdout, _ = yarnconv("onnx", checkpoints("llama"), *options, "--json", "-o", place)
    assert code == 0
    assert str(place / "check.yml") in [entry["path"] for entry in json.loads(stdout)["files"]]
    job = jobs((place / "check.yml").read_text())
    assert job["env"]["ARTEFACT"] == "."
    assert '"yarnconv[check,onnx]==' in step(job, "Install")["run"]
    shutil.copytree(checkpoints("llama"), place / checkpoints("llama").name)
    assert run(job, place) == (0, True)


def test_an_onnx_model_that_was_there_already(onnx_artefacts, checkpoints, yarnconv, tmp_path):
    """Which checkpoint it was made of nobody knows: once it is named, the workflow checks it."""
    place = tmp_path / "onnx"
    options = ("--factor", "4", "--max-context", "512", "--emit", "ci")
    code, stdout, stderr = yarnconv("onnx", onnx_artefacts("llama"), *options, "-o", place)
    assert code == 0, stderr
    assert "name it in check.yml instead of MODEL" in " ".join(stdout.split())
    job = jobs((place / "check.yml").read_text())
    assert job["env"]["REFERENCE"] == "MODEL"
    job["env"]["REFERENCE"] = str(checkpoints("llama"))
    assert run(job, place) == (0, True)


def test_an_engine(checkpoints, engines, tmp_path):
    """No GPU ran it: not judged, which is no failure of the artefact's, and is said."""
    pytest.importorskip("tensorrt_rtx", reason="there are wheels for Linux and Windows on x86-64 only")
    directory, document = engines("llama", "--factor", "4", "--dtype", "fp16", "--emit", "ci,card,triton")
    assert str(directory / "check.yml") in [entry["path"] for entry in document["files"]]
    place = shutil.copytree(directory, tmp_path / "engine")
    job = jobs((place / "check.yml").read_text())
    assert '"yarnconv[check,onnx,trt]==' in step(job, "Install")["run"]
    assert "--factor 4.0" in step(job, "Check")["run"]
    shutil.copytree(checkpoints("llama"), place / checkpoints("llama").name)
    assert run(job, place) == (0, None)


@pytest.mark.parametrize("command", ["onnx", "trt"])
def test_what_there_is_not(command, checkpoints, yarnconv, tmp_path):
    out = tmp_path / "out"
    code, _, stderr = yarnconv(command, checkpoints("llama"), "--emit", "ollama", "-o", out)
    assert code == 2
    assert "'ollama' is nothing that this command can write" in stderr
    assert not out.exists()


def test_triton_of_an_onnx_model(checkpoints, yarnconv, tmp_path):
    code, _, stderr = yarnconv("onnx", checkpoints("llama"), "--emit", "triton", "-o", tmp_path / "out")
    assert code == 2
    assert "Triton's ONNX Runtime backend" in stderr


@pytest.mark.parametrize(
    "model",
    [
        "org/name",
        'a"b\\c',
        "${{ secrets.X }}",
        "two\nlines: x",
        "\x85\u2028\x7f\udc80",
        "\U0001f98a",
        "#a",
        "yes",
    ],
    ids=ascii,
)
def test_any_reference_is_a_string(model):
    reference = Reference(model=model, revision=model)
    made = check_workflow("a.yml", artefact=model, reference=reference, extras="check", options="")
    job = jobs(made.text)
    assert job["env"] == dict.fromkeys(("ARTEFACT", "REFERENCE", "REVISION"), model)
    assert '--revision "$REVISION"' in step(job, "Check")["run"]


def test_who_the_reference_is(tmp_path):
    (tmp_path / "model").mkdir()
    assert Reference.of(str(tmp_path / "model"), None) == Reference(
        model="model", remark="the checkpoint: a directory of this repository, or better a Hub id"
    )
    assert Reference.of("org/name", "main") == Reference(model="org/name", revision="main")
