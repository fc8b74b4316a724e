"""`yarnconv inspect` on an engine: which facts are the sidecar's, which the engine's own bytes'."""

import json
import shutil

import numpy as np
import pytest

from yarnconv.targets.digest import file_digest

pytest.importorskip("tensorrt_rtx", reason="there are wheels for Linux and Windows on x86-64 only")

YARN = ("--factor", "4")
DYNAMIC = (*YARN, "--method", "dynamic-yarn")
OF_THE_ENGINE = {
    *("attention_factor", "inv_freq", "buckets"),
    *("runtime_version", "compute_capabilities", "profile_count"),
}


@pytest.fixture
def inspect(yarnconv):
    def run(directory):
        code, stdout, stderr = yarnconv("inspect", directory, "--json")
        assert "Traceback" not in stderr
        document = json.loads(stdout) if stdout else None
        assert document is None or code == (1 if document["findings"] else 0)
        return code, document, " ".join(stderr.split())

    return run


@pytest.fixture
def copied(engines, tmp_path):
    """A copy of an engine's directory that may be edited, with its sidecar."""

    def run(*options):
        source, _ = engines("llama", *options)
        directory = shutil.copytree(source, tmp_path / "engine")
        return directory, json.loads((directory / "yarnconv.json").read_text())

    return run


def write(directory, sidecar, *, digests=False):
    if digests:
        for key in ("engine", "graph"):
            sidecar[key]["digest"] = file_digest(directory / sidecar[key]["file"])
    (directory / "yarnconv.json").write_text(json.dumps(sidecar))


def table_of(directory, sidecar, name):
    """A table in the engine, mapped to be changed."""
    (entry,) = [entry for entry in sidecar["tables"] if entry["name"] == name]
    shape = entry["rows"], entry["pairs"]
    return np.memmap(directory / "model.engine", "<f4", "r+", offset=entry["offsets"][0], shape=shape)


@pytest.mark.parametrize("options", [YARN, DYNAMIC, (*YARN, "--method", "linear")])
def test_the_engines_bytes_say_the_plan(options, inspect, engines, checkpoints, yarnconv):
    """What is read from the bytes is what `plan` says, and nobody told the reader."""
    directory, _ = engines("qwen3", *options)
    code, document, _ = inspect(directory)
    assert code == 0
    assert document["findings"] == []
    assert {key for key, source in document["sources"].items() if source == "engine"} == OF_THE_ENGINE
    plan = json.loads(yarnconv("plan", checkpoints("qwen3"), *options, "--json")[1])
    assert document["attention_factor"] == pytest.approx(plan["attention_factor"], rel=1e-6)
    # float32 cosines and sines of one position; the slowest pairs' sines are tiny, but relatively as exact
    np.testing.assert_allclose(document["inv_freq"], plan["inv_freq"], rtol=3e-7)
    wanted = [bucket for group in plan["groups"] for bucket in group["buckets"]]
    assert len(document["buckets"]) == len(wanted)
    for found, bucket in zip(document["buckets"], wanted, strict=True):
        np.testing.assert_allclose(found["inv_freq"], bucket["inv_freq"], rtol=3e-7)
    assert document["profile_count"] == 2
    assert document["runtime_version"].startswith("1.")
    for key in ("method", "factor", "original_context", "target_context", "rope_theta"):
        assert document[key] == plan[key]


def test_for_people(engines, yarnconv):
    code, stdout, _ = yarnconv("inspect", engines("qwen3", *DYNAMIC)[0])
    assert code == 0
    lines = {line.split("  ")[0]: line for line in stdout.splitlines()}
    assert "the engine's bytes" in lines["attention factor"]
    assert "the sidecar" in lines["method"]
    assert "YaRN x2 of 256" in lines["carries up to 512"]


def test_tables_without_the_temperature(copied, inspect, check, checkpoints):
    """In the engine alone, every digest made right again: the graph beside it cannot tell."""
    directory, sidecar = copied(*YARN)
    for name in ("cos_cache", "sin_cache"):
        table_of(directory, sidecar, name)[:] /= np.float32(sidecar["plan"]["attention_factor"])
    write(directory, sidecar, digests=True)
    code, document, _ = inspect(directory)
    assert code == 1
    assert document["attention_factor"] == pytest.approx(1.0, rel=1e-6)
    (finding,) = document["findings"]
    assert (finding["code"], finding["severity"]) == ("record-disagrees", "error")
    assert finding["message"] == "the engine's tables have the attention factor 1, the sidecar says 1.13863"
    code, report, _ = check(directory, checkpoints("llama"), *YARN)
    assert code == 1
    assert report["verdicts"]["metadata"] == "fails"
    assert "all its bytes, 0 times" in report["reasons"]["metadata"]


def test_one_value_of_a_table(copied, check, checkpoints):
    directory, sidecar = copied(*YARN)
    table_of(directory, sidecar, "cos_cache")[777, 3] *= np.float32(1 + 1e-6)
    write(directory, sidecar, digests=True)
    assert check(directory, checkpoints("llama"), *YARN)[0] == 1


def test_an_engine_that_is_not_its_sidecars(copied, inspect, check, checkpoints):
    directory, _ = copied(*YARN)
    with (directory / "model.engine").open("r+b") as file:
        file.seek(-100, 2)
        file.write(b"x" * 10)
    code, document, _ = inspect(directory)
    assert code == 1
    assert "model.engine is not the file" in document["findings"][0]["message"]
    code, report, _ = check(directory, checkpoints("llama"), *YARN)
    assert code == 1
    assert "model.engine: digest" in report["reasons"]["metadata"]


def test_a_graph_that_is_another(copied, check, checkpoints, engines):
    """The engine is right; what is kept beside it as its graph has no temperature."""
    directory, sidecar = copied(*YARN)
    other, _ = engines("llama", *YARN, "--method", "ntk-by-parts")
    for name in ("model.onnx", "model.onnx.data"):
        shutil.copy(other / name, directory / name)
    write(directory, sidecar, digests=True)
    code, report, _ = check(directory, checkpoints("llama"), *YARN)
    assert code == 1
    assert report["verdicts"]["structure"] == report["verdicts"]["metadata"] == "fails"
    assert report["remark"] is None


CLIENTS = {
    "max_context": 65536,
    "bucket_contexts": [256],
    "vocab_size": 7,
    "layers": 2,
    "key_value_heads": 1,
    "head_dim": 1,
    "last_token_only": False,
    "cache_type": "fp32",
}


@pytest.mark.parametrize("key", [*CLIENTS, "eos_token_ids"])
def test_what_clients_go_by_is_judged(key, copied, check, checkpoints):
    directory, sidecar = copied(*DYNAMIC)
    if key in CLIENTS:
        sidecar["graph"][key] = CLIENTS[key]
    else:
        sidecar[key] = []
    write(directory, sidecar)
    code, report, _ = check(directory, checkpoints("llama"), *DYNAMIC, "--weights", "none")
    assert code == 1
    assert key in report["reasons"]["metadata"]


def test_an_engine_of_another_plan_or_other_profiles(copied, inspect, engines):
    directory, sidecar = copied(*YARN)
    other = json.loads((engines("llama", "--factor", "2")[0] / "yarnconv.json").read_text())
    sidecar["plan"] = {**other["plan"], "attention_factor": sidecar["plan"]["attention_factor"]}
    sidecar["profiles"] *= 3
    write(directory, sidecar)
    _, document, _ = inspect(directory)
    said = " ".join(finding["message"] for finding in document["findings"])
    assert "2 profiles, the sidecar 6" in said
    assert "other frequencies" in said


def test_an_engine_without_its_sidecar(copied, check, checkpoints):
    """Is no ONNX model, though one lies beside it."""
    directory, _ = copied(*YARN)
    (directory / "yarnconv.json").unlink()
    code, _, stderr = check(directory, checkpoints("llama"), *YARN)
    assert code == 2
    assert "there is an engine in it, and no yarnconv.json" in stderr


def test_another_plan_than_was_asked_for(check, engines, checkpoints):
    directory, _ = engines("llama", *YARN)
    code, report, _ = check(directory, checkpoints("llama"), "--factor", "2")
    assert code == 1
    assert report["expected_from"] == "options"
    code, report, _ = check(directory, checkpoints("llama"))
    assert code == 5
    assert report["expected_from"] == "provenance"


def test_another_models_weights(check, engines, checkpoints):
    """The kept graph borrows the reference's: of another shape they are refused, by name."""
    directory, _ = engines("llama", *YARN)
    code, _, stderr = check(directory, checkpoints("llama", intermediate_size=256), *YARN)
    assert code == 2
    assert "in the checkpoint F32 [256, 256]" in stderr


def tables(**changes):
    """Every table of the sidecar with another entry."""
    return lambda d, s: write(d, {**s, "tables": [{**table, **changes} for table in s["tables"]]})


def graph(**changes):
    return lambda d, s: write(d, {**s, "graph": {**s["graph"], **changes}})


HOSTILE = {
    "no engine": lambda d, s: (d / "model.engine").unlink(),
    "an empty engine": lambda d, s: (d / "model.engine").write_bytes(b""),
    "a tiny engine": lambda d, s: (d / "model.engine").write_bytes(b"vtrt"),
    "no JSON": lambda d, s: (d / "yarnconv.json").write_text("{"),
    "a list": lambda d, s: (d / "yarnconv.json").write_text("[]"),
    "another schema": lambda d, s: write(d, {**s, "schema_version": 2}),
    "no plan": lambda d, s: write(d, {**s, "plan": None}),
    "no profiles": lambda d, s: write(d, {**s, "profiles": {}}),
    "no tables": lambda d, s: write(d, {**s, "tables": [3, None, {}]}),
    "tables far away": tables(offsets=[2**62]),
    "negative tables": tables(offsets=[-4]),
    "endless tables": tables(rows=2**40),
    "odd offsets": tables(offsets=["0"]),
    "endless buckets": graph(bucket_contexts=[1] * 10**5),
    "senseless buckets": graph(bucket_contexts=[None, "a"]),
    "a strange plan": lambda d, s: write(d, {**s, "plan": {"method": ["\x1b[31m"], "factor": float("nan")}}),
    "a strange runtime": lambda d, s: write(d, {**s, "runtime": {"name": [3], "version": {}}}),
    "strange capabilities": lambda d, s: write(d, {**s, "compute_capabilities": [None, "\x1b]0;x\x07"]}),
}
REFUSED = {"a strange plan", "no engine", "an empty engine", "no JSON", "a list", "another schema"}
REFUSED |= {"no plan", "no profiles", "a strange runtime"}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_directories(case, copied, inspect, yarnconv, check, checkpoints):
    directory, sidecar = copied(*YARN)
    HOSTILE[case](directory, sidecar)
    code, _, stderr = inspect(directory)
    assert code == (2 if case in REFUSED else 1), stderr
    code, stdout, stderr = yarnconv("inspect", directory)
    assert "\x1b" not in stdout + stderr
    code, _, stderr = check(directory, checkpoints("llama"), *YARN, "--weights", "none")
    assert code in (1, 2, 5), stderr
    assert "Traceback" not in stderr


def test_what_is_no_engine(inspect, tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        code, _, stderr = inspect(path)
        assert code == 2
        assert "checkpoint" in stderr
