"""Publishing: atomic, nothing left behind, the right names; and refusals of what a runtime lacks."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import gguf
import pytest

from tests.support.models import edit_config
from yarnconv import artifact
from yarnconv.targets import output_file


def contents(directory):
    return sorted(path.name for path in directory.iterdir())


def test_default_name_and_metadata(checkpoints, yarnconv, tmp_path):
    code, stdout, _ = yarnconv("gguf", checkpoints("llama"), "--factor", "4", "-o", tmp_path, "--json")
    assert code == 0
    document = json.loads(stdout)
    name = f"{checkpoints('llama').name}-yarn-x4-F32.gguf"
    assert contents(tmp_path) == [name]
    assert document["files"] == [{"path": str(tmp_path / name), "bytes": (tmp_path / name).stat().st_size}]
    fields = gguf.GGUFReader(tmp_path / name).fields
    values = {key: field.contents() for key, field in fields.items()}
    assert values["llama.context_length"] == 1024
    assert values["llama.rope.scaling.type"] == "yarn"
    assert values["llama.rope.scaling.factor"] == 4.0
    assert values["llama.rope.scaling.original_context_length"] == 256
    assert values["llama.rope.scaling.attn_factor"] == 1.0
    assert values["llama.rope.scaling.finetuned"] is False
    # keys that this architecture's runtime does not read are not written
    assert not [key for key in values if "yarn_" in key]
    provenance = json.loads(values["yarnconv.plan"])
    assert (provenance["method"], provenance["factor"]) == ("yarn", 4.0)
    assert provenance["attention_factor"] == pytest.approx(1.138629436)


def test_an_existing_artefact_is_replaced_and_anything_else_is_not(checkpoints, yarnconv, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF an older artefact")
    assert yarnconv("gguf", checkpoints("llama"), "-o", path)[0] == 0
    assert path.stat().st_size > 1000
    notes = tmp_path / "notes.txt"
    notes.write_text("a year of work")
    code, _, stderr = yarnconv("gguf", checkpoints("llama"), "-o", notes)
    assert (code, notes.read_text()) == (2, "a year of work")
    assert "is no GGUF" in stderr


def test_destinations_that_cannot_be(checkpoints, yarnconv, tmp_path):
    directory = shutil.copytree(checkpoints("llama"), tmp_path / "model")
    before = (directory / "model.safetensors").read_bytes()
    code, _, stderr = yarnconv("gguf", directory, "-o", directory / "model.safetensors")
    assert code == 2
    assert "of the checkpoint itself" in stderr
    assert (directory / "model.safetensors").read_bytes() == before
    code, _, stderr = yarnconv("gguf", directory, "-o", tmp_path / "nowhere" / "model.gguf")
    assert code == 2
    assert "no such directory" in stderr


def test_no_space(checkpoints, yarnconv, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(artifact.shutil, "disk_usage", lambda path: usage._replace(free=2**20))
    code, _, stderr = yarnconv("gguf", checkpoints("llama"), "-o", tmp_path / "model.gguf")
    assert code == 2
    assert "are free" in stderr
    assert contents(tmp_path) == []


@pytest.mark.parametrize("split", [(), ("--split-max-size", "1M")], ids=["one", "split"])
def test_a_disk_that_fills_up_leaves_nothing(checkpoints, yarnconv, tmp_path, monkeypatch, split):
    """ENOSPC from the kernel in the middle of the last file."""
    older = tmp_path / "model.gguf"
    older.write_bytes(b"GGUF older")
    written, genuine = 0, os.pwrite

    def failing(descriptor, data, offset):
        nonlocal written
        written += len(data)
        if written > 4_000_000:
            raise OSError(28, os.strerror(28))
        return genuine(descriptor, data, offset)

    monkeypatch.setattr(output_file.os, "pwrite", failing)
    code, _, stderr = yarnconv("gguf", checkpoints("llama"), *split, "-o", older)
    assert code == 2
    assert "No space left on device" in stderr
    assert contents(tmp_path) == ["model.gguf"]
    assert older.read_bytes() == b"GGUF older"


SLOW_WRITER = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from yarnconv.targets import output_file
genuine = output_file.os.pwrite
def slow(descriptor, data, offset):
    print("writing", file=sys.stderr, flush=True)
    time.sleep(0.1)
    return genuine(descriptor, data, offset)
output_file.os.pwrite = slow
sys.argv = ["yarnconv", *sys.argv[1:]]
from yarnconv.cli import main
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing(checkpoints, tmp_path, number):
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", SLOW_WRITER, "gguf", str(checkpoints("llama"))),
            *("-o", str(tmp_path / "model.gguf")),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr.readline() == "writing\n"
    assert [name for name in contents(tmp_path) if name.endswith(".partial")]
    time.sleep(0.05)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    assert contents(tmp_path) == []


def test_a_conversion_under_nohup_outlives_its_terminal(checkpoints, tmp_path):
    ignoring = SLOW_WRITER.replace(
        "import signal, sys, time", "import signal, sys, time\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)"
    ).replace("time.sleep(0.1)", "time.sleep(0.01)")
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", ignoring, "gguf", str(checkpoints("llama"))),
            *("-o", str(tmp_path / "model.gguf")),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr.readline() == "writing\n"
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert contents(tmp_path) == ["model.gguf"]


def test_splits_carry_llama_cpps_keys_and_one_set_of_tensors(checkpoints, yarnconv, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir(), parts.mkdir()
    yarnconv("gguf", checkpoints("qwen3"), "-o", whole / "m.gguf")
    options = ("--split-max-size", "800K")
    code, stdout, _ = yarnconv("gguf", checkpoints("qwen3"), *options, "-o", parts / "m.gguf", "--json")
    assert code == 0
    names = contents(parts)
    assert [file["path"] for file in json.loads(stdout)["files"]] == [str(parts / n) for n in names]
    expected = {t.name: t.data.tobytes() for t in gguf.GGUFReader(whole / "m.gguf").tensors}
    found = {}
    for number, name in enumerate(names):
        assert name == f"m-{number + 1:05d}-of-{len(names):05d}.gguf"
        reader = gguf.GGUFReader(parts / name)
        keys = {key: field.contents() for key, field in reader.fields.items()}
        assert (keys["split.no"], keys["split.count"]) == (number, len(names))
        assert keys["split.tensors.count"] == len(expected)
        assert ("qwen3.block_count" in keys) == (number == 0)
        data = sum(tensor.n_bytes for tensor in reader.tensors)
        assert data <= 800_000 or len(reader.tensors) == 1
        found |= {tensor.name: tensor.data.tobytes() for tensor in reader.tensors}
    assert found == expected


def test_rows_that_do_not_divide_into_blocks_stay_f16(checkpoints, yarnconv, tmp_path):
    directory = checkpoints("llama", intermediate_size=200)
    path = tmp_path / "model.gguf"
    code, stdout, _ = yarnconv("gguf", directory, "--outtype", "q8_0", "-o", path)
    assert code == 0
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(path).tensors}
    assert types["blk.0.ffn_down.weight"] == "F16"
    assert types["blk.0.ffn_up.weight"] == "Q8_0"
    assert "3 tensors stay f16" in stdout


@pytest.mark.parametrize(
    ("family", "changes", "options", "words"),
    [
        ("ministral3", {"sliding_window": 512}, [], "look back over 512 positions"),
        ("ministral3", {"sliding_window": 128}, [], "look back over 128 positions"),
        (
            "qwen3",
            {
                "use_sliding_window": True,
                "sliding_window": 64,
                "max_window_layers": 1,
                "layer_types": None,
            },
            [],
            "2 layers look back over 64 positions",
        ),
        ("llama", {"hidden_act": "gelu"}, [], "computes silu, not gelu"),
        ("qwen3", {"attention_bias": True}, [], "no bias of the attention output"),
        ("llama", {"partial_rotary_factor": 0.5}, [], "rotates whole heads"),
        (
            "llama",
            {},
            ["--method", "dynamic-yarn", "--factor", "4"],
            "--rope-scaling yarn --rope-scale 4",
        ),
        ("llama", {}, ["--method", "dynamic-ntk", "--factor", "4"], "--rope-freq-base"),
        (
            "qwen3",
            {},
            ["--method", "dynamic-yarn", "--factor", "4", "--beta-fast", "20", "--beta-slow", "2"],
            "--yarn-beta-fast 20",
        ),
    ],
    ids=str,
)
def test_refusals(family, changes, options, words, checkpoints, yarnconv, tmp_path):
    """Exit 3 before a byte is written, the reason and the way out."""
    directory = tmp_path / "model"
    shutil.copytree(checkpoints(family), directory)
    if changes.get("attention_bias"):
        directory = checkpoints(family, **changes)
    else:
        edit_config(directory, **changes)
    out = tmp_path / "out"
    out.mkdir()
    code, stdout, stderr = yarnconv("gguf", directory, *options, "-o", out)
    assert code == 3, stderr
    assert words in " ".join(stderr.split())
    assert (stdout, contents(out)) == ("", [])


def test_a_window_wider_than_the_context_changes_nothing(checkpoints, yarnconv, tmp_path):
    directory = shutil.copytree(checkpoints("mistral"), tmp_path / "model")
    edit_config(directory, sliding_window=1024)
    assert yarnconv("gguf", directory, "--factor", "4", "-o", tmp_path / "model.gguf")[0] == 0
    edit_config(directory, sliding_window=None)
    assert yarnconv("gguf", directory, "--factor", "40", "-o", tmp_path / "model.gguf")[0] == 0


def test_layer_types_do_not_switch_a_mistral_window_off(checkpoints, yarnconv, tmp_path):
    directory = shutil.copytree(checkpoints("mistral"), tmp_path / "model")
    edit_config(directory, sliding_window=64, layer_types=["full_attention"] * 3)
    assert yarnconv("gguf", directory, "-o", tmp_path / "model.gguf")[0] == 0
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    assert fields["granite_swa.attention.sliding_window"].contents() == 64
    assert fields["granite_swa.attention.sliding_window_pattern"].contents() == [True] * 3


def test_special_files_and_links_as_destination(checkpoints, yarnconv, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    code, _, stderr = yarnconv("gguf", checkpoints("llama"), "-o", tmp_path / "pipe")
    assert code == 2
    assert "no regular file" in stderr
    (tmp_path / "real").mkdir()
    (tmp_path / "link.gguf").symlink_to(tmp_path / "real" / "model.gguf")
    assert yarnconv("gguf", checkpoints("llama"), "-o", tmp_path / "link.gguf")[0] == 0
    assert (tmp_path / "link.gguf").is_symlink()
    assert contents(tmp_path / "real") == ["model.gguf"]


def test_named_chat_templates_are_all_written(checkpoints, yarnconv, tmp_path):
    directory = shutil.copytree(checkpoints("llama"), tmp_path / "model")
    path = directory / "tokenizer_config.json"
    templates = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": templates}))
    assert yarnconv("gguf", directory, "-o", tmp_path / "model.gguf")[0] == 0
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    assert fields["tokenizer.chat_template"].contents() == "a"
    assert fields["tokenizer.chat_template.tool_use"].contents() == "b"
    assert fields["tokenizer.chat_templates"].contents() == ["tool_use"]


def test_llama3_is_refused_for_its_own_reason_where_no_rope_freqs_are_loaded(checkpoints, yarnconv, tmp_path):
    directory = shutil.copytree(checkpoints("qwen2"), tmp_path / "model")
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 128, "rope_theta": 10000.0}
    edit_config(directory, rope_parameters=rope)
    code, _, stderr = yarnconv("gguf", directory, "-o", tmp_path / "model.gguf")
    assert code == 3
    assert "has no keys for llama3" in stderr
