"""The command inspect on files that were made to be shown badly: long, without numbers, or with a message."""

import json
import math
import struct
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from tests.support.gguf_editing import load
from yarnconv.console.messages import one_line, print_findings, print_warnings, printable
from yarnconv.targets.gguf.reader import GgufFile
from yarnconv.targets.gguf.shown_keys import MOST_KEYS

FLOAT32, STRING, ARRAY = 6, 8, 9
MANY = 2_000_000


@pytest.fixture
def edited(artefacts, tmp_path):
    def write(edit):
        file = load(artefacts("llama", "f32", "--factor", "4"))
        file.drop("yarnconv.")
        edit(file.keys)
        return file.write(tmp_path / "edited.gguf")

    return write


def put(keys, key, data):
    """A key's type and value as they are."""
    keys.packed[key] = data


def text(value):
    return struct.pack("<Q", len(value)) + value


LONG = {
    "numbers": (
        struct.pack("<IIQ", ARRAY, FLOAT32, MANY) + np.arange(MANY, dtype="<f4").tobytes(),
        "2000000 values of type float32: 0.0, 1.0, 2.0, 3.0, ...",
    ),
    "no numbers": (
        struct.pack("<IIQ", ARRAY, FLOAT32, 100) + np.full(100, np.nan, "<f4").tobytes(),
        "100 values of type float32: nan, nan, nan, nan, ...",
    ),
    "texts": (struct.pack("<IIQ", ARRAY, STRING, 9999) + text(b"x") * 9999, "9999 values of type string"),
    "a few long texts": (
        struct.pack("<IIQ", ARRAY, STRING, 3) + text(b"x" * 9999) * 3,
        "3 values of type string",
    ),
    "a text": (struct.pack("<I", STRING) + text(b"y" * 10**6), f"a text of 1000000 bytes: {'y' * 64}..."),
}


@pytest.mark.parametrize("key", ["llama.rope.strange", "qwen2.rope.scaling.factor", "llama.rope.dimension_x"])
@pytest.mark.parametrize("case", LONG)
def test_what_is_long_is_shown_by_how_it_begins(case, key, edited, inspect, monkeypatch):
    """And is not even read."""
    data, shown = LONG[case]
    path, value, read = edited(lambda keys: put(keys, key, data)), GgufFile.value, []

    def noted(file, key, default=None):
        read.append(key)
        return value(file, key, default)

    monkeypatch.setattr(GgufFile, "value", noted)
    _, document, severe = inspect(path)
    assert document["keys"][key] == shown
    assert severe == ["keys-never-read"]
    assert key not in read
    assert "llama.rope.freq_base" in read


def test_a_short_list_is_shown_whole_and_has_no_infinity(edited, inspect):
    path = edited(lambda keys: keys.float32s("llama.rope.strange", [1.5, math.inf, -math.inf, math.nan]))
    assert inspect(path)[1]["keys"]["llama.rope.strange"] == [1.5, "inf", "-inf", "nan"]


def test_more_keys_than_anyone_reads_are_counted(edited, inspect):
    def edit(keys):
        for number in range(2 * MOST_KEYS):
            keys.uint32(f"other.rope.{number}", 7)

    shown = inspect(edited(edit))[1]["keys"]
    assert len(shown) == MOST_KEYS + 1
    assert int(shown["..."].split()[0]) >= MOST_KEYS


def test_a_list_of_heads_is_one_for_each_layer(edited, yarnconv):
    def edit(keys):
        keys.packed.pop("llama.attention.key_length", None)
        put(keys, "llama.attention.head_count", struct.pack("<IIQ", ARRAY, 4, MANY) + bytes(4 * MANY))

    code, _, stderr = yarnconv("inspect", edited(edit))
    assert (code, "is more than 512 numbers" in " ".join(stderr.split())) == (2, True)


def renamed(keys, name):
    """To another architecture's, for a reader of keys."""
    for key in [key for key in keys.packed if key.startswith("llama.")]:
        keys.packed[f"{name}.{key.removeprefix('llama.')}"] = keys.packed.pop(key)
    keys.string("general.architecture", name)


@pytest.fixture
def infinite(edited):
    """A GGUF with such an attention factor, of an architecture that has it in the softmax as well; without a
    scaling, so that no name of one refuses it.
    """

    def write(factor, scaling="none"):
        def edit(keys):
            renamed(keys, "deepseek2")
            keys.string("deepseek2.rope.scaling.type", scaling)
            keys.float32("deepseek2.rope.scaling.attn_factor", factor)
            keys.float32("deepseek2.rope.scaling.yarn_log_multiplier", 0.1)

        return edited(edit)

    return write


@pytest.mark.parametrize("factor", [math.inf, math.nan])
def test_factors_that_are_no_numbers_are_names_in_json(factor, infinite, inspect):
    _, document, _ = inspect(infinite(factor))
    (bucket,) = document["carried"][0]["buckets"]
    said = str(factor)
    assert document["keys"]["deepseek2.rope.scaling.attn_factor"] == said
    for facts in (document, bucket):
        assert [facts["attention_factor"], facts["softmax_scale_multiplier"]] == [said, said]


@pytest.mark.parametrize("factor", [math.inf, math.nan, 3e38])
def test_a_temperature_that_no_axis_holds_is_not_drawn(factor, infinite, yarnconv, tmp_path):
    pytest.importorskip("matplotlib")
    code, _, stderr = yarnconv("inspect", infinite(factor), "--plot", tmp_path / "rope.png")
    assert (code, (tmp_path / "rope.png").exists(), "nothing to draw" in stderr) == (2, False, True)


@pytest.mark.parametrize("factor", [math.inf, math.nan, 3e38])
def test_a_scaling_with_such_a_temperature_is_refused(factor, infinite, yarnconv):
    code, stdout, stderr = yarnconv("inspect", infinite(factor, "yarn"))
    assert (code, stdout, "attention_factor" in stderr or "mscale" in stderr) == (2, "", True)


def test_notes_obey_nobody_either(edited, yarnconv):
    """An architecture's name, in the title, in a finding and in notes."""
    name = "x\x1b]0;pwned\x07\nerror: all is lost"

    def edit(keys):
        renamed(keys, name)

    _, stdout, stderr = yarnconv("inspect", edited(edit))
    assert "pwned" in stdout
    assert "\x1b" not in stdout + stderr
    assert "\x07" not in stdout + stderr
    assert not any(line.startswith("error: all") for line in stdout.splitlines())


def test_a_name_with_a_new_line_forges_none(edited, yarnconv):
    path = edited(lambda keys: keys.uint32("llama.rope.x\nnothing odd was found", 1))
    stdout = yarnconv("inspect", path)[1]
    assert "x\\nnothing odd was found" in stdout
    assert not any(line.startswith("nothing odd") for line in stdout.splitlines())


def test_one_line_and_several():
    assert one_line("a\nb\x1b[2J\r\u202e\tü") == "a\\nb\\x1b[2J\\r\\u202e\\tü"
    assert printable("a\nb\x1b[2J\n") == "a\nb\\x1b[2J\n"


@pytest.mark.parametrize("name", ["e.engine", "model.engine"])
def test_an_empty_engine(name, yarnconv, tmp_path):
    (tmp_path / name).touch()
    code, stdout, stderr = yarnconv("inspect", tmp_path / name, "--json")
    assert (code, stdout, "there is nothing in it" in " ".join(stderr.split())) == (2, "", True)


def test_json_stays_json(edited, yarnconv):
    """Whatever numbers a file has, for programs that know no NaN."""
    for key in ("llama.rope.freq_base", "llama.rope.scaling.factor", "llama.rope.scaling.attn_factor"):
        for number in (math.nan, math.inf, 0.0, 1e-38):
            path = edited(lambda keys, key=key, number=number: keys.float32(key, number))
            code, stdout, _ = yarnconv("inspect", path, "--json")
            assert (code, stdout) == (2, "") or json.loads(stdout)["schema_version"] == 1


@pytest.mark.parametrize("shown", [print_warnings, print_findings])
def test_a_warning_and_a_finding_are_one_line(shown):
    """Of which a part may be a name that an ONNX model gives to its input."""
    written = StringIO()
    shown(Console(file=written, width=200), ["cos\x1b]0;pwned\x07\nwarning: forged is an input too"])
    assert written.getvalue().split(": ", 1)[1] == "cos\\x1b]0;pwned\\x07\\nwarning: forged is an input too\n"
