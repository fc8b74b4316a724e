"""GGUFs as strangers send them: each a clear message and exit 2, whatever their lengths claim."""

import json
import struct
from dataclasses import replace

import numpy as np
import pytest

from tests.support.gguf_editing import load
from yarnconv.errors import BadInput
from yarnconv.targets.gguf.file_format import MAGIC
from yarnconv.targets.gguf.reader import open_gguf

U32, I32, F32, STRING, ARRAY = 4, 5, 6, 8, 9


def text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def pair(key, kind, data):
    return text(key) + struct.pack("<I", kind) + data


def tensor(name="t", shape=(32,), kind=0, offset=0, dimensions=None):
    count = len(shape) if dimensions is None else dimensions
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", count, *shape, kind, offset)


def build(pairs=(), tensors=(), data=b"\0" * 128, *, version=3, counts=None, magic=MAGIC):
    tensor_count, pair_count = counts or (len(tensors), len(pairs))
    head = (
        magic + struct.pack("<IQQ", version, tensor_count, pair_count) + b"".join(pairs) + b"".join(tensors)
    )
    return head + b"\0" * (-len(head) % 32) + data


ARCHITECTURE = pair("general.architecture", STRING, text("llama"))
GOOD = build([ARCHITECTURE], [tensor()])

HOSTILE = {
    "empty": (b"", "truncated"),
    "four bytes": (MAGIC, "truncated"),
    "another magic": (build(magic=b"GGML"), "is no GGUF"),
    "a safetensors file": (struct.pack("<Q", 2) + b"{}" + b" " * 40, "is no GGUF"),
    "version 1": (build(version=1), "GGUF version 1"),
    "big-endian": (build(version=3 << 24), "GGUF version"),
    "2^63 keys": (build(counts=(0, 2**63)), "do not fit"),
    "2^63 tensors": (build(counts=(2**63, 0)), "do not fit"),
    "more keys than there are": (build([ARCHITECTURE], counts=(0, 5)), "occurs twice"),
    "a key of 2^62 bytes": (build([struct.pack("<Q", 2**62)], counts=(0, 1)), "truncated"),
    "a string of 2^62 bytes": (build([pair("k", STRING, struct.pack("<Q", 2**62))]), "truncated"),
    "an array of 2^60 floats": (build([pair("k", ARRAY, struct.pack("<IQ", F32, 2**60))]), "truncated"),
    "an array of 2^60 strings": (build([pair("k", ARRAY, struct.pack("<IQ", STRING, 2**60))]), "truncated"),
    "an array of arrays": (build([pair("k", ARRAY, struct.pack("<IQ", ARRAY, 1))]), "arrays of arrays"),
    "an unknown value type": (build([pair("k", 77, b"\0" * 8)]), "unknown value type 77"),
    "a key twice": (build([ARCHITECTURE, ARCHITECTURE]), "occurs twice"),
    "no dimensions": (build([], [tensor(shape=())]), "0 dimensions"),
    "2^31 dimensions": (build([], [tensor(dimensions=2**31)]), "dimensions"),
    "a dimension of 0": (build([], [tensor(shape=(0, 4))]), "dimension of 0"),
    "dimensions beyond 64 bits": (build([], [tensor(shape=(2**62, 2**62, 2**62))]), "lie beyond the file"),
    "an unknown tensor type": (build([], [tensor(kind=4)]), "unknown tensor type 4"),
    "half a block": (build([], [tensor(shape=(33,), kind=8)]), "do not divide into blocks"),
    "data beyond the file": (build([], [tensor(shape=(4096,))]), "lie beyond the file"),
    "an offset beyond the file": (build([], [tensor(offset=2**40)]), "lie beyond the file"),
    "a misaligned offset": (build([], [tensor(offset=4)]), "misaligned"),
    "an alignment of 0": (
        build([pair("general.alignment", U32, struct.pack("<I", 0))], [tensor()]),
        "not a multiple of 8",
    ),
    "an alignment that is a string": (
        build([pair("general.alignment", STRING, text(""))], [tensor()]),
        "not a multiple of 8",
    ),
    "a tensor's name of 5000 digits": (build([], [tensor(name="blk." + "9" * 5000)]), "name of 5004"),
    "a tensor twice": (build([], [tensor(), tensor()]), "occurs twice"),
    "two tensors at one place": (build([], [tensor(), tensor("u")]), "lies over another tensor"),
    "two that overlap": (build([], [tensor(), tensor("u", (8,), offset=32)]), "lies over another"),
    "a key of 70000 bytes": (build([pair("k" * 70000, U32, b"\0" * 4)]), "a key of 70000"),
    "a key that is no text": (
        build([struct.pack("<Q", 2) + b"k\xff" + struct.pack("<II", U32, 0)]),
        "the name of a key is no text",
    ),
    "a tensor's name that is no text": (
        build([], [struct.pack("<Q", 1) + b"\xfe" + struct.pack("<IQIQ", 1, 32, 0, 0)]),
        "the name of a tensor is no text",
    ),
    "one part of nine": (
        build([ARCHITECTURE, pair("split.count", 2, struct.pack("<H", 9))], [tensor()]),
        "is one of 9 files",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile(case, tmp_path):
    data, message = HOSTILE[case]
    path = tmp_path / "hostile.gguf"
    path.write_bytes(data)
    with pytest.raises(BadInput, match=message), open_gguf(path):
        pass


@pytest.mark.parametrize("case", HOSTILE)
def test_none_of_them_is_extended(case, yarnconv, tmp_path):
    path = tmp_path / "hostile.gguf"
    path.write_bytes(HOSTILE[case][0])
    code, stdout, stderr = yarnconv("gguf", path, "--factor", "4", "-o", tmp_path / "x.gguf")
    assert (code, stdout) == (2, "")
    assert "error" in stderr
    assert [p.name for p in tmp_path.iterdir()] == ["hostile.gguf"]
    assert path.read_bytes() == HOSTILE[case][0]
    assert yarnconv("inspect", path)[0] == 2


def _key(name, kind, value):
    def edit(file):
        getattr(file.keys, kind)(name if "." in name else f"llama.{name}", value)

    return edit


def _rope(name, kind, value):
    return _key(f"llama.rope.{name}", kind, value)


def _without(name):
    return lambda file: file.drop(name)


def _heads(kind, value):
    def edit(file):
        file.drop("llama.attention.key_length")  # from which the size of a head is known without
        _key("llama.attention.head_count", kind, value)(file)

    return edit


def _divisors(values):
    def edit(file):
        tensor = file.tensors.pop("token_embd.weight")
        del file.rows["token_embd.weight"]
        data = np.array(values, dtype=np.float32)
        file.tensors["rope_freqs.weight"] = replace(
            tensor, name="rope_freqs.weight", shape=data.shape, tensor_type=0, nbytes=data.nbytes
        )
        file.rows["rope_freqs.weight"] = data.view(np.uint8)

    return edit


# an edit of a good file, the exit code, a part of the message
EDITS = {
    "no context": (_without("llama.context_length"), 2, "context_length is missing"),
    "a context of 0": (_key("context_length", "uint32", 0), 2, "not between 1"),
    "a context beyond 31 bits": (_key("context_length", "uint32", 2**32 - 1), 2, "not between 1"),
    "no layers": (_key("block_count", "uint32", 0), 2, "not between 1 and 512"),
    "2^32 - 1 layers": (_key("block_count", "uint32", 2**32 - 1), 2, "not between 1 and 512"),
    "no heads": (_heads("uint32", 0), 2, "nor the number of heads"),
    "a list of no heads": (_heads("int32s", [0, 0]), 2, "nor the number of heads"),
    "more dimensions turn than there are": (_rope("dimension_count", "uint32", 2**31), 2, "not between 1"),
    "an odd number of dimensions": (_rope("dimension_count", "uint32", 63), 2, "an even whole number"),
    "a base that is no number": (_rope("freq_base", "float32", float("nan")), 2, "rope_theta"),
    "a base of minus 1": (_rope("freq_base", "float32", -1.0), 2, "rope_theta"),
    "an infinite base": (_rope("freq_base", "float32", float("inf")), 2, "rope_theta"),
    "a base that is a text": (_rope("freq_base", "string", "1e6"), 2, "not a value of type float"),
    "a factor that is no number": (_rope("scaling.factor", "float32", float("nan")), 2, "factor"),
    "a factor of minus 4": (_rope("scaling.factor", "float32", -4.0), 2, "factor"),
    "a factor below 1": (_rope("scaling.factor", "float32", 0.25), 2, "factor"),
    "an original context of 0": (_rope("scaling.original_context_length", "uint32", 0), 2, "original"),
    "an attention factor of 0": (_rope("scaling.attn_factor", "float32", 0.0), 2, "attention_factor"),
    "an unknown scaling": (_rope("scaling.type", "string", "magic"), 2, "at which llama.cpp aborts"),
    "a scaling with an escape": (_rope("scaling.type", "string", "\x1b[31m"), 2, "llama.cpp aborts"),
    "longrope": (_rope("scaling.type", "string", "longrope"), 3, "no other method keeps"),
    "too few divisors": (_divisors([1.0, 1.0]), 2, "has 2 divisors, not 32"),
    "divisors of 0": (_divisors([0.0] * 32), 3, "act at once"),
    "divisors that are none": (_divisors([float("nan")] * 32), 3, "act at once"),
    "no architecture": (_without("general.architecture"), 2, "general.architecture is missing"),
    "an unknown architecture": (_key("general.architecture", "string", "llama9"), 3, "is not known here"),
    "one without RoPE": (_key("general.architecture", "string", "mamba"), 3, "has no RoPE"),
    "an alignment of 2^31": (_key("general.alignment", "uint32", 2**31), 2, "misaligned or lie beyond"),
}


@pytest.mark.parametrize("case", EDITS)
def test_keys_that_cannot_be(case, artefacts, yarnconv, tmp_path):
    """Nothing is allocated for what a key claims, nothing is written, and every message is about the key."""
    edit, wanted, message = EDITS[case]
    file = load(artefacts("llama", "f32", "--factor", "4"))
    file.drop("yarnconv.")
    edit(file)
    path = file.write(tmp_path / "edited.gguf")
    code, stdout, stderr = yarnconv("gguf", path, "--factor", "2", "-o", tmp_path / "x.gguf")
    assert (code, stdout) == (wanted, ""), stderr
    assert message in " ".join(stderr.split())
    assert "\x1b[31m" not in stderr
    assert [p.name for p in tmp_path.iterdir()] == ["edited.gguf"]


RECORDS = {
    "no JSON": "{",
    "a list": "[]",
    "another type": '{"rope_parameters": 7}',
    "a deep nest": '{"rope_parameters": ' + "[" * 100000 + "]" * 100000 + "}",
    "an unknown method": '{"rope_parameters": {"rope_type": "magic"}}',
    "no numbers": '{"rope_parameters": {"rope_type": "yarn", "factor": "4", "rope_theta": 1e4}}',
    "a dynamic method": '{"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}}',
}


@pytest.mark.parametrize("case", RECORDS)
def test_records_that_say_nothing(case, artefacts, yarnconv, tmp_path):
    """A record names what the keys carry, or does not count."""
    file = load(artefacts("llama", "f32", "--factor", "4"))
    file.keys.string("yarnconv.plan", RECORDS[case])
    path = file.write(tmp_path / "edited.gguf")
    assert yarnconv("gguf", path, "--factor", "2", "-o", tmp_path / "x.gguf")[0] == 0
    with open_gguf(tmp_path / "x.gguf") as after:
        assert after.value("llama.rope.scaling.factor") == 8.0


def test_the_same_made_well(tmp_path):
    path = tmp_path / "good.gguf"
    path.write_bytes(GOOD)
    with open_gguf(path) as file:
        assert file.architecture == "llama"
        assert file.tensors["t"].shape == (32,)


def test_every_truncation_of_a_header(tmp_path):
    path = tmp_path / "cut.gguf"
    for length in range(len(GOOD) - 128):
        path.write_bytes(GOOD[:length])
        with pytest.raises(BadInput), open_gguf(path):
            pass


def test_every_value_type_is_read(tmp_path):
    values = [("<B", 0, 7), ("<b", 1, -7), ("<H", 2, 7), ("<h", 3, -7), ("<I", 4, 7), ("<i", 5, -7)]
    values += [("<f", 6, 0.5), ("<?", 7, True), ("<Q", 10, 2**63), ("<q", 11, -(2**62)), ("<d", 12, 0.1)]
    pairs = [pair(f"k{kind}", kind, struct.pack(layout, value)) for layout, kind, value in values]
    pairs.append(pair("list", ARRAY, struct.pack("<IQ3i", I32, 3, 1, -2, 3)))
    pairs.append(pair("words", ARRAY, struct.pack("<IQ", STRING, 2) + text("é") + text("")))
    path = tmp_path / "types.gguf"
    path.write_bytes(build(pairs))
    with open_gguf(path) as file:
        assert [file.value(f"k{kind}") for _, kind, _ in values] == [value for _, _, value in values]
        assert file.value("list") == [1, -2, 3]
        assert file.value("words") == ["é", ""]
        with pytest.raises(BadInput, match="not a value of type str"):
            file.scalar("k4", str)
        with pytest.raises(BadInput, match=r"general\.architecture is missing"):
            file.architecture  # noqa: B018


def _no_shard(path):
    return path.rename(path.with_name("m-00001-of-00002.gguf"))


FILES = {
    "not there": (lambda path: path.with_name("nothing.gguf"), "no such file"),
    "a directory": (lambda path: path.parent, "there is no .onnx file in it"),  # which is one of ONNX else
    "a shard without the others": (_no_shard, "no such file"),
}


@pytest.mark.parametrize("case", FILES)
def test_no_such_artefact(case, yarnconv, checkpoints, tmp_path):
    make, message = FILES[case]
    path = tmp_path / "m.gguf"
    path.write_bytes(GOOD)
    code, stdout, stderr = yarnconv("check", make(path), "--reference", checkpoints("llama"))
    assert (code, stdout) == (2, "")
    assert message in stderr


def _text_for_a_number(file):
    file.keys.string("llama.rope.scaling.factor", "four")


def _list_for_a_number(file):
    file.keys.int32s("llama.context_length", [1, 2])


def _no_architecture(file):
    file.drop("general.architecture")


def _crowded_alignment(file):
    file.keys.uint32("general.alignment", 2**31)


@pytest.mark.parametrize(
    "edit", [_text_for_a_number, _list_for_a_number, _no_architecture, _crowded_alignment]
)
def test_keys_of_the_wrong_kind(edit, artefacts, checkpoints, yarnconv, tmp_path):
    file = load(artefacts("llama", "f32", "--factor", "4"))
    edit(file)
    path = file.write(tmp_path / "edited.gguf")
    code, stdout, stderr = yarnconv("check", path, "--reference", checkpoints("llama"), "--factor", "4")
    assert (code, stdout) == (2, "")
    assert "Traceback" not in stderr


# no layers and 2^32 - 1 layers kill llama.cpp itself, which is a crash and no verdict
@pytest.mark.parametrize(("layers", "wanted"), [(0, 70), (2, 1), (100, 1), (2**32 - 1, 70)])
def test_a_false_layer_count(layers, wanted, artefacts, checkpoints, yarnconv, tmp_path):
    """Nothing of ours is allocated for what the key claims."""
    file = load(artefacts("llama", "f32", "--factor", "4"))
    file.keys.uint32("llama.block_count", layers)
    path = file.write(tmp_path / "edited.gguf")
    code, stdout, stderr = yarnconv("check", path, "--reference", checkpoints("llama"), "--factor", "4")
    assert code == wanted
    assert "block_count" in stdout or "llama.cpp" in stderr


def test_a_header_that_fills_a_sparse_file(tmp_path):
    """300 GB of one string that take no space on the disk: refused before they are read."""
    path = tmp_path / "sparse.gguf"
    size = 300 * 2**30
    path.write_bytes(build([pair("k", STRING, struct.pack("<Q", size))], data=b""))
    with path.open("r+b") as file:
        file.truncate(size + 4096)
    with pytest.raises(BadInput, match="a header of more than"), open_gguf(path):
        pass


def test_a_number_that_json_has_not(artefacts, yarnconv, tmp_path):
    file = load(artefacts("llama", "f32", "--factor", "4"))
    file.keys.float32("llama.rope.scaling.strange", float("inf"))
    code, stdout, _ = yarnconv("inspect", file.write(tmp_path / "edited.gguf"), "--json")
    assert (code, json.loads(stdout)["keys"]["llama.rope.scaling.strange"]) == (0, "inf")
