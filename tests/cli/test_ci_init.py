"""`yarnconv ci init`: a workflow that is YAML, and whose own steps convert and judge."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from junitparser import JUnitXml

FILE = Path(".github/workflows/yarnconv-parity.yml")


@pytest.fixture
def init(yarnconv, tmp_path):
    """Write it into a repository: (its job, the repository)."""
    place = tmp_path / "repository"
    place.mkdir()

    def run(*options):
        code, stdout, stderr = yarnconv("ci", "init", place, *options)
        assert code == 0, stderr
        assert "wrote" in stdout
        document = yaml.safe_load((place / FILE).read_text())
        assert document["permissions"] == {"contents": "read"}
        assert set(document["on"]) == {"push", "pull_request", "workflow_dispatch"}
        (job,) = document["jobs"].values()
        return job, place

    return run


def steps(job):
    return {step.get("name", step.get("uses")): step for step in job["steps"]}


class Runner:
    """Runs the steps as GitHub does: bash -e, what a step writes to GITHUB_ENV is the next one's."""

    def __init__(self, job, place, **asked):
        self.temporary = place.parent / "runner"
        shutil.rmtree(self.temporary, ignore_errors=True)
        (self.temporary / "bin").mkdir(parents=True)
        for name, body in (
            ("yarnconv", f'exec "{sys.executable}" -P -m yarnconv "$@"'),
            ("pip", f'echo "$@" >> "{self.temporary}/pip.log"'),
        ):
            program = self.temporary / "bin" / name
            program.write_text(f"#!/bin/sh\n{body}\n")
            program.chmod(0o755)
        self.job, self.place = job, place
        # what an expression of inputs gives where nobody started it by hand
        inputs = {f"ASKED_{name.upper()}": asked.get(name, "") for name in ("model", "target", "factor")}
        self.environment = {**os.environ, **job["env"], **inputs, "RUNNER_TEMP": str(self.temporary)}
        self.environment["PATH"] = f"{self.temporary / 'bin'}:{os.environ['PATH']}"
        self.environment["PYTHONPATH"] = str(Path(__file__).parents[2])
        self.environment["GITHUB_ENV"] = str(self.temporary / "env")
        self.environment["GITHUB_STEP_SUMMARY"] = str(self.temporary / "summary.md")

    def run(self, name):
        script = steps(self.job)[name]["run"]
        assert "${{" not in script  # what strangers ask for comes in the environment only
        command = ["bash", "-e", "-c", script]
        ended = subprocess.run(command, cwd=self.place, env=self.environment, capture_output=True, text=True)
        exported = self.temporary / "env"
        if exported.exists():
            self.environment |= dict(line.split("=", 1) for line in exported.read_text().splitlines())
        return ended

    def all(self):
        for name in ("Install", "Convert", "Check"):
            ended = self.run(name)
            if ended.returncode:
                break
        return ended.returncode, ended.stderr

    @property
    def report(self):
        return json.loads((self.temporary / "report" / "report.json").read_text())


def test_every_action_is_pinned_and_the_report_is_kept_even_of_a_failure(init):
    job, _ = init("--model", "org/name")
    used = [step["uses"] for step in job["steps"] if "uses" in step]
    assert len(used) == 3
    assert all(use.startswith("actions/") and use.partition("@v")[2].isdecimal() for use in used)
    kept = steps(job)["Keep the report"]
    assert kept["if"] == "always()"
    assert kept["with"]["path"] == "${{ runner.temp }}/report"


def assert_judged(runner, target):
    """Its own report, in every form, and what was installed for it."""
    extras = {"gguf": "yarnconv[check,llama]==", "onnx": "yarnconv[check,onnx]=="}[target]
    assert extras in (runner.temporary / "pip.log").read_text()
    assert runner.report["parity"] is True
    assert runner.report["expected"]["factor"] == 2.0
    assert JUnitXml.fromfile(str(runner.temporary / "report" / "junit.xml")).failures == 0
    assert "Parity holds" in (runner.temporary / "report" / "report.html").read_text()
    assert "Parity holds" in (runner.temporary / "summary.md").read_text()


@pytest.mark.parametrize("factor", ["4", "1.5", "1.2345678", "3.0000000000000004", "65535.987"])
def test_the_factor_is_exactly_the_one_that_was_given(factor, init):
    job, _ = init("--factor", factor)
    assert job["env"]["FACTOR"] == factor


def test_its_steps_convert_and_judge_and_fail_where_they_should(init, checkpoints):
    job, place = init("--model", "model", "--factor", "2")
    shutil.copytree(checkpoints("llama"), place / "model")
    runner = Runner(job, place)
    assert runner.all() == (0, "")
    assert_judged(runner, "gguf")
    # a baseline that was better than anything can be
    good = runner.report
    assert "baseline" not in good
    for window in good["windows"]:
        window["relative_max"] = 0.0
    (place / job["env"]["BASELINE"]).write_text(json.dumps(good))
    shutil.rmtree(runner.temporary / "report")
    assert runner.run("Check").returncode == 1
    assert runner.report["parity"] is True
    assert runner.report["baseline"]["regressions"] != []
    # an artefact that is another than the one that is expected; and what was asked for has no baseline
    runner.environment["ASKED_FACTOR"] = "3"
    shutil.rmtree(runner.temporary / "report")
    assert runner.run("Check").returncode == 1
    assert "baseline" not in runner.report
    assert JUnitXml.fromfile(str(runner.temporary / "report" / "junit.xml")).failures > 0


def test_of_another_target_its_steps_do_the_same(init, checkpoints):
    job, place = init("--model", "model", "--factor", "2")
    shutil.copytree(checkpoints("llama"), place / "model")
    runner = Runner(job, place, target="onnx")
    assert runner.all() == (0, "")
    assert_judged(runner, "onnx")


@pytest.mark.parametrize(
    "model", ['it\'s ${{ github.token }} $(touch pwned) `touch pwned` "a": #', "-x", "a\nb: c", "\u2028\x7f"]
)
def test_a_name_is_a_name(model, init, tmp_path):
    job, place = init("--model", model)
    text = job["env"]["MODEL"].replace("${{ '${{' }}", "${{")
    assert text == model
    runner = Runner(job, place)
    runner.environment["MODEL"] = text
    assert runner.run("Install").returncode == 0
    ended = runner.run("Convert")
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert not list(tmp_path.rglob("pwned"))


def test_another_target_is_asked_for_in_vain(init):
    job, place = init("--model", "org/name")
    assert Runner(job, place, target="trt; touch pwned").run("Install").returncode == 2


def test_what_is_there_stays_unless_forced(init, yarnconv):
    _, place = init("--model", "first")
    before = (place / FILE).read_text()
    code, _, stderr = yarnconv("ci", "init", place, "--model", "second")
    assert code == 2
    assert "--force" in stderr
    assert (place / FILE).read_text() == before
    code, stdout, _ = yarnconv("ci", "init", place, "--force", "--json")
    assert code == 0
    assert json.loads(stdout)["notes"] == ["Name the checkpoint in it instead of MODEL."]
    assert yaml.safe_load((place / FILE).read_text())["jobs"]["parity"]["env"]["MODEL"] == "MODEL"
    assert [path.name for path in (place / FILE).parent.iterdir()] == [FILE.name]


def test_a_link_is_replaced_and_not_followed(yarnconv, tmp_path):
    other = tmp_path / "other"
    other.write_text("theirs")
    (tmp_path / FILE).parent.mkdir(parents=True)
    (tmp_path / FILE).symlink_to(other)
    assert yarnconv("ci", "init", tmp_path)[0] == 2
    assert yarnconv("ci", "init", tmp_path, "--force")[0] == 0
    assert other.read_text() == "theirs"
    assert not (tmp_path / FILE).is_symlink()


@pytest.mark.parametrize(
    "options",
    [("--target", "trt"), ("--target", "hf"), ("--factor", "0.5"), ("--factor", "nan"), ("--factor", "1e9")],
    ids=" ".join,
)
def test_what_it_cannot_write(options, yarnconv, tmp_path):
    assert yarnconv("ci", "init", tmp_path, *options)[0] == 2
    assert yarnconv("ci", "init", tmp_path / "none")[0] == 2
    (tmp_path / ".github").write_text("a file")
    assert yarnconv("ci", "init", tmp_path)[0] == 2
    assert list(tmp_path.iterdir()) == [tmp_path / ".github"]
