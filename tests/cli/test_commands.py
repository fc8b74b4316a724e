"""The command line as a user meets it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from yarnconv.cli import app
from yarnconv.console.messages import SCHEMA_VERSION

HEAVY = ("numpy", "torch", "transformers", "gguf", "huggingface_hub")


def modules_after(code):
    script = f"import sys\n{code}\nprint(*[m for m in {HEAVY} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return result.stdout.splitlines()[-1].split()


def test_help_imports_nothing_heavy():
    run = """
from typer.testing import CliRunner
from yarnconv.cli import app
for arguments in (["--help"], ["plan", "--help"], ["gguf", "--help"], ["--version"]):
    assert CliRunner().invoke(app, arguments).exit_code == 0
"""
    assert modules_after(run) == []


def test_converting_never_imports_torch(checkpoints, tmp_path):
    run = f"""
from typer.testing import CliRunner
from yarnconv.cli import app
arguments = ["gguf", {str(checkpoints("llama"))!r}, "--factor", "4", "-o", {str(tmp_path)!r}]
assert CliRunner().invoke(app, arguments).exit_code == 0
"""
    assert set(modules_after(run)) == {"numpy", "gguf"}


def test_every_command_has_the_same_rope_options():
    from typer.main import get_command

    from yarnconv.cli.options import ROPE_OPTIONS

    names = {option.name for option in ROPE_OPTIONS}
    planning = {name: c for name, c in get_command(app).commands.items() if name not in {"inspect", "ci"}}
    for command in planning.values():
        assert names <= {parameter.name for parameter in command.params}


PLAN_KEYS = {
    "schema_version": int,
    "method": str,
    "factor": float,
    "original_context": int,
    "target_context": int,
    "rope_theta": float,
    "rotary_dim": int,
    "head_dim": int,
    "beta_fast": float,
    "beta_slow": float,
    "truncate": bool,
    "attention_factor": float,
    "softmax_scale_multiplier": float,
    "low": float,
    "high": float,
    "regimes": dict,
    "inv_freq": list,
    "finetuned": bool,
    "warnings": list,
    "groups": list,
    "kv_cache_bytes_per_token": int,
    "tensors": list,
}


def test_plan_json(yarnconv, tmp_path, checkpoints):
    """config.json alone is enough, and stdout holds one document and nothing else."""
    config = (checkpoints("llama") / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    code, stdout, stderr = yarnconv("plan", tmp_path, "--factor", "4", "--json")
    assert (code, stderr) == (0, "")
    document = json.loads(stdout)
    assert document["schema_version"] == SCHEMA_VERSION
    for key, kind in PLAN_KEYS.items():
        assert type(document[key]) is kind, key
    assert sum(document["regimes"].values()) == len(document["inv_freq"]) == 32
    assert document["groups"][0]["layers"] == [0, 1, 2]
    assert document["kv_cache_bytes_per_token"] == 3 * 2 * 2 * 64 * 2
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_plan_shows_regimes_temperature_memory_and_budget(yarnconv, checkpoints):
    code, stdout, _ = yarnconv("plan", checkpoints("llama"), "--factor", "4", "--pretraining-tokens", "2T")
    assert code == 0
    for words in (
        "yarn, factor 4",
        "256 -> 1024",
        "1.13863",
        "per token",
        "2 B tokens",
        "extrapolated",
    ):
        assert words in stdout, words
    assert "█" in stdout
    assert "▁" in stdout
    assert "needle" in " ".join(stdout.split())


def test_plan_of_every_method(yarnconv, checkpoints):
    from yarnconv.rope.request import METHODS

    for method in METHODS:
        options = [] if method == "none" else ["--factor", "4"]
        code, stdout, stderr = yarnconv("plan", checkpoints("qwen3"), "--method", method, *options)
        assert code == 0, stderr
        assert (method if method != "auto" else "yarn") in stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan"],
        ["plan", "x", "--factor", "four"],
        ["plan", "x", "--method", "magic"],
        ["gguf", "x", "--unknown"],
        ["nonsense"],
    ],
    ids=str,
)
def test_bad_usage(arguments, yarnconv):
    assert yarnconv(*arguments)[0] == 2


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--outtype", "q3_x", "Choose one of"),
        ("--split-max-size", "huge", "no size"),
        ("--split-max-size", "0", "no size"),
        ("--split-max-size", "-5G", "no size"),
        ("--factor", "0.25", "between 1 and"),
        ("--factor", "nan", "not a positive number"),
    ],
)
def test_bad_values(option, value, words, yarnconv, checkpoints, tmp_path):
    code, stdout, stderr = yarnconv("gguf", checkpoints("llama"), f"{option}={value}", "-o", tmp_path)
    assert (code, stdout) == (2, "")
    assert words in " ".join(stderr.split())
    assert list(tmp_path.iterdir()) == []


def test_model_that_is_no_directory(yarnconv, tmp_path):
    code, _, stderr = yarnconv("plan", tmp_path / "nothing")
    assert code == 2
    assert "no such directory" in stderr
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    code, _, stderr = yarnconv("onnx", file)
    assert code == 2
    assert "is a file" in stderr
    code, _, stderr = yarnconv("plan", file)
    assert code == 2
    assert "truncated" in stderr


def test_a_bug_shows_its_stack_trace_and_exits_70(yarnconv, checkpoints, monkeypatch):
    from yarnconv import rope_plan

    def broken(*arguments):
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(rope_plan, "describe", broken)
    code, stdout, stderr = yarnconv("plan", checkpoints("llama"))
    assert (code, stdout) == (70, "")
    assert "Traceback" in stderr
    assert "bug in yarnconv" in stderr


def test_module_entry_point():
    result = subprocess.run(
        [sys.executable, "-m", "yarnconv", "--version"], capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith("yarnconv ")


def test_a_local_directory_has_no_revisions(yarnconv, checkpoints):
    code, _, stderr = yarnconv("plan", checkpoints("llama"), "--revision", "main")
    assert code == 2
    assert "no revisions" in stderr


def test_a_model_of_the_hubs_cache_has_its_own_name(tmp_path):
    from yarnconv.checkpoint.hub import model_name

    assert model_name(tmp_path / "models--org--tiny-llama" / "snapshots" / ("0" * 40)) == "tiny-llama"
    assert model_name(tmp_path / "model") == "model"


def test_names_from_strangers_do_not_reach_the_terminal_as_commands(capsys):
    from yarnconv.console.messages import print_error
    from yarnconv.errors import BadInput

    print_error(BadInput("the tensor \x1b]0;owned\x07 is left over", where="a\x1b[2Jb"))
    assert "\x1b]" not in (shown := capsys.readouterr().err)
    assert "\x1b[2J" not in shown


def test_full_output_is_no_bug(checkpoints):
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "yarnconv", "plan", str(checkpoints("llama")), "--json"]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 2, result.stderr


def test_names_of_types(yarnconv, checkpoints, tmp_path):
    """As the Hub writes them, and what somebody may have meant."""
    path = tmp_path / "m.gguf"
    assert yarnconv("gguf", checkpoints("llama"), "--outtype", "Q8_0", "-o", path)[0] == 0
    code, _, stderr = yarnconv("gguf", checkpoints("llama"), "--outtype", "q4km", "-o", path)
    assert code == 2
    assert "Did you mean q4_k_m" in " ".join(stderr.split())


def test_a_slash_means_a_directory(yarnconv, checkpoints, tmp_path):
    code, _, stderr = yarnconv("gguf", checkpoints("llama"), "-o", f"{tmp_path}/new/")
    assert (code, list(tmp_path.iterdir())) == (2, [])
    assert "no such directory" in stderr
    assert yarnconv("gguf", checkpoints("llama"), "-o", f"{tmp_path}/")[0] == 0
    assert [path.suffix for path in tmp_path.iterdir()] == [".gguf"]


def test_whoever_reads_has_gone(checkpoints):
    command = [sys.executable, "-m", "yarnconv", "plan", str(checkpoints("llama")), "--factor", "4", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    process.wait(timeout=60)
    assert process.returncode == 141
    process.stderr.close()


def test_a_checkpoint_that_shrinks(yarnconv, checkpoints, tmp_path):
    """A factor of a checkpoint's is one in all: asked for less than it has, it says so."""
    out = tmp_path / "extended"
    assert yarnconv("hf", checkpoints("llama"), "--factor", "4", "-o", out)[0] == 0

    def warnings(factor):
        return " ".join(json.loads(yarnconv("plan", out, "--factor", factor, "--json")[1])["warnings"])

    assert "The context shrinks from 1024 to 512 positions" in warnings(2)
    assert "give --factor 8" in warnings(2)
    assert "The context shrinks" not in warnings(8)
