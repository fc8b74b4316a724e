"""Existing GGUFs with another plan: what is written, what is copied, what is refused."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.support.gguf_editing import load
from tests.support.models import make_checkpoint
from yarnconv.artifact import SLACK_BYTES
from yarnconv.targets import copying
from yarnconv.targets.gguf.reader import open_gguf

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
METHODS = {
    "yarn": ("--factor", "4"),
    "linear": ("--method", "linear", "--factor", "4"),
    "ntk": ("--method", "ntk", "--factor", "4"),
    "ntk-by-parts": ("--method", "ntk-by-parts", "--factor", "4"),
    "attention factor": ("--factor", "4", "--attention-factor", "1.05"),
    "a fraction": ("--target-context", "999"),
    "an equivalent original": ("--factor", "4", "--beta-fast", "64", "--beta-slow", "2"),
}
ONLY_BY_TENSOR = {
    "betas": ("--factor", "4", "--beta-fast", "16", "--beta-slow", "2"),
    "not truncated": ("--factor", "4", "--no-truncate"),
}


def facts(path):
    """(metadata but for the record, the record, tensors) of a GGUF, by the gguf package."""
    reader = gguf.GGUFReader(path)
    values = {f.name: (tuple(f.types), f.contents()) for f in reader.fields.values()}
    record = json.loads(values.pop("yarnconv.plan")[1])
    values = {key: value for key, value in values.items() if not key.startswith("GGUF.")}
    return values, record, {t.name: (t.tensor_type, tuple(t.shape), t.data.tobytes()) for t in reader.tensors}


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def extended(yarnconv, source, destination, *options):
    code, stdout, stderr = yarnconv("gguf", source, *options, "-o", destination, "--json")
    assert code == 0, stderr
    return json.loads(stdout)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", [*METHODS, *ONLY_BY_TENSOR])
def test_the_same_as_converted_so(method, family, artefacts, yarnconv, tmp_path):
    """Every key and every tensor of a plain file that was extended are those of one that was converted so."""
    options = {**METHODS, **ONLY_BY_TENSOR}[method]
    source = artefacts(family, "q8_0")
    before = digest(source)
    if method in ONLY_BY_TENSOR and family.startswith("qwen"):
        code, _, stderr = yarnconv("gguf", source, *options, "-o", tmp_path / "extended.gguf")
        assert (code, list(tmp_path.iterdir())) == (3, [])
        assert "rope_freqs" in stderr
        return
    extended(yarnconv, source, tmp_path / "extended.gguf", *options)
    values, record, tensors = facts(tmp_path / "extended.gguf")
    wanted, wanted_record, wanted_tensors = facts(artefacts(family, "q8_0", *options))
    assert values == wanted
    assert tensors == wanted_tensors
    record.pop("rope_options")  # all of them, so that a checkpoint with a scaling of its own gives the same
    wanted_record.pop("rope_options")
    assert record == wanted_record
    assert digest(source) == before


@pytest.mark.parametrize(
    ("family", "options"),
    [
        *((family, METHODS[method]) for family in FAMILIES for method in ("yarn", "linear", "ntk")),
        *((family, ONLY_BY_TENSOR["betas"]) for family in ("llama", "mistral")),
    ],
)
def test_twice_is_once_by_the_product(family, options, artefacts, yarnconv, tmp_path):
    others = [option for option in options if option not in {"--factor", "4"}]
    source = artefacts(family, "f32")
    extended(yarnconv, source, tmp_path / "2.gguf", "--factor", "2", *others)
    twice = extended(yarnconv, tmp_path / "2.gguf", tmp_path / "4.gguf", "--factor", "2", *others)
    extended(yarnconv, source, tmp_path / "once.gguf", "--factor", "4", *others)
    assert facts(tmp_path / "4.gguf")[0] == facts(tmp_path / "once.gguf")[0]
    assert facts(tmp_path / "4.gguf")[2] == facts(tmp_path / "once.gguf")[2]
    assert "extended by 2 already: with --factor 2 on top it is 4" in " ".join(twice["plan"]["warnings"])
    assert (twice["plan"]["original_context"], twice["plan"]["target_context"]) == (256, 1024)


def test_a_factor_from_the_original_context(artefacts, yarnconv, tmp_path):
    source = artefacts("llama", "f32", "--factor", "4")
    original = ("--factor", "2", "--original-context", "256")
    assert extended(yarnconv, source, tmp_path / "a.gguf", *original)["plan"]["target_context"] == 512
    target = ("--target-context", "512")
    assert extended(yarnconv, source, tmp_path / "b.gguf", *target)["plan"]["factor"] == 2.0
    plain = extended(yarnconv, source, tmp_path / "c.gguf", "--method", "none")["plan"]
    assert (plain["method"], plain["target_context"]) == ("none", 256)
    assert facts(tmp_path / "c.gguf")[0] == facts(artefacts("llama", "f32"))[0]


@pytest.mark.parametrize("quantised", ["f16", "q8_0", "q4_k_m", "iq4_nl"])
def test_check_accepts_it(quantised, artefacts, checkpoints, check, yarnconv, tmp_path):
    path = tmp_path / "extended.gguf"
    extended(yarnconv, artefacts("qwen3", quantised), path, "--factor", "4")
    code, report, stderr = check(path, checkpoints("qwen3"), "--factor", "4")
    assert (code, report["parity"]) == (0, True), stderr
    assert check(path, checkpoints("qwen3"), "--factor", "3.9")[0] == 1
    code, report, _ = check(path, checkpoints("qwen3"))
    assert (code, report["expected_from"]) == (0, "provenance")


@pytest.mark.parametrize("options", [("--factor", "4"), ("--factor", "4", "--no-truncate")])
def test_split_files(options, artefacts, checkpoints, check, yarnconv, tmp_path):
    code, _, stderr = yarnconv(
        *("gguf", checkpoints("llama"), "--outtype", "f32", "--split-max-size", "1M"),
        *("-o", tmp_path / "plain.gguf"),
    )
    assert code == 0, stderr
    parts = sorted(tmp_path.iterdir())
    assert len(parts) > 2
    written = extended(yarnconv, parts[0], tmp_path / "long.gguf", *options)["files"]
    assert [Path(file["path"]).name for file in written] == [p.name.replace("plain", "long") for p in parts]
    first = Path(written[0]["path"])
    code, report, stderr = check(first, checkpoints("llama"), *options)
    assert (code, report["parity"]) == (0, True), stderr
    with open_gguf(parts[0]) as plain, open_gguf(first) as long:
        assert len(long.tensors) == len(plain.tensors) + ("--no-truncate" in options)
        for name, tensor in plain.tensors.items():
            assert np.array_equal(tensor.packed(slice(None)), long.tensors[name].packed(slice(None)))
        for part in long.parts:
            count = int.from_bytes(part.packed["split.tensors.count"][4:], "little")
            assert count == len(long.tensors)


def test_the_name_it_gets(artefacts, yarnconv, tmp_path, monkeypatch):
    shutil.copy(artefacts("llama", "q8_0"), tmp_path / "model-q8_0.gguf")
    monkeypatch.chdir(tmp_path)
    assert yarnconv("gguf", "model-q8_0.gguf", "--factor", "4")[0] == 0
    assert (tmp_path / "model-q8_0-yarn-x4.gguf").exists()


def test_the_tensors_keep_their_place(artefacts, yarnconv, tmp_path):
    """Modulo 64 KiB, within which kernels copy and file systems share what stands alike."""
    for options in (("--factor", "4"), ("--factor", "4", "--no-truncate")):
        extended(yarnconv, artefacts("llama", "f32"), tmp_path / "x.gguf", *options)
        with open_gguf(artefacts("llama", "f32")) as before, open_gguf(tmp_path / "x.gguf") as after:
            places = {(after.tensors[n].offset - t.offset) % 2**16 for n, t in before.tensors.items()}
        assert places == {0}


def test_other_alignments(artefacts, yarnconv, tmp_path):
    """What stands at multiples of 4096 in one file stands so in the other."""
    file = load(artefacts("llama", "f32"))
    file.keys.uint32("general.alignment", 4096)
    infos, offset = [], 0
    from yarnconv.targets.gguf.file_format import TensorInfo, align, pack_header

    for name, tensor in file.tensors.items():
        infos.append(TensorInfo(name=name, shape=tensor.shape, tensor_type=tensor.tensor_type, offset=offset))
        offset += align(tensor.nbytes, 4096)
    path = tmp_path / "aligned.gguf"
    with path.open("wb") as out:
        out.write(pack_header(file.keys, infos, 4096))
        start = out.tell()
        for info in infos:
            out.seek(start + info.offset)
            out.write(file.rows[info.name].tobytes())
        out.truncate(start + offset)
    extended(yarnconv, path, tmp_path / "x.gguf", "--factor", "4", "--no-truncate")
    with open_gguf(tmp_path / "x.gguf") as after:
        assert {tensor.offset % 4096 for tensor in after.tensors.values()} == {0}
        assert facts(tmp_path / "x.gguf")[2].items() >= facts(artefacts("llama", "f32"))[2].items()


def test_a_plan_survives_the_file(checkpoints, artefacts, yarnconv):
    """plan --json of the checkpoint, and inspect --json of the GGUF that was made by it."""
    for options in [*METHODS.values(), *ONLY_BY_TENSOR.values()]:
        plan = json.loads(yarnconv("plan", checkpoints("llama"), *options, "--json")[1])
        code, stdout, _ = yarnconv("inspect", artefacts("llama", "q8_0", *options), "--json")
        inspected = json.loads(stdout)
        assert (code, [f["code"] for f in inspected["findings"] if f["severity"] != "note"]) == (0, [])
        assert inspected["target"] == "gguf"
        for key in ("model", "family", "finetune_tokens", "kv_cache_bytes_per_token", "tensors"):
            plan.pop(key)
        for group in plan["groups"]:  # what of its layers a file's RoPE does not say
            assert group.pop("attention")
        assert {key: inspected[key] for key in plan} == plan


def test_a_plan_before_anything_is_written(artefacts, yarnconv, tmp_path):
    source = artefacts("qwen2", "q8_0", "--factor", "2")
    code, stdout, _ = yarnconv("plan", source, "--factor", "2", "--json")
    assert code == 0
    wanted = extended(yarnconv, source, tmp_path / "x.gguf", "--factor", "2")["plan"]
    assert wanted.items() <= json.loads(stdout).items()
    code, stdout, _ = yarnconv("plan", source, "--factor", "2")
    assert "256 -> 1024 positions" in stdout
    assert yarnconv("plan", source, "--no-truncate")[0] == 3
    assert yarnconv("plan", source, "--pretraining-tokens", "2T")[0] == 2


def test_without_a_record_the_keys_say_it(artefacts, yarnconv, tmp_path):
    """Another tool's file: what the keys can say is named, a larger base stays one."""
    named = {"yarn": "yarn", "linear": "linear", "ntk": "none", "ntk-by-parts": "ntk-by-parts"}
    for method, found in named.items():
        file = load(artefacts("qwen2", "f32", *METHODS[method]))
        file.drop("yarnconv.")
        path = file.write(tmp_path / f"{method}.gguf")
        inspected = json.loads(yarnconv("inspect", path, "--json")[1])
        odd = [f["code"] for f in inspected["findings"] if f["severity"] != "note"]
        # nobody says any more that the temperature was left out on purpose
        assert odd == (["temperature-missing"] if method == "ntk-by-parts" else [])
        assert inspected["method"] == found
        again = extended(yarnconv, path, tmp_path / "again.gguf", "--factor", "2")["plan"]
        assert again["target_context"] == 2048
        assert again["original_context"] == (1024 if method == "ntk" else 256)


def test_a_record_that_lies(artefacts, yarnconv, tmp_path):
    """The keys decide, for the extension too."""
    file = load(artefacts("llama", "f32", "--factor", "4"))
    file.keys.float32("llama.rope.scaling.factor", 2.0)
    path = file.write(tmp_path / "lies.gguf")
    code, stdout, _ = yarnconv("inspect", path, "--json")
    assert code == 1
    assert json.loads(stdout)["factor"] == 2.0
    findings = json.loads(stdout)["findings"]
    assert {f["code"] for f in findings if f["severity"] == "error"} == {"record-disagrees", "context-length"}
    code, stdout, _ = yarnconv("inspect", path)
    assert code == 1
    assert "record-disagrees: it was recorded otherwise than its keys say" in " ".join(stdout.split())
    assert extended(yarnconv, path, tmp_path / "x.gguf", "--factor", "2")["plan"]["factor"] == 4.0


def test_llama_3s_own_scaling_has_a_name(yarnconv, tmp_path):
    """Its GGUFs hold divisors and no key; other divisors have none."""
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling |= {"original_max_position_embeddings": 8192, "rope_theta": 500000.0}
    overrides = {"max_position_embeddings": 131072, "rope_parameters": scaling}
    directory = make_checkpoint(tmp_path / "model", "llama", **overrides)
    path = tmp_path / "llama3.gguf"
    assert yarnconv("gguf", directory, "-o", path)[0] == 0
    file = load(path)
    file.drop("yarnconv.")
    file.write(path)
    assert json.loads(yarnconv("inspect", path, "--json")[1])["method"] == "llama3"
    document = extended(yarnconv, path, tmp_path / "x.gguf", "--factor", "32")
    assert document["plan"]["original_context"] == 8192
    assert "trained with llama3 frequencies" in " ".join(document["plan"]["warnings"])
    shorter = extended(yarnconv, path, tmp_path / "shorter.gguf", "--factor", "4")["plan"]
    assert "by this plan it reaches 32768" in " ".join(shorter["warnings"])
    with open_gguf(tmp_path / "x.gguf") as after:
        assert "rope_freqs.weight" not in after.tensors
    file.rows["rope_freqs.weight"] = (file.rows["rope_freqs.weight"].view(np.float32) * 1.5).view(np.uint8)
    file.write(path)
    code, _, stderr = yarnconv("gguf", path, "--factor", "4", "-o", tmp_path / "y.gguf")
    assert code == 3
    assert "which scaling they are of is not known" in stderr


BAD_OPTIONS = {
    "--outtype": ("--outtype", "q8_0"),
    "--pre": ("--pre", "llama-bpe"),
    "--split-max-size": ("--split-max-size", "1M"),
    "--only-split": ("--only-split", "1/2"),
    "--split-jobs": ("--split-jobs", "list"),
    "--revision": ("--revision", "main"),
}


@pytest.mark.parametrize("option", BAD_OPTIONS)
def test_options_that_would_need_a_conversion(option, artefacts, yarnconv, tmp_path):
    source, path = artefacts("llama", "f32"), tmp_path / "x.gguf"
    code, _, stderr = yarnconv("gguf", source, "--factor", "4", *BAD_OPTIONS[option], "-o", path)
    assert (code, path.exists()) == (2, False)
    assert f"{option}: has no meaning with a GGUF" in " ".join(stderr.split())


def test_nothing_asked(artefacts, yarnconv, tmp_path):
    code, _, stderr = yarnconv("gguf", artefacts("llama", "f32"), "-o", tmp_path / "x.gguf")
    assert (code, list(tmp_path.iterdir())) == (2, [])
    assert "nothing is asked for" in stderr


def test_the_source_is_no_destination(artefacts, yarnconv, tmp_path):
    source = tmp_path / "model.gguf"
    shutil.copy(artefacts("llama", "f32"), source)
    link = tmp_path / "link.gguf"
    link.symlink_to(source)
    before = digest(source)
    for destination in (source, link, tmp_path / "." / "model.gguf"):
        code, _, stderr = yarnconv("gguf", source, "--factor", "4", "-o", destination)
        assert code == 2
        assert "the destination is the source itself" in stderr
    code, _, stderr = yarnconv("gguf", link, "--factor", "4", "-o", source)
    assert code == 2
    assert digest(source) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.gguf", "model.gguf"]


def test_dynamic_methods_are_refused(artefacts, yarnconv, tmp_path):
    options = ("--factor", "4", "--method", "dynamic-yarn", "-o", tmp_path / "x.gguf")
    code, _, stderr = yarnconv("gguf", artefacts("llama", "f32"), *options)
    assert (code, list(tmp_path.iterdir())) == (3, [])
    assert "--rope-scaling yarn --rope-scale 4 --yarn-orig-ctx 256" in stderr


def test_a_dynamic_plan_is_shown_and_no_file_is_judged_by_it(artefacts, checkpoints, yarnconv):
    options = ("--factor", "4", "--method", "dynamic-yarn")
    code, stdout, _ = yarnconv("plan", artefacts("llama", "f32"), *options, "--json")
    assert (code, json.loads(stdout)["method"]) == (0, "dynamic-yarn")
    arguments = (artefacts("llama", "f32"), "--reference", checkpoints("llama"), *options)
    code, _, stderr = yarnconv("check", *arguments)
    assert code == 3
    assert "checked with --method none" in " ".join(stderr.split())


def test_a_full_disk(artefacts, yarnconv, tmp_path, monkeypatch):
    free = shutil._ntuple_diskusage(0, 0, SLACK_BYTES)
    monkeypatch.setattr("yarnconv.artifact.shutil.disk_usage", lambda path: free)
    code, _, stderr = yarnconv("gguf", artefacts("llama", "f32"), "--factor", "4", "-o", tmp_path / "x.gguf")
    assert (code, list(tmp_path.iterdir())) == (2, [])
    assert "are needed" in stderr


def test_where_the_kernel_does_not_copy(artefacts, yarnconv, tmp_path, monkeypatch):
    """Between two file systems of an old kernel: the same bytes, by hand."""

    def refuses(*arguments):
        raise OSError(18, os.strerror(18))

    extended(yarnconv, artefacts("llama", "q8_0"), tmp_path / "by-kernel.gguf", "--factor", "4")
    monkeypatch.setattr(copying.os, "copy_file_range", refuses)
    extended(yarnconv, artefacts("llama", "q8_0"), tmp_path / "by-hand.gguf", "--factor", "4")
    assert digest(tmp_path / "by-kernel.gguf") == digest(tmp_path / "by-hand.gguf")


def test_a_source_that_is_cut_while_it_is_read(artefacts, yarnconv, tmp_path, monkeypatch):
    monkeypatch.setattr(copying.os, "copy_file_range", lambda *arguments: 0)
    code, _, stderr = yarnconv("gguf", artefacts("llama", "f32"), "--factor", "4", "-o", tmp_path / "x.gguf")
    assert (code, list(tmp_path.iterdir())) == (2, [])
    assert "became shorter" in stderr


def test_a_disk_that_fills_up(artefacts, yarnconv, tmp_path, monkeypatch):
    """The kernel takes a part of a write, and says at the next one that there is no room."""
    room = [100_000]

    def scarce(descriptor, data, offset, write=os.pwrite):
        if room[0] == 0:
            raise OSError(28, os.strerror(28))
        written = write(descriptor, bytes(data[: room[0]]), offset)
        room[0] -= written
        return written

    monkeypatch.setattr(copying.os, "pwrite", scarce)
    file = load(artefacts("llama", "f32"))
    file.keys.string("general.description", "x" * 200_000)
    source = file.write(tmp_path / "source.gguf")
    code, _, stderr = yarnconv("gguf", source, "--factor", "4", "-o", tmp_path / "x.gguf")
    assert (code, [p.name for p in tmp_path.iterdir()]) == (2, ["source.gguf"])
    assert "No space left" in stderr


def test_names_that_end_alike(artefacts, yarnconv, tmp_path):
    """Only .gguf is a suffix: x.q4 and x.q8 are two models."""
    for name in ("x.q4", "x.q8", "x.gguf"):
        extended(yarnconv, artefacts("llama", "q8_0"), tmp_path / name, "--factor", "4", "--emit", "card")
    assert {p.name for p in tmp_path.glob("*.md")} == {"x.q4.md", "x.q8.md", "x.md"}
    part = tmp_path / "y-00001-of-00002.gguf"
    code, _, stderr = yarnconv("gguf", artefacts("llama", "q8_0"), "--factor", "4", "-o", part)
    assert (code, part.exists()) == (2, False)
    assert "a part of a split model" in stderr


def test_what_lies_beside_a_link_lies_beside_the_file(artefacts, yarnconv, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link.gguf").symlink_to(tmp_path / "real" / "target.gguf")
    options = ("--factor", "4", "--emit", "llama-server")
    extended(yarnconv, artefacts("llama", "q8_0"), tmp_path / "link.gguf", *options)
    assert {p.name for p in (tmp_path / "real").iterdir()} == {"target.gguf", "target.llama-server.sh"}
    assert (tmp_path / "link.gguf").is_symlink()


def test_the_source_under_another_name(artefacts, yarnconv, tmp_path):
    """The same file by another path, as a bind mount has it."""
    source, other = tmp_path / "a.gguf", tmp_path / "b.gguf"
    shutil.copy(artefacts("llama", "q8_0"), source)
    other.hardlink_to(source)
    before = digest(source)
    code, _, stderr = yarnconv("gguf", source, "--factor", "4", "-o", other)
    assert (code, digest(other)) == (2, before)
    assert "the destination is the source itself" in stderr


def test_a_context_that_the_scaling_does_not_reach(artefacts, yarnconv, tmp_path):
    """llama-server caps requests at context_length, whatever the scaling."""
    for value, said in ((9999, True), (1025, False)):
        file = load(artefacts("llama", "f32", "--factor", "4"))
        file.keys.uint32("llama.context_length", value)
        path = file.write(tmp_path / "edited.gguf")
        code, stdout, _ = yarnconv("inspect", path, "--json")
        errors = [f["code"] for f in json.loads(stdout)["findings"] if f["severity"] == "error"]
        assert (code, errors) == ((1, ["context-length"]) if said else (0, []))
    file.keys.uint32("llama.context_length", 4096)
    path = file.write(tmp_path / "edited.gguf")
    warnings = extended(yarnconv, path, tmp_path / "x.gguf", "--factor", "2")["plan"]["warnings"]
    assert "The file states a context of 4096 positions; by this plan it reaches 2048." in warnings


def test_the_file_name_of_one_part(artefacts, checkpoints, yarnconv, tmp_path):
    """A part that lost its name is no whole model."""
    arguments = ("--outtype", "f32", "--split-max-size", "1M", "-o", tmp_path / "m.gguf")
    assert yarnconv("gguf", checkpoints("llama"), *arguments)[0] == 0
    parts = sorted(tmp_path.iterdir())
    shutil.copy(parts[0], tmp_path / "alone.gguf")
    code, _, stderr = yarnconv("gguf", tmp_path / "alone.gguf", "--factor", "4", "-o", tmp_path / "x.gguf")
    assert code == 2
    assert f"is one of {len(parts)} files of a split model" in stderr
    parts[1].unlink()
    code, _, stderr = yarnconv("gguf", parts[0], "--factor", "4", "-o", tmp_path / "x.gguf")
    assert code == 2
    assert "no such file" in stderr
    assert not list(tmp_path.glob("x*"))
