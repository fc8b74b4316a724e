"""The job files that have a cluster write a split model: run as Slurm and as Kubernetes run them."""

import json
import re
import shutil
import subprocess

import pytest
import yaml

from tests.support.processes import with_yarnconv
from yarnconv.cli import convert

OPTIONS = ("--factor", "4", "--no-truncate", "--emit", "llama-server,card", "--split-max-size", "1M")
ODD = 'it\'s "a" $(touch pwned) `touch pwned` $JOB_COMPLETION_INDEX $(JOB_COMPLETION_INDEX) $$ {{ 7 }} # é'
COMMIT = "0123456789" * 4
ENDED = {"capture_output": True, "text": True, "timeout": 120}


@pytest.fixture
def model(checkpoints, tmp_path):
    return shutil.copytree(checkpoints("llama"), tmp_path / "models" / ODD)


@pytest.fixture
def out(tmp_path):
    place = tmp_path / f"out {ODD}"
    place.mkdir()
    return place


@pytest.fixture
def jobs(yarnconv, model, out):
    """(form, options, MODEL, destination) -> the text of the job file and what `--json` said."""

    def run(form, *options, of=model, to=out / "m.gguf"):
        arguments = ("gguf", of, *(options or OPTIONS), "--split-jobs", form, "-o", to)
        code, stdout, stderr = yarnconv(*arguments, "--json")
        assert (code, stderr) == (0, "")
        document = json.loads(stdout)
        (written,) = document["files"]
        text = (to.parent / written["path"].rpartition("/")[2]).read_text()
        assert written["bytes"] == len(text.encode())
        return text, document

    return run


@pytest.fixture
def whole(yarnconv, model, tmp_path):
    """What one run writes: name -> bytes."""
    place = tmp_path / "whole"
    place.mkdir()
    code, _, stderr = yarnconv("gguf", model, *OPTIONS, "-o", place / "m.gguf")
    assert code == 0, stderr
    return contents(place)


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def parts_of(written):
    return sorted(name for name in written if name.endswith(".gguf"))


def test_a_list_is_what_a_whole_run_writes(yarnconv, model, out):
    arguments = ("gguf", model, *OPTIONS, "-o", out / "m.gguf")
    code, stdout, _ = yarnconv(*arguments, "--split-jobs", "list", "--json")
    assert (code, contents(out)) == (0, {})
    planned = json.loads(stdout)
    assert planned["files"] == planned["notes"] == []
    shown = yarnconv(*arguments, "--split-jobs", "list")[1].splitlines()
    written = json.loads(yarnconv(*arguments, "--json")[1])
    count = len(parts_of(contents(out)))
    assert planned["outtype"] == written["outtype"]
    assert [part["only_split"] for part in planned["parts"]] == [f"{n}/{count}" for n in range(1, count + 1)]
    assert [{"path": part["path"], "bytes": part["bytes"]} for part in planned["parts"]] == written["files"][
        :count
    ]
    assert len(shown) == count
    for line, part in zip(shown, planned["parts"], strict=True):
        assert line.split()[0] == part["only_split"]
        assert line.endswith(part["path"])


def test_one_file_is_a_list_of_one(yarnconv, model, out):
    options = ("--split-max-size", "1G", "--split-jobs", "list", "--json", "-o", out / "m.gguf")
    (part,) = json.loads(yarnconv("gguf", model, *options)[1])["parts"]
    assert (part["only_split"], part["path"]) == ("1/1", str(out / "m.gguf"))


def array_of(text):
    """How many jobs sbatch starts: it reads the comments before the first command."""
    lines = text.splitlines()
    assert lines[0] == "#!/bin/bash"
    head = lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]
    options = [line.removeprefix("#SBATCH ") for line in head if line.startswith("#SBATCH ")]
    assert [line for line in lines if line.startswith("#SBATCH")] == [f"#SBATCH {one}" for one in options]
    assert all(re.fullmatch(r"--[a-z-]+=[A-Za-z0-9:-]+", option) for option in options)
    (array,) = [option.removeprefix("--array=1-") for option in options if option.startswith("--array=")]
    return int(array)


def run_slurm(script, number, tmp_path):
    """One job, as slurmd runs it: a copy of the script, in whatever directory it was submitted from."""
    copy = tmp_path / "slurm_script"
    shutil.copy(script, copy)
    variables = {} if number is None else {"SLURM_ARRAY_TASK_ID": str(number)}
    environment = with_yarnconv(tmp_path / "programs", **variables)
    return subprocess.run(["bash", copy], cwd=tmp_path, env=environment, **ENDED)


def test_slurm(jobs, whole, out, tmp_path):
    text, document = jobs("slurm")
    script = out / "m.slurm.sh"
    count = array_of(text)
    assert count == len(parts_of(whole)) == len(document["parts"])
    assert subprocess.run(["bash", "-n", script], check=False, **ENDED).stderr == ""
    assert document["notes"][0].endswith(".slurm.sh'")
    for number in range(count, 0, -1):
        ended = run_slurm(script, number, tmp_path)
        assert (ended.returncode, ended.stderr) == (0, "")
    assert contents(out) == {**whole, "m.slurm.sh": text.encode()}
    assert not list(tmp_path.rglob("pwned"))


def test_slurm_says_what_a_job_lacks(jobs, out, tmp_path):
    text, _ = jobs("slurm")
    script = out / "m.slurm.sh"
    ended = run_slurm(script, None, tmp_path)
    assert ended.returncode != 0
    assert "submit it with sbatch" in ended.stderr
    assert run_slurm(script, array_of(text) + 1, tmp_path).returncode == 2
    assert list(contents(out)) == ["m.slurm.sh"]


def expanded(word, variables):
    """What Kubernetes makes of a word of a command: of $(NAME) the value, where there is one; of $$ a $."""

    def replaced(found):
        whole, name = found[0], found[1]
        return "$" if whole == "$$" else variables.get(name, whole)

    return re.sub(r"\$\$|\$\(([^)]*)\)", replaced, word)


def pod_of(text):
    """(the job, its container, where it mounts which claim), where that is a job that Kubernetes takes."""
    job = yaml.safe_load(text)
    assert (job["apiVersion"], job["kind"], job["spec"]["completionMode"]) == ("batch/v1", "Job", "Indexed")
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,50}[a-z0-9])?", job["metadata"]["name"])
    assert job["spec"]["parallelism"] == job["spec"]["completions"]
    pod = job["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    claims = {volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"]}
    mounts = {
        claims.pop(mount["name"]): (mount["mountPath"], mount.get("readOnly", False))
        for mount in container["volumeMounts"]
    }
    assert claims == {}
    return job, container, mounts


def run_pod(container, index, tmp_path):
    variables = {"JOB_COMPLETION_INDEX": str(index)}
    words = [expanded(word, variables) for word in (*container["command"], *container["args"])]
    environment = with_yarnconv(tmp_path / "programs", **variables)
    return subprocess.run(words, cwd=tmp_path, env=environment, **ENDED)


def test_kubernetes(jobs, whole, model, out, tmp_path):
    text, document = jobs("kubernetes")
    job, container, mounts = pod_of(text)
    count = job["spec"]["completions"]
    assert count == len(parts_of(whole)) == len(document["parts"])
    assert mounts == {"CHECKPOINT_CLAIM": (str(model), True), "OUTPUT_CLAIM": (str(out), False)}
    assert "IMAGE, CHECKPOINT_CLAIM, OUTPUT_CLAIM" in document["notes"][0]
    for index in reversed(range(count)):
        ended = run_pod(container, index, tmp_path)
        assert (ended.returncode, ended.stderr) == (0, "")
    assert contents(out) == {**whole, "m.kubernetes.yaml": text.encode()}
    assert not list(tmp_path.rglob("pwned"))


def test_a_variable_in_a_name_would_be_expanded(jobs, tmp_path):
    """And the file would then not be found: what doubles each $ is not for nothing."""
    _, container, _ = pod_of(jobs("kubernetes")[0])
    container["args"] = [word.replace("$$", "$") for word in container["args"]]
    ended = run_pod(container, 0, tmp_path)
    assert ended.returncode == 2
    assert "no such directory" in ended.stderr


def test_a_pod_mounts_one_volume_where_one_place_holds_the_other(jobs, model, tmp_path):
    inside, around = model / "gguf", tmp_path / "models"
    inside.mkdir()
    for place, mounted in ((inside, model), (model, model), (around, around)):
        _, _, mounts = pod_of(jobs("kubernetes", to=place / "m.gguf")[0])
        assert mounts == {"MODEL_CLAIM": (str(mounted), False)}


def refused(yarnconv, *arguments):
    code, stdout, stderr = yarnconv("gguf", *arguments)
    assert (code, stdout) == (2, "")
    assert "Traceback" not in stderr
    return " ".join(stderr.split())


def test_what_a_pod_cannot_mount(yarnconv, checkpoints, out, tmp_path):
    options = (*OPTIONS, "--split-jobs", "kubernetes", "-o")
    colon = tmp_path / "a:b"
    colon.mkdir()
    words = refused(yarnconv, checkpoints("llama"), *options, colon / "m.gguf")
    assert "no place where Kubernetes mounts a volume" in words
    linked = shutil.copytree(checkpoints("llama"), tmp_path / "linked")
    weights = (linked / "model.safetensors").rename(tmp_path / "blob")
    (linked / "model.safetensors").symlink_to(weights)
    words = refused(yarnconv, linked, *options, out / "m.gguf")
    assert "a link to a file that lies outside the directory" in words
    assert contents(out) == contents(colon) == {}
    # of a volume that holds both it is seen
    assert yarnconv("gguf", linked, *options, tmp_path / "m.gguf")[0] == 0


def test_a_model_of_the_hub(yarnconv, jobs, checkpoints, out, monkeypatch, tmp_path):
    """Every job reads the commit that was read here, whatever its branch is by then."""
    snapshot = tmp_path / "models--org--name" / "snapshots" / COMMIT
    shutil.copytree(checkpoints("llama"), snapshot)
    monkeypatch.setattr(convert, "locate", lambda model, **_: snapshot)
    text, _ = jobs("slurm", *OPTIONS, "--revision", "main", of="org/name")
    assert f"yarnconv gguf org/name --revision {COMMIT} " in text
    assert "main" not in text
    options = (*OPTIONS, "--split-jobs", "kubernetes", "-o", out / "m.gguf")
    assert "every pod would download the whole model" in refused(yarnconv, "org/name", *options)


def test_a_link_to_a_model_is_the_model(jobs, model, out, tmp_path):
    """A model is called by its directory's name, not by a link's."""
    (tmp_path / "link").symlink_to(model)
    assert jobs("slurm", of=tmp_path / "link") == jobs("slurm")


def test_paths_are_those_of_any_directory(jobs, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "models")
    (tmp_path / "models" / "out").mkdir()
    text, document = jobs("slurm", of=model.relative_to(tmp_path / "models"), to=model.parent / "out/m.gguf")
    assert str(tmp_path / "models" / "out" / "m.gguf") in text
    assert text.count(str(tmp_path)) == 2
    assert document["parts"][0]["only_split"] == f"1/{len(document['parts'])}"


@pytest.mark.parametrize("form", ["slurm", "kubernetes"])
@pytest.mark.parametrize("name", ["a\nb.gguf", "a\x1b[2J.gguf", "a\u2028b.gguf"], ids=ascii)
def test_names_that_end_a_comment(form, name, yarnconv, checkpoints, out):
    options = ("--split-max-size", "1M", "--split-jobs", form, "-o", out / name)
    words = refused(yarnconv, checkpoints("llama"), *options)
    assert "holds letters with which a job file cannot name it" in words
    assert contents(out) == {}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--split-jobs", "slurm"), "--split-jobs: is about the files of a split model"),
        (("--split-jobs", "slurn", *OPTIONS), "Did you mean slurm?"),
        (("--split-jobs", "list", "--only-split", "1/3", *OPTIONS), "a job writes one file"),
        (("--split-jobs", "list", *OPTIONS, "--outtype", "q4_k_m"), "quantiser writes one file"),
        (("--split-jobs", "slurm", *OPTIONS, "--emit", "ollama"), "a Modelfile names one file"),
    ],
    ids=str,
)
def test_what_is_refused_before_a_job_could(options, words, yarnconv, checkpoints, out):
    assert words in refused(yarnconv, checkpoints("llama"), *options, "-o", out / "m.gguf")
    assert contents(out) == {}


def test_what_is_there_already(yarnconv, jobs, checkpoints, out):
    """A job file of ours is replaced, anything else is not; files of the model are said."""
    first = jobs("slurm")[1]
    assert jobs("slurm")[1] == first
    (out / "m.slurm.sh").write_text("#!/bin/bash\na year of work")
    options = (*OPTIONS, "--split-jobs", "slurm", "-o", out / "m.gguf")
    assert "yarnconv did not write it" in refused(yarnconv, checkpoints("llama"), *options)
    assert contents(out) == {"m.slurm.sh": b"#!/bin/bash\na year of work"}
    (out / "m.slurm.sh").unlink()
    older = out / first["parts"][2]["path"].rpartition("/")[2]
    older.write_bytes(b"GGUF older")
    (note,) = [note for note in jobs("slurm")[1]["notes"] if "are there already" in note]
    assert note.startswith(f"1 of the files are there already ({older.name}, ...)")


def test_a_place_that_is_not_there(yarnconv, checkpoints, tmp_path):
    options = (*OPTIONS, "--split-jobs", "slurm", "-o", tmp_path / "none" / "m.gguf")
    assert "no such directory" in refused(yarnconv, checkpoints("llama"), *options)
