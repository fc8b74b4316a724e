"""A split model written by independent jobs is, byte for byte, the one that a single run writes."""

import json
import os
import shutil

import pytest

from tests.support import processes
from yarnconv import artifact
from yarnconv.targets import output_file

SPLIT = ("--split-max-size", "1M")


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def split(checkpoints, yarnconv, tmp_path):
    """(options, family) -> what one run writes: name -> bytes, of an m.gguf."""
    made = tmp_path / "whole"

    def run(*options, family="llama"):
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        code, _, stderr = yarnconv("gguf", checkpoints(family), *options, "-o", made / "m.gguf")
        assert code == 0, stderr
        return contents(made)

    return run


@pytest.fixture
def out(tmp_path):
    place = tmp_path / "out"
    place.mkdir()
    return place


@pytest.fixture
def only(checkpoints, yarnconv, out):
    """(part, options, family) -> exit code, stdout, stderr of the job that writes it to `out`."""

    def run(part, *options, family="llama"):
        arguments = ("gguf", checkpoints(family), *options, "--only-split", part, "-o", out / "m.gguf")
        return yarnconv(*arguments)

    return run


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", ("--factor", "4", "--split-max-size", "300K")),
        ("llama", ("--factor", "4", "--no-truncate", "--split-max-size", "1M", "--outtype", "q8_0")),
        ("llama", ("--split-max-size", "1M", "--outtype", "bf16")),
        ("qwen3", ("--target-context", "1024", "--beta-fast", "64", "--split-max-size", "2M")),
        ("phi3", ("--factor", "2", "--method", "ntk", "--split-max-size", "700K")),
    ],
    ids=str,
)
def test_every_part_is_that_of_a_single_run(family, options, split, only, out):
    whole = split(*options, family=family)
    count = len(whole)
    assert count > 1
    for number in range(count, 0, -1):
        assert only(f"{number}/{count}", *options, family=family)[0] == 0
        assert len(contents(out)) == count - number + 1
    assert contents(out) == whole


def test_jobs_side_by_side(checkpoints, split, out):
    options = ("--factor", "4", "--emit", "llama-server,card", *SPLIT)
    whole = split(*options)
    count = sum(name.endswith(".gguf") for name in whole)
    arguments = ("gguf", checkpoints("llama"), *options, "-o", out / "m.gguf", "--only-split")
    jobs = [processes.start(*arguments, f"{number}/{count}") for number in range(1, count + 1)]
    assert [(job.communicate(timeout=120)[1], job.returncode) for job in jobs] == [("", 0)] * count
    assert contents(out) == whole


@pytest.mark.parametrize("part", ["1/2", "2/2", "3/8", "17/17"])
def test_a_part_of_another_number_of_files(part, split, only, out):
    """It would fit to none of the others; what is right is said."""
    count = len(split(*SPLIT))
    code, stdout, stderr = only(part, *SPLIT)
    assert (code, stdout, contents(out)) == (2, "", {})
    asked = part.split("/")[1]
    assert f"the plan gives {count} files, and {part} is of {asked}" in " ".join(stderr.split())
    assert f"--only-split K/{count}" in stderr


@pytest.mark.parametrize(
    "part",
    ["0/3", "4/3", "0/0", "3", "3/", "/3", "-1/3", "1/-3", "1.0/3", "\u0661/\u0663", "1/3\n", "1/999999"],
)
def test_no_part_at_all(part, only, out):
    code, stdout, stderr = only(part, *SPLIT)
    assert (code, stdout, contents(out)) == (2, "", {})
    assert "names no part" in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "--only-split: is about the files of a split model, and nothing says how to split"),
        (("--outtype", "q4_k_m"), "--only-split: is about the files of a split model"),
        (("--outtype", "q4_k_m", *SPLIT), "--split-max-size: llama.cpp's quantiser writes one file"),
    ],
    ids=str,
)
def test_what_is_not_split(options, words, only, out):
    code, stdout, stderr = only("1/3", *options)
    assert (code, stdout, contents(out)) == (2, "", {})
    assert words in " ".join(stderr.split())


def test_a_model_that_one_file_holds(split, only, out):
    """Then it is that one file, under its own name; a second there is not."""
    options = ("--split-max-size", "1G")
    code, _, stderr = only("1/2", *options)
    assert (code, contents(out)) == (2, {})
    assert "the plan gives 1 file, and 1/2 is of 2" in stderr
    code, stdout, _ = only("1/1", *options)
    assert code == 0
    assert "It is part" not in stdout
    assert contents(out) == split(*options)
    assert list(contents(out)) == ["m.gguf"]


def test_what_is_there_already(split, only, out):
    """An older file of its name is replaced, if it is a GGUF; the others are not looked at."""
    whole = split(*SPLIT)
    first, second, third = sorted(whole)[:3]
    (out / second).write_bytes(b"GGUF an older one")
    (out / first).write_text("a year of work")
    (out / third).mkdir()
    part = f"2/{len(whole)}"
    assert only(part, *SPLIT)[0] == 0
    assert sorted(path.name for path in out.iterdir()) == [first, second, third]
    assert (out / second).read_bytes() == whole[second]
    assert (out / first).read_text() == "a year of work"
    for number, words in ((1, "is no GGUF"), (3, "is no regular file")):
        code, _, stderr = only(f"{number}/{len(whole)}", *SPLIT)
        assert code == 2
        assert words in stderr
    assert only(part, *SPLIT)[0] == 0  # once more, as a cluster does that is not sure
    assert (out / second).read_bytes() == whole[second]


def test_room_for_the_part_is_enough(checkpoints, yarnconv, split, only, out, monkeypatch):
    whole = split(*SPLIT)
    usage = shutil.disk_usage(out)
    size = len(whole[sorted(whole)[1]])
    free = size + artifact.SLACK_BYTES
    monkeypatch.setattr(artifact.shutil, "disk_usage", lambda path: usage._replace(free=free))
    assert yarnconv("gguf", checkpoints("llama"), *SPLIT, "-o", out / "m.gguf")[0] == 2
    assert contents(out) == {}
    assert only(f"2/{len(whole)}", *SPLIT)[0] == 0
    free -= 1
    code, _, stderr = only(f"2/{len(whole)}", *SPLIT)
    assert code == 2
    assert "are free" in stderr


def test_a_disk_that_fills_up_leaves_what_was_there(split, only, out, monkeypatch):
    whole = split(*SPLIT)
    names = sorted(whole)
    for name in names[:2]:
        (out / name).write_bytes(b"GGUF older")
    genuine = os.pwrite

    def failing(descriptor, data, offset):
        if offset > 500_000:
            raise OSError(28, os.strerror(28))
        return genuine(descriptor, data, offset)

    monkeypatch.setattr(output_file.os, "pwrite", failing)
    code, _, stderr = only(f"2/{len(names)}", *SPLIT)
    assert code == 2
    assert "No space left on device" in stderr
    assert contents(out) == dict.fromkeys(names[:2], b"GGUF older")


def parts_of(written):
    return sorted(name for name in written if name.endswith(".gguf"))


def test_what_lies_beside_is_the_first_jobs(split, only, out):
    options = ("--factor", "4", "--emit", "llama-server,card,ci", *SPLIT)
    whole = split(*options)
    names = parts_of(whole)
    (out / "m.md").write_text("a year of work")
    code, stdout, _ = only(f"2/{len(names)}", *options, "--json")
    assert code == 0
    assert sorted(contents(out)) == [names[1], "m.md"]
    notes = json.loads(stdout)["notes"]
    assert f"It is part 2/{len(names)} of a model that is whole when all {len(names)} are there." in notes
    assert [note for note in notes if "m.md" in note and f"with part 1/{len(names)}" in note]
    code, _, stderr = only(f"1/{len(names)}", *options)
    assert code == 2
    assert "yarnconv did not write it" in stderr
    assert sorted(contents(out)) == [names[1], "m.md"]
    (out / "m.md").unlink()
    code, stdout, _ = only(f"1/{len(names)}", *options, "--json")
    assert code == 0
    written = [file["path"] for file in json.loads(stdout)["files"]]
    assert written[0] == str(out / names[0])
    assert contents(out) == {name: data for name, data in whole.items() if name not in names[2:]}
    assert sorted(contents(out)) == sorted({*map(os.path.basename, written), names[1]})


def test_what_cannot_lie_beside_is_refused_by_every_job(split, only, out):
    count = len(split(*SPLIT))
    for number in range(1, count + 1):
        code, _, stderr = only(f"{number}/{count}", *SPLIT, "--emit", "ollama")
        assert code == 2
        assert "a Modelfile names one file" in stderr
    assert contents(out) == {}


def test_presets_carry_a_dynamic_plan_in_every_job(split, only, out):
    """The parts are then those of a plain model: also of jobs that do not write the presets."""
    options = ("--method", "dynamic-yarn", "--factor", "4", *SPLIT)
    whole = split(*options, "--emit", "llama-server")
    count = len(parts_of(whole))
    assert only(f"2/{count}", *options)[0] == 3
    for number in range(1, count + 1):
        assert only(f"{number}/{count}", *options, "--emit", "llama-server")[0] == 0
    assert contents(out) == whole


def test_an_older_files_notes_are_the_first_jobs(split, only, out):
    count = len(split(*SPLIT))
    (out / "m.md").write_text("<!-- Written by yarnconv 0 -->\n")
    stale = "m.md beside it belongs to an older file"
    assert stale in only(f"1/{count}", *SPLIT)[1]
    assert stale not in only(f"2/{count}", *SPLIT)[1]


def test_json_is_that_of_a_whole_run(checkpoints, yarnconv, only, out):
    options = ("--factor", "4", *SPLIT, "--json")
    whole = json.loads(yarnconv("gguf", checkpoints("llama"), *options, "-o", out / "m.gguf")[1])
    count = len(whole["files"])
    code, stdout, _ = only(f"3/{count}", *options)
    assert code == 0
    document = json.loads(stdout)
    assert document.keys() == whole.keys()
    assert document["files"] == whole["files"][2:3]
    assert document["plan"] == whole["plan"]
