"""What is written for llama-server, in the real one: its log-probabilities are transformers' own."""

import configparser
import json
import math
import os

import pytest
import torch

from tests.support.key_shift import measure
from tests.support.llama_server import REFUSED_EMISSIONS, LlamaServer, bash_accepts, require_server
from tests.support.models import ORIGINAL_CONTEXT, reference_logits, sample_tokens
from yarnconv.targets.gguf.launch import KEY_SHIFT_WARNING

YARN = {"rope_type": "yarn", "original_max_position_embeddings": ORIGINAL_CONTEXT}
# Of log-probabilities with float32 keys and values: measured 9.5e-6 .. 8.3e-5 over the cases here, and 0.48
# with a factor of 3.9 for 4, 1.6 without the temperature (test_a_wrong_flag_shows).
TOLERANCE = 5e-4
FORCED = [65] * 4  # a letter, in the tiny vocabulary


@pytest.fixture
def written(checkpoints, yarnconv, tmp_path):
    """(options, file name, family) -> the GGUF and what `--json` said."""

    def write(*options, name="model.gguf", family="llama"):
        path = tmp_path / name
        arguments = ("gguf", checkpoints(family), *options, "--emit", "llama-server", "--json")
        code, stdout, stderr = yarnconv(*arguments, "-o", path)
        assert code == 0, stderr
        return path, json.loads(stdout)

    return write


def largest_error(directory, server, spelled, length, *, model=None):
    """Of the log-probabilities before each of four tokens behind a prompt of so many."""
    prompt = sample_tokens(256, length)
    rows = server.log_probabilities(prompt, FORCED, model=model)
    assert {len(row) for row in rows} == {512}
    logits = reference_logits(directory, prompt + FORCED, spelled, select=slice(length - 1, None))
    wanted = torch.log_softmax(torch.from_numpy(logits), -1).numpy()
    return max(abs(found - wanted[i, token]) for i, row in enumerate(rows) for token, found in row.items())


def sections(path):
    parser = configparser.ConfigParser(delimiters=("=",), comment_prefixes=(";", "#"), interpolation=None)
    text = path.read_text()
    parser.read_string(text.replace("version = 1\n", ""))
    return {name: dict(parser[name]) for name in parser.sections()}


def test_a_static_plan(written, checkpoints, tmp_path):
    require_server()
    path, document = written("--factor", "4")
    script = tmp_path / "model.llama-server.sh"
    assert [entry["path"] for entry in document["files"]] == [str(path), str(script)]
    assert os.access(script, os.X_OK)
    bash_accepts(script)
    assert KEY_SHIFT_WARNING in document["notes"]
    with LlamaServer(script, tmp_path) as server:
        assert server.ask("/props")["default_generation_settings"]["n_ctx"] == 4 * ORIGINAL_CONTEXT
        error = largest_error(checkpoints("llama"), server, {**YARN, "factor": 4.0}, 700)
    assert error <= TOLERANCE


@pytest.mark.parametrize(
    "flag",
    [("--rope-scale", "3.9"), ("--override-kv", "llama.rope.scaling.attn_factor=float:0.8782489")],
    ids=["factor", "temperature"],
)
def test_a_wrong_flag_shows(flag, written, checkpoints, tmp_path):
    """What the tolerance is good for: a flag that changes what the file carries."""
    require_server()
    written("--factor", "4")
    with LlamaServer(tmp_path / "model.llama-server.sh", tmp_path, *flag) as server:
        error = largest_error(checkpoints("llama"), server, {**YARN, "factor": 4.0}, 700)
    assert error > 100 * TOLERANCE


ALL_FLAGS = ["--beta-fast", "20", "--beta-slow", "2", "--attention-factor", "1.3"]
DYNAMIC = {
    "yarn": (
        ["--method", "dynamic-yarn", "--factor", "4"],
        {256: {"rope_type": "default"}, 512: {**YARN, "factor": 2.0}, 1024: {**YARN, "factor": 4.0}},
    ),
    "betas, temperature, a factor whose float32 costs a position": (
        ["--method", "dynamic-yarn", "--factor", "3.5", *ALL_FLAGS],
        {
            512: {
                **YARN,
                "factor": 2.0,
                "beta_fast": 20.0,
                "beta_slow": 2.0,
                "attention_factor": 1.0 + 0.3 * math.log(2.0) / math.log(3.5),
            },
            896: {
                **YARN,
                "factor": 3.5,
                "beta_fast": 20.0,
                "beta_slow": 2.0,
                "attention_factor": 1.3,
            },
        },
    ),
    "ntk": (
        ["--method", "dynamic-ntk", "--factor", "4"],
        {
            256: {"rope_type": "default"},
            # transformers' base at a length l: theta (factor l / L - (factor - 1))^(D / (D - 2))
            1024: {"rope_type": "default", "rope_theta": 10000.0 * (4.0 * 4 - 3.0) ** (64 / 62)},
        },
    ),
}


@pytest.mark.parametrize("case", DYNAMIC)
@pytest.mark.parametrize("family", ["llama", pytest.param("qwen3", marks=pytest.mark.slow)])
def test_a_dynamic_plan_through_presets(family, case, written, checkpoints, tmp_path):
    require_server()
    options, contexts = DYNAMIC[case]
    written(*options, name="plain.gguf", family=family)
    script = tmp_path / "plain.llama-server.sh"
    bash_accepts(script)
    name = checkpoints(family).name
    entries = sections(tmp_path / "plain.presets.ini")
    with LlamaServer(script, tmp_path) as server:
        listed = {model["id"] for model in server.ask("/v1/models")["data"]}
        assert listed == set(entries)
        assert {f"{name}-{context}" for context in contexts} <= listed
        for context, spelled in contexts.items():
            model = f"{name}-{context}"
            length = context - 40
            error = largest_error(checkpoints(family), server, spelled, length, model=model)
            assert error <= TOLERANCE, model
            served = server.ask(f"/props?model={model}")["default_generation_settings"]["n_ctx"]
            assert served == context


def test_the_file_is_plain_and_the_presets_carry_the_plan(written, check, checkpoints, tmp_path):
    path, document = written("--method", "dynamic-yarn", "--factor", "4")
    assert document["plan"]["method"] == "none"
    assert document["served"]["method"] == "dynamic-yarn"
    assert "The GGUF itself is plain; model.presets.ini carries dynamic-yarn x4" in " ".join(
        document["notes"]
    )
    assert KEY_SHIFT_WARNING in document["notes"]
    entries = sections(tmp_path / "model.presets.ini")
    flags = [{key for key in entry if "rope" in key or "yarn" in key} for entry in entries.values()]
    assert [len(found) for found in flags] == [0, 3, 3]
    assert {entry["model"] for entry in entries.values()} == {"./model.gguf"}
    assert [entry["ctx-size"] for entry in entries.values()] == ["256", "512", "1024"]
    assert {entry["no-context-shift"] for entry in entries.values()} == {"true"}
    code, report, _ = check(path, checkpoints("llama"))
    assert code == 0
    assert report["expected"]["method"] == "none"


@pytest.mark.parametrize(("options", "words"), REFUSED_EMISSIONS, ids=str)
def test_refused(options, words, checkpoints, yarnconv, tmp_path):
    code, _, stderr = yarnconv("gguf", checkpoints("llama"), "--factor", "4", *options, "-o", tmp_path)
    assert code == 3
    assert words in stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("emit", ["triton", "nonsense", "", "card,,ci"])
def test_names_that_mean_nothing(emit, checkpoints, yarnconv, tmp_path):
    code, _, stderr = yarnconv("gguf", checkpoints("llama"), "--emit", emit, "-o", tmp_path)
    assert code == 2
    assert "Choose among ollama, llama-server, ci, card" in stderr
    assert list(tmp_path.iterdir()) == []


HOSTILE = 'it\'s $(touch pwned) `touch pwned` {{ 7*7 }} "a" % & | > !.gguf'


def test_a_hostile_file_name(written, checkpoints, tmp_path):
    require_server()
    written("--factor", "4", name=HOSTILE)
    script = tmp_path / f"{HOSTILE.removesuffix('.gguf')}.llama-server.sh"
    bash_accepts(script)
    with LlamaServer(script, tmp_path) as server:
        assert largest_error(checkpoints("llama"), server, {**YARN, "factor": 4.0}, 400) <= TOLERANCE
    written("--method", "dynamic-yarn", "--factor", "2", name=HOSTILE)
    bash_accepts(script)
    with LlamaServer(script, tmp_path) as server:
        model = f"{checkpoints('llama').name}-512"
        error = largest_error(checkpoints("llama"), server, {**YARN, "factor": 2.0}, 400, model=model)
    assert error <= TOLERANCE
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a\nb.gguf", ["--factor", "4"]),
        ("a\x1b[2J.gguf", ["--factor", "4"]),
        ("a;b.gguf", ["--factor", "4", "--method", "dynamic-yarn"]),
        ("a#b.gguf", ["--factor", "4", "--method", "dynamic-yarn"]),
    ],
)
def test_a_name_that_cannot_be_written(name, options, checkpoints, yarnconv, tmp_path):
    arguments = ("gguf", checkpoints("llama"), *options, "--emit", "llama-server", "-o", tmp_path / name)
    code, _, stderr = yarnconv(*arguments)
    assert code == 2
    assert "Give another name" in stderr
    assert list(tmp_path.iterdir()) == []


def test_what_others_wrote_stays(written, checkpoints, yarnconv, tmp_path):
    path, _ = written("--factor", "2")
    script = tmp_path / "model.llama-server.sh"
    before = path.read_bytes()
    written("--factor", "4")
    assert "-c 1024" in script.read_text()
    assert path.read_bytes() != before
    before = path.read_bytes()
    for make in (lambda: script.write_text("#!/bin/sh\nmine\n"), lambda: script.symlink_to(path)):
        script.unlink()
        make()
        arguments = ("--factor", "2", "--emit", "llama-server", "-o", path)
        code, _, stderr = yarnconv("gguf", checkpoints("llama"), *arguments)
        assert code == 2
        assert "yarnconv did not write it" in stderr
        assert path.read_bytes() == before


def test_what_an_older_file_left_beside_it_is_named(written, checkpoints, yarnconv, tmp_path):
    """Presets of a plain file would scale a scaled one."""
    path, document = written("--method", "dynamic-ntk", "--factor", "4")
    assert "older file" not in " ".join(document["notes"])
    _, document = written("--factor", "4")
    assert "model.presets.ini beside it belongs to an older file" in " ".join(document["notes"])
    code, stdout, _ = yarnconv("gguf", checkpoints("llama"), "-o", path)
    assert code == 0
    assert stdout.count("belongs to an older file") == 2


def test_a_shift_of_the_cache_applies_the_temperature_again(artefacts):
    """Measured: plain 2.4e-6, linear 9.2e-7, NTK-by-parts 4.4e-6; YaRN 0.19, carried by a tensor 0.18."""
    exact = [("--method", "none"), ("--method", "linear", "--factor", "4")]
    exact.append(("--method", "ntk-by-parts", "--factor", "4"))
    for options in exact:
        assert measure(artefacts("llama", "f32", *options)) < 1e-5
    for options in (("--factor", "4"), ("--factor", "4", "--no-truncate")):
        assert measure(artefacts("llama", "f32", *options)) > 1e-2


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        (["--factor", "4"], True),
        (["--factor", "4", "--method", "dynamic-yarn"], True),
        (["--factor", "4", "--method", "ntk-by-parts"], False),
        (["--factor", "4", "--method", "linear"], False),
        ([], False),
    ],
    ids=str,
)
def test_who_is_warned_of_it(options, warned, checkpoints, yarnconv, tmp_path):
    code, stdout, _ = yarnconv("plan", checkpoints("llama"), *options)
    assert (code, "--no-context-shift" in stdout) == (0, warned)
    document = json.loads(yarnconv("plan", checkpoints("llama"), *options, "--json")[1])
    assert document["runtime_warnings"] == ({"llama.cpp": [KEY_SHIFT_WARNING]} if warned else {})
    if "dynamic-yarn" not in options:
        code, stdout, _ = yarnconv("gguf", checkpoints("llama"), *options, "-o", tmp_path)
        assert (code, KEY_SHIFT_WARNING in stdout) == (0, warned)
