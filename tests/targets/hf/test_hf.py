"""What `yarnconv hf` writes: transformers loads it with the plan's tables, in either spelling."""

import errno
import json
import os
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers

from tests.support.models import edit_config
from yarnconv.checkpoint.checkpoint import read_config
from yarnconv.rope.request import RopeRequest
from yarnconv.rope.spelling import read_rope
from yarnconv.rope.tables import buckets
from yarnconv.rope_plan import plan_rope

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
METHODS = {
    "linear": ("--method", "linear", "--factor", "4"),
    "ntk": ("--method", "ntk", "--factor", "4"),
    "dynamic-ntk": ("--method", "dynamic-ntk", "--factor", "4"),
    "ntk-by-parts": ("--method", "ntk-by-parts", "--factor", "4"),
    "yarn": ("--factor", "4"),
    "yarn, everything": (
        *("--factor", "3.9", "--beta-fast", "16", "--beta-slow", "2"),
        *("--attention-factor", "1.5", "--no-truncate"),
    ),
}
TOLERANCE = 2e-6  # float32 pow against float64: see tests/rope/test_transformers.py
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}


def rotary(directory):
    """The rotary module of the model that transformers loads from a directory."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return model.model.rotary_emb


def assert_tables(directory, inv_freq, attention_factor, length=None):
    module = rotary(directory)
    if length is not None:  # a dynamic type follows the positions
        module(torch.zeros(1, 1, 8), torch.arange(length)[None])
    np.testing.assert_allclose(module.inv_freq.double().numpy(), inv_freq, rtol=TOLERANCE)
    assert module.attention_scaling == pytest.approx(attention_factor, rel=1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_loads_it_with_the_plans_tables(extend, checkpoints, family, method):
    out, report = extend(checkpoints(family), *METHODS[method])
    plan, length = report["plan"], None
    if plan["method"] == "dynamic-ntk":
        length = plan["target_context"]
    assert_tables(out, plan["inv_freq"], plan["attention_factor"], length)
    # and again with each spelling alone, as transformers 5 and as those who read the old one only
    for other in ("rope_scaling", "rope_parameters"):
        alone = shutil.copytree(out, out.with_name(f"without-{other}"))
        edit_config(alone, remove=[other])
        assert_tables(alone, plan["inv_freq"], plan["attention_factor"], length)
        scaling = read_rope(json.loads((alone / "config.json").read_text())).groups[None]
        np.testing.assert_allclose(buckets(scaling)[-1].inv_freq, plan["inv_freq"], rtol=1e-12)
        assert buckets(scaling)[-1].attention_factor == plan["attention_factor"]


def test_files(extend, checkpoints):
    source = checkpoints("llama")
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    out, report = extend(source, "--factor", "4")
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    assert {path.name for path in out.iterdir()} == {*before, "yarnconv.json"}
    assert {file["path"] for file in report["files"]} == {str(path) for path in out.iterdir()}
    for name in before.keys() - {"config.json", "tokenizer_config.json"}:
        assert (out / name).read_bytes() == before[name]
    assert (out / "model.safetensors").samefile(source / "model.safetensors")
    assert not (out / "tokenizer.json").samefile(source / "tokenizer.json")
    assert any("hard-linked" in note for note in report["notes"])
    record = json.loads((out / "yarnconv.json").read_text())
    assert record["rope_options"] == {"factor": 4.0}


def test_config_keeps_everything_else(extend, copied):
    source = copied("llama", head_dim=None, custom={"b": [1], "a": "é"}, max_sequence_length=256)
    own = json.loads((source / "config.json").read_text())
    out, _ = extend(source, "--factor", "4", "--no-truncate")
    config = json.loads((out / "config.json").read_text())
    rope = {"rope_scaling", "rope_parameters", "rope_theta", "max_position_embeddings", "head_dim"}
    kept = {key: value for key, value in config.items() if key not in rope | {"max_sequence_length"}}
    assert kept == {k: v for k, v in own.items() if k not in rope | {"max_sequence_length"}}
    assert [key for key in config if key in own] == list(own)
    assert config["max_position_embeddings"] == config["max_sequence_length"] == 1024
    assert config["head_dim"] == 64
    yarn = {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 256,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "finetuned": False,
    }
    assert config["rope_scaling"] == {"type": "yarn", **yarn}
    assert config["rope_parameters"] == {**yarn, "rope_theta": 10000.0}
    assert config["rope_theta"] == 10000.0


def test_tokenizer_config_changes_in_its_length_only(extend, copied):
    source = copied("llama")
    path = source / "tokenizer_config.json"
    document = json.loads(path.read_text())
    document |= {"model_max_length": 1000000000000000019884624838656, "é": {"z": 1, "a": [None, 1.5]}}
    path.write_text(json.dumps(document))
    out, _ = extend(source, "--factor", "4")
    written = json.loads((out / "tokenizer_config.json").read_text())
    assert written == {**document, "model_max_length": 1024}
    assert list(written) == list(document)
    assert transformers.AutoTokenizer.from_pretrained(out).model_max_length == 1024


@pytest.mark.parametrize(
    ("method", "length"),
    [("linear", 256), ("dynamic-ntk", 256), ("ntk", 1024), ("yarn", 1024), ("ntk-by-parts", 1024)],
)
def test_the_length_is_what_readers_of_the_type_expect(extend, checkpoints, method, length):
    """Engines multiply max_position_embeddings by the factor where nothing names the original one."""
    out, _ = extend(checkpoints("qwen2"), "--method", method, "--factor", "4")
    config = json.loads((out / "config.json").read_text())
    scaling = config["rope_scaling"] or {}
    assert config["max_position_embeddings"] == length
    states_original = "original_max_position_embeddings" in scaling
    multiplied = length * (1 if states_original else scaling.get("factor", 1))
    assert multiplied == 1024
    if method == "dynamic-ntk":
        assert transformers.AutoConfig.from_pretrained(out).max_position_embeddings == 256


def test_ntk_is_said_to_be_a_base(extend, checkpoints):
    out, report = extend(checkpoints("llama"), "--method", "ntk", "--factor", "4")
    config = json.loads((out / "config.json").read_text())
    assert config["rope_scaling"] is None
    assert config["rope_theta"] == pytest.approx(10000.0 * 4 ** (64 / 62), rel=1e-12)
    assert any("no NTK-aware type" in note for note in report["notes"])


def test_what_other_engines_may_leave_out_is_said(extend, checkpoints):
    options = ("--attention-factor", "1.5", "--no-truncate")
    _, report = extend(checkpoints("llama"), "--factor", "4", *options)
    assert any("attention_factor and truncate" in note for note in report["notes"])
    _, report = extend(checkpoints("llama"), "--factor", "4", name="plain")
    assert not any("vLLM" in note for note in report["notes"])
    _, report = extend(checkpoints("llama"), "--factor", "3.9", name="fraction")
    assert any("3.8984375" in note for note in report["notes"])


def test_a_checkpoints_own_scaling_is_kept(extend, copied):
    source = copied("llama", remove=["rope_parameters"], rope_scaling=LLAMA3, max_position_embeddings=2048)
    out, report = extend(source)
    config = json.loads((out / "config.json").read_text())
    assert config["rope_scaling"] == {"type": "llama3", **LLAMA3}
    assert config["max_position_embeddings"] == 2048
    assert_tables(out, report["plan"]["inv_freq"], 1.0)


def test_longrope_is_kept(extend, copied):
    rope = {
        "rope_type": "longrope",
        "factor": 8.0,
        "short_factor": [1.0 + 0.01 * i for i in range(32)],
        "long_factor": [1.0 + 0.5 * i for i in range(32)],
        "original_max_position_embeddings": 256,
    }
    source = copied("llama", remove=["rope_parameters"], rope_scaling=rope, max_position_embeddings=2048)
    out, report = extend(source)
    short, long = report["plan"]["groups"][0]["buckets"]
    config = json.loads((out / "config.json").read_text())
    assert config["original_max_position_embeddings"] == 256  # the only place where transformers 4 looks
    assert config["rope_scaling"]["attention_factor"] == short["attention_factor"]
    assert_tables(out, short["inv_freq"], short["attention_factor"], 256)
    assert_tables(out, long["inv_freq"], long["attention_factor"], 257)


def test_none_removes_the_scaling(extend, checkpoints):
    first, _ = extend(checkpoints("llama"), "--factor", "4", name="first")
    out, report = extend(first, "--method", "none")
    config = json.loads((out / "config.json").read_text())
    assert config["rope_scaling"] is None
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 10000.0}
    assert_tables(out, report["plan"]["inv_freq"], 1.0)


def test_a_profile_is_spelled_out(extend, copied):
    rope = {"type": "yarn", "factor": 16.0, "original_max_position_embeddings": 8192, "finetuned": True}
    source = copied("mistral", remove=["rope_parameters"], rope_scaling=rope, max_position_embeddings=32768)
    out, report = extend(source)
    assert report["plan"]["profile"] == "yarn-mistral"
    config = json.loads((out / "config.json").read_text())
    assert config["rope_scaling"]["attention_factor"] == pytest.approx(1.0 + 0.07 * np.log(16.0))
    assert (config["rope_scaling"]["beta_fast"], config["rope_scaling"]["beta_slow"]) == (128.0, 2.0)
    assert config["rope_scaling"]["finetuned"] is True
    assert_tables(out, report["plan"]["inv_freq"], report["plan"]["attention_factor"])


def test_who_extends_the_result_hears_that_it_is_not_fine_tuned(extend, checkpoints):
    out, _ = extend(checkpoints("llama"), "--factor", "4")
    rope, *_ = plan_rope(read_config(out), RopeRequest())
    assert not rope.finetuned
    assert any("Not fine-tuned" in warning for warning in rope.warnings)


def test_an_extended_checkpoint_is_extended_from_its_original_context(extend, checkpoints):
    first, _ = extend(checkpoints("llama"), "--factor", "4", name="first")
    once, _ = extend(checkpoints("llama"), "--factor", "16", name="once")
    twice, report = extend(first, "--factor", "16", name="twice")
    assert (twice / "config.json").read_bytes() == (once / "config.json").read_bytes()
    assert report["plan"]["original_context"] == 256
    assert (twice / "model.safetensors").samefile(first / "model.safetensors")


@pytest.mark.parametrize("method", ["linear", "ntk", "ntk-by-parts", "yarn"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_gguf_comes_of_it(extend, checkpoints, yarnconv, tmp_path, family, method):
    options = ("--method", method, "--factor", "4")
    out, _ = extend(checkpoints(family), *options)

    def rope_keys(name, *arguments):
        path = tmp_path / f"{name}.gguf"
        assert yarnconv("gguf", *arguments, "-o", path)[0] == 0
        reader = gguf.GGUFReader(path)
        fields = {key: field.contents() for key, field in reader.fields.items()}
        return {k: v for k, v in fields.items() if ".rope." in k or k.endswith("context_length")}, {
            tensor.name: tensor.data.tobytes() for tensor in reader.tensors
        }

    direct, by_way_of = rope_keys("direct", checkpoints(family), *options), rope_keys("by-way-of", out)
    assert direct == by_way_of


def test_dynamic_yarn_is_refused(checkpoints, yarnconv, tmp_path):
    out = tmp_path / "out"
    code, _, stderr = yarnconv(
        "hf", checkpoints("llama"), "--method", "dynamic-yarn", "--factor", "4", "-o", out
    )
    assert code == 3
    assert "ONNX" in stderr
    assert not out.exists()


def test_code_stays_behind(extend, copied):
    source = copied("llama", auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"})
    (source / "modeling_mine.py").write_text("raise SystemExit('this ran')")
    (source / "pytorch_model.bin").write_bytes(b"a pickle")
    (source / "pytorch_model.bin.index.json").write_text("{}")
    (source / "adapter_config.json").write_text("{}")
    (source / "LICENSE").write_text("mine")
    (source / "generation_config.json").write_text('{"eos_token_id": 3}')
    out, report = extend(source, "--factor", "4")
    names = {path.name for path in out.iterdir()}
    assert not names & {"modeling_mine.py", "pytorch_model.bin", "adapter_config.json"}
    assert not any(name.endswith(".bin.index.json") for name in names)
    assert names >= {"LICENSE", "generation_config.json"}
    assert "auto_map" not in json.loads((out / "config.json").read_text())
    assert any("auto_map" in note for note in report["notes"])


def test_shards_and_their_index(extend, tmp_path):
    from tests.support.models import make_checkpoint

    source = make_checkpoint(tmp_path / "source", "llama", shard="1MB")
    out, _ = extend(source, "--factor", "4")
    shards = sorted(source.glob("*.safetensors"))
    assert len(shards) > 2
    for path in shards:
        assert path.samefile(out / path.name)
    index = source / "model.safetensors.index.json"  # which people edit where it lies
    assert (out / index.name).read_bytes() == index.read_bytes()
    assert not index.samefile(out / index.name)
    rotary(out)


def test_where_no_link_is_possible_it_copies(extend, checkpoints, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(os, "link", refuse)
    out, report = extend(checkpoints("llama"), "--factor", "4")
    source = checkpoints("llama") / "model.safetensors"
    assert not (out / "model.safetensors").samefile(source)
    assert (out / "model.safetensors").read_bytes() == source.read_bytes()
    assert not any("hard-linked" in note for note in report["notes"])


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no second file system")
def test_across_file_systems(checkpoints, yarnconv, tmp_path):
    if Path("/dev/shm").stat().st_dev == checkpoints("llama").stat().st_dev:
        pytest.skip("one file system")
    out = Path("/dev/shm") / f"yarnconv-test-{os.getpid()}"
    try:
        assert yarnconv("hf", checkpoints("llama"), "--factor", "4", "-o", out)[0] == 0
        source = checkpoints("llama") / "model.safetensors"
        assert (out / "model.safetensors").read_bytes() == source.read_bytes()
    finally:
        shutil.rmtree(out, ignore_errors=True)


def test_a_full_disk_is_seen_before(checkpoints, yarnconv, tmp_path, monkeypatch):
    from yarnconv import artifact
    from yarnconv.targets import linking

    monkeypatch.setattr(linking, "would_link", lambda source, directory: False)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(artifact.shutil, "disk_usage", lambda path: usage._replace(free=2**20))
    code, _, stderr = yarnconv("hf", checkpoints("llama"), "--factor", "4", "-o", tmp_path / "out")
    assert code == 2
    assert "are free" in stderr
    assert list(tmp_path.iterdir()) == []


def test_places_that_are_refused(copied, yarnconv, tmp_path):
    source = copied("llama")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    inside = (source / "extended", source / "a" / "b")
    for destination in (source, *inside, source.parent, tmp_path / "mine"):
        code, _, stderr = yarnconv("hf", source, "--factor", "4", "-o", destination, "--force")
        assert code == 2, destination
        assert "Traceback" not in stderr
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"
    assert not any(path.name.startswith(".") for path in tmp_path.iterdir())


def test_force_replaces_an_older_one(extend, checkpoints, yarnconv):
    out, _ = extend(checkpoints("llama"), "--factor", "4")
    code, _, stderr = yarnconv("hf", checkpoints("llama"), "--factor", "8", "-o", out)
    assert code == 2
    assert "--force" in stderr
    assert yarnconv("hf", checkpoints("llama"), "--factor", "8", "-o", out, "--force")[0] == 0
    assert json.loads((out / "config.json").read_text())["rope_scaling"]["factor"] == 8.0


def test_links_to_files_of_this_machine_are_not_followed(copied, yarnconv, tmp_path):
    source = copied("llama")
    (tmp_path / "secret").write_text("mine")
    (source / "notes.txt").symlink_to(tmp_path / "secret")
    code, _, stderr = yarnconv("hf", source, "--factor", "4", "-o", tmp_path / "out")
    assert code == 2
    assert "notes.txt" in stderr
    assert not (tmp_path / "out").exists()


def test_the_hubs_cache(checkpoints, extend, tmp_path):
    """Its snapshots are links into a store, which is what gets linked."""
    root = tmp_path / "models--org--name"
    snapshot = root / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (root / "blobs").mkdir()
    for path in checkpoints("llama").iterdir():
        shutil.copy(path, root / "blobs" / f"hash-of-{path.name}")
        (snapshot / path.name).symlink_to(Path("../../blobs") / f"hash-of-{path.name}")
    out, _ = extend(snapshot, "--factor", "4")
    assert not any(path.is_symlink() for path in out.iterdir())
    assert (out / "model.safetensors").samefile(root / "blobs" / "hash-of-model.safetensors")


@pytest.mark.parametrize("content", [b"[]", b"{", b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}", b"\xff\xfe"])
def test_a_tokenizer_config_that_cannot_be_read(content, copied, yarnconv, tmp_path):
    source = copied("llama")
    (source / "tokenizer_config.json").write_bytes(content)
    code, _, stderr = yarnconv("hf", source, "--factor", "4", "-o", tmp_path / "out")
    if code != 0:  # how deep is too deep is Python's to say
        assert code == 2
        assert "tokenizer_config.json" in stderr
        assert not (tmp_path / "out").exists()


def test_no_engine_is_seen_in_it(extend, checkpoints, yarnconv, tmp_path):
    """Both kinds of directories hold a yarnconv.json."""
    out, _ = extend(checkpoints("llama"), "--factor", "4")
    from yarnconv.targets.tensorrt.files import is_engine

    assert not is_engine(out)
    code, stdout, _ = yarnconv("inspect", out, "--json")
    assert (code, json.loads(stdout)["target"]) == (0, "checkpoint")
    assert yarnconv("plan", out)[0] == 0
