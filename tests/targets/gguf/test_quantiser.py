"""`yarnconv gguf --outtype` in llama.cpp's own types: its bytes, our metadata, and nothing left behind."""

import json
import signal
import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.support.imatrix_files import made_values, write_gguf, write_legacy
from tests.support.models import make_checkpoint
from tests.support.processes import start
from tests.support.quantise import quantise
from tests.support.selection import product, slow
from yarnconv.targets.gguf.imatrix import read_imatrix
from yarnconv.targets.gguf.quantiser import NEED_IMATRIX, QUANTISED_TYPES
from yarnconv.targets.gguf.reader import open_gguf

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
WITHOUT_IMATRIX = sorted(set(QUANTISED_TYPES) - NEED_IMATRIX)


def contents(path):
    """(tensors, keys) of a GGUF, read by the gguf package alone."""
    reader = gguf.GGUFReader(path)
    tensors = {tensor.name: (tensor.tensor_type.name, tensor.data.tobytes()) for tensor in reader.tensors}
    keys = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    return tensors, keys


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A checkpoint of which all but the narrow matrices divide into blocks of 256."""
    return make_checkpoint(tmp_path_factory.mktemp("k") / "model", "llama", intermediate_size=512)


@pytest.fixture
def as_float(model, yarnconv, tmp_path):
    path = tmp_path / "float" / "model.gguf"
    path.parent.mkdir()
    assert yarnconv("gguf", model, "--factor", "4", "-o", path)[0] == 0
    return path


@pytest.fixture
def convert(model, yarnconv, tmp_path):
    """Convert the model: (path, report, stderr, code), in a directory of its own."""
    out = tmp_path / "out"
    out.mkdir()

    def run(outtype, *options, source=model):
        arguments = ("gguf", source, "--factor", "4", "--outtype", outtype, *options, "--json")
        code, stdout, stderr = yarnconv(*arguments, "-o", out / "model.gguf")
        left = {path.name for path in out.iterdir()}
        assert left == ({"model.gguf"} if code == 0 else set())
        return out / "model.gguf", json.loads(stdout) if stdout else None, stderr, code

    return run


@pytest.mark.parametrize("outtype", WITHOUT_IMATRIX)
def test_the_bytes_are_llama_cpps(outtype, convert, as_float, tmp_path):
    path, report, stderr, code = convert(outtype)
    assert code == 0, stderr
    assert contents(path) == contents(quantise(as_float, tmp_path / "theirs.gguf", outtype))
    assert report["outtype"] == outtype
    assert report["files"] == [{"path": str(path), "bytes": path.stat().st_size}]


def test_metadata_and_record_are_ours(convert, as_float):
    path, _, _, _ = convert("q4_k_m")
    (_, keys), (_, wanted) = contents(path), contents(as_float)
    differing = {key for key in keys.keys() | wanted.keys() if keys.get(key) != wanted.get(key)}
    assert differing == {"general.file_type"}
    assert keys["general.file_type"] == 15
    assert json.loads(keys["yarnconv.plan"])["rope_options"] == {"factor": 4.0}


@pytest.mark.parametrize(
    ("family", "outtype"), list(product(FAMILIES, ("q4_k_m", "q5_k_m", "q6_k", "iq4_nl"), meet=[]))
)
def test_check_holds(family, outtype, convert, checkpoints, check):
    path, *_ = convert(outtype, source=checkpoints(family))
    code, report, stderr = check(path, checkpoints(family), "--factor", "4")
    assert code == 0, (stderr, report and report["reasons"])


def test_rows_that_do_not_divide_are_named(convert, checkpoints):
    _, report, *_ = convert("q4_k_m", source=checkpoints("llama"))  # whose ffn_down has rows of 384
    notes = " ".join(report["notes"])
    assert "q5_0 instead of q4_k" in notes
    assert "q8_0 instead of q6_k" in notes
    assert "blk.0.ffn_down.weight" in notes
    _, report, *_ = convert("q5_0")
    assert "instead" not in " ".join(report["notes"])


def test_default_name(model, yarnconv, tmp_path):
    assert yarnconv("gguf", model, "--factor", "4", "--outtype", "q4_k_m", "-o", tmp_path)[0] == 0
    assert [path.name for path in tmp_path.glob("*.gguf")] == ["model-yarn-x4-Q4_K_M.gguf"]


def test_an_older_file_is_replaced_and_a_stranger_is_not(model, yarnconv, tmp_path):
    path = tmp_path / "model.gguf"
    arguments = ("gguf", model, "--factor", "4", "--outtype", "q4_k_m", "-o", path)
    path.write_bytes(b"GGUF, an older one")
    assert yarnconv(*arguments)[0] == 0
    path.write_text("years of work")
    code, _, stderr = yarnconv(*arguments)
    assert (code, path.read_text()) == (2, "years of work")
    assert "is no GGUF" in stderr


# refusals


def test_unknown_types(convert):
    _, _, stderr, code = convert("q4_k_x")
    assert code == 2
    assert "q4_k_m" in stderr
    assert "bf16" in stderr


def test_split_is_refused(convert):
    _, _, stderr, code = convert("q4_k_m", "--split-max-size", "1M")
    assert code == 2
    assert "llama-gguf-split" in stderr


@pytest.mark.parametrize("outtype", sorted(NEED_IMATRIX))
def test_types_that_need_an_importance_matrix(outtype, convert):
    _, _, stderr, code = convert(outtype)
    assert code == 2
    assert "--imatrix" in stderr


def test_types_that_take_none(convert, tmp_path):
    for outtype in ("auto", "q8_0", "f16"):
        _, _, stderr, code = convert(outtype, "--imatrix", tmp_path / "none")
        assert code == 2
        assert "--imatrix" in stderr


def test_without_the_component(convert, monkeypatch):
    from yarnconv.verify import components

    monkeypatch.setattr(components, "find_spec", lambda name: None)
    _, _, stderr, code = convert("q4_k_m")
    assert code == 4
    assert "yarnconv[llama]" in stderr
    assert convert("q4_k_x")[3] == 2


def test_a_full_disk_is_seen_before(convert, monkeypatch, model):
    """Room for the float file alone, and the slack, is not enough."""
    import shutil

    from yarnconv import artifact

    usage = shutil.disk_usage(model)
    size = sum(path.stat().st_size for path in model.iterdir())
    free = artifact.SLACK_BYTES + size + 2**18
    monkeypatch.setattr(artifact.shutil, "disk_usage", lambda path: usage._replace(free=free))
    _, _, stderr, code = convert("q6_k")
    assert code == 2
    assert "are free" in stderr
    assert convert("auto")[3] == 0


def test_too_little_memory_is_seen_before(convert, monkeypatch):
    from yarnconv.targets.gguf import quantiser

    monkeypatch.setattr(quantiser, "available_memory", lambda: 10**8)
    _, _, stderr, code = convert("q4_k_m")
    assert code == 2
    assert "memory" in stderr


def test_forecast_is_close_and_never_below(model, as_float):
    from yarnconv.checkpoint.checkpoint import open_checkpoint
    from yarnconv.plan import plan_conversion
    from yarnconv.rope.request import RopeRequest
    from yarnconv.targets.gguf.quantiser import Quantisation, Quantiser
    from yarnconv.targets.gguf.target import GgufOptions, prepare

    with open_checkpoint(model) as checkpoint:
        job = prepare(plan_conversion(checkpoint, RopeRequest(factor=4.0)), GgufOptions())
        for outtype in ("q4_k_m", "q6_k", "iq4_xs"):
            with Quantiser(Quantisation(type=outtype), 1) as quantiser:
                forecast = quantiser.forecast(job.files[0])
            written = quantise(as_float, as_float.with_name(f"{outtype}.gguf"), outtype).stat().st_size
            assert written <= forecast.nbytes <= written + 2**16


# what goes wrong on the way


def test_a_crash_leaves_nothing(convert, monkeypatch, tmp_path):
    from yarnconv.targets.gguf import quantiser

    script = tmp_path / "worker.py"
    script.write_text(
        "import json, os, sys\n"
        "for line in sys.stdin:\n"
        "    request = json.loads(line)\n"
        "    if request['forecast']:\n"
        "        print(json.dumps({'bytes': 1, 'fallbacks': []}), flush=True)\n"
        "        continue\n"
        "    open(request['out'], 'wb').write(b'half')\n"
        "    print('GGML_ASSERT(false) failed', file=sys.stderr, flush=True)\n"
        "    os.abort()\n"
    )
    monkeypatch.setattr(quantiser, "WORKER", script)
    _, _, stderr, code = convert("q4_k_m")
    assert code == 70
    assert "SIGABRT" in stderr
    assert "GGML_ASSERT" in stderr


def test_what_llama_cpp_refuses_leaves_nothing(convert, tmp_path, model):
    """NaN among the weights: it looks at every value that it reads."""
    import shutil

    source = shutil.copytree(model, tmp_path / "nan")
    path = source / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-400:-396] = np.array([np.nan], "<f4").tobytes()
    path.write_bytes(content)
    _, _, stderr, code = convert("q4_k_m", source=source)
    assert code == 2
    assert "llama.cpp does not quantise it" in stderr


# the second press comes while it cleans up
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing(sent, times, tmp_path):
    model = make_checkpoint(
        tmp_path / "model", "llama", hidden_size=512, intermediate_size=2048, num_hidden_layers=12
    )
    out = tmp_path / "out"
    out.mkdir()
    process = start("gguf", model, "--factor", "4", "--outtype", "iq3_s", "-o", out / "model.gguf")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        begun = [path for path in out.glob(".*.partial") if path.stat().st_size > 0]
        if begun and list(out.glob(".*.float")):
            break
        time.sleep(0.01)
    assert process.poll() is None, "it was over before it could be interrupted"
    for _ in range(times):
        process.send_signal(sent)
        time.sleep(0.003)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130 or times > 1, stderr
    assert list(out.iterdir()) == []


# importance matrices


@pytest.fixture
def imatrices(as_float, tmp_path):
    values = made_values(as_float)
    return write_gguf(tmp_path / "imatrix.gguf", values), write_legacy(tmp_path / "imatrix.dat", values)


@pytest.mark.parametrize("outtype", ["q4_k_m", "q2_k_s", *slow("iq2_xs", "iq3_xxs")])
def test_both_formats_say_the_same(outtype, convert, imatrices):
    found = []
    for path in imatrices:
        written, _, stderr, code = convert(outtype, "--imatrix", path)
        assert code == 0, stderr
        tensors, keys = contents(written)
        found.append(tensors)
        recorded = {
            key.removeprefix("quantize.imatrix."): value
            for key, value in keys.items()
            if key.startswith("quantize.imatrix.")
        }
        assert recorded == {
            "file": path.name,
            "dataset": "words.txt",
            "entries_count": len(made_values(written)),
            "chunks_count": 3,
        }
        written.unlink()
    assert found[0] == found[1]
    if outtype not in NEED_IMATRIX:
        assert contents(convert(outtype)[0])[0] != found[0]


def test_values_are_means(as_float, imatrices):
    values = made_values(as_float)
    for path in imatrices:
        read = read_imatrix(path)
        assert read.values.keys() == values.keys()
        for name, found in read.values.items():
            np.testing.assert_allclose(found, values[name], rtol=1e-6)
        assert (read.dataset, read.chunks) == ("words.txt", 3)


def test_what_was_never_seen_weighs_one(as_float, tmp_path):
    name, values = next(iter(made_values(as_float).items()))
    read = read_imatrix(write_gguf(tmp_path / "i.gguf", {name: values}, count=0))
    assert (read.values[name] == 1).all()


def test_names_of_data_sets(convert, as_float, tmp_path):
    """One that is cut is cut between two letters, and one that is no text is no crash."""
    path = write_gguf(tmp_path / "i.gguf", made_values(as_float), dataset="\u00e9" * 100)
    written, _, stderr, code = convert("q4_k_m", "--imatrix", path)
    assert code == 0, stderr
    with open_gguf(written) as file:
        assert file.value("quantize.imatrix.dataset") == "\u00e9" * 63
    path.write_bytes(path.read_bytes().replace("\u00e9".encode(), b"\xff\xfe"))
    assert convert("q4_k_m", "--imatrix", path)[3] == 0


def test_another_models(convert, as_float, tmp_path, imatrices):
    values = made_values(as_float)
    wide = {name: np.resize(found, 2 * len(found)) for name, found in values.items()}
    elsewhere = {f"other.{name}": found for name, found in values.items()}
    for number, wrong in enumerate((wide, elsewhere)):
        path = write_legacy(tmp_path / f"{number}.dat", wrong)
        _, _, stderr, code = convert("q4_k_m", "--imatrix", path)
        assert code == 2
        assert "another model" in stderr


def test_matrices_that_it_leaves_out(convert, as_float, tmp_path):
    values = made_values(as_float)
    name = "blk.1.ffn_up.weight"
    del values[name]
    path = write_legacy(tmp_path / "i.dat", values)
    written, report, stderr, code = convert("q4_k_m", "--imatrix", path)
    assert code == 0, stderr
    assert any(name in note for note in report["notes"])
    written.unlink()
    _, _, stderr, code = convert("iq2_xs", "--imatrix", path)
    assert code == 2
    assert name in stderr


def entry(name=b"blk.0.attn_q.weight", calls=1, values=(1.0, 2.0), *, length=None, count=None):
    head = struct.pack("<i", len(name) if length is None else length) + name
    body = np.array(values, "<f4").tobytes()
    return head + struct.pack("<ii", calls, len(values) if count is None else count) + body


HOSTILE = {
    "empty": b"",
    "short": b"\1\0",
    "nothing": struct.pack("<i", 0),
    "negative": struct.pack("<i", -1),
    "more entries than there are": struct.pack("<i", 2**31 - 1) + entry(),
    "a name beyond the end": struct.pack("<i", 1) + entry(length=200),
    "a huge name": struct.pack("<i", 1) + entry(length=2**31 - 1),
    "a negative name": struct.pack("<i", 1) + entry(length=-5),
    "more values than there are": struct.pack("<i", 1) + entry(count=2**31 - 1),
    "no values": struct.pack("<i", 1) + entry(count=0),
    "negative count": struct.pack("<i", 1) + entry(count=-7),
    "NaN": struct.pack("<i", 1) + entry(values=(np.nan, 1.0)),
    "infinite": struct.pack("<i", 1) + entry(values=(np.inf, 1.0)),
    "below zero": struct.pack("<i", 1) + entry(values=(-1.0, 1.0)),
    "twice": struct.pack("<i", 2) + entry() + entry(),
    "a pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00.",
    "a truncated GGUF": b"GGUF" + struct.pack("<IQQ", 3, 2**40, 2**40) + b"\0" * 32,
    "GGUF and no more": b"GGUF",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files(kind, convert, tmp_path):
    path = tmp_path / "hostile.dat"
    path.write_bytes(HOSTILE[kind])
    _, _, stderr, code = convert("q4_k_m", "--imatrix", path)
    assert code == 2
    assert "hostile.dat" in stderr
    assert "Traceback" not in stderr


def test_ggufs_that_are_none(convert, as_float, tmp_path):
    _, _, stderr, code = convert("q4_k_m", "--imatrix", as_float)  # a model
    assert code == 2
    assert "no importance matrix" in stderr
    values = made_values(as_float)
    name = next(iter(values))

    def refused(edit):
        path = tmp_path / "edited.gguf"
        writer = gguf.GGUFWriter(path, "none")
        writer.add_array("imatrix.datasets", ["words.txt"])
        writer.add_uint32("imatrix.chunk_count", 3)
        edit(writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        _, _, stderr, code = convert("q4_k_m", "--imatrix", path)
        return code == 2 and "edited.gguf" in stderr

    sums = values[name]
    assert refused(lambda w: w.add_tensor(f"{name}.in_sum2", sums))
    assert refused(lambda w: w.add_tensor(f"{name}.counts", np.ones((1, 1), np.float32)))

    def uneven(writer):
        writer.add_tensor(f"{name}.in_sum2", sums)
        writer.add_tensor(f"{name}.counts", np.ones(7, np.float32))

    def halves(writer):
        writer.add_tensor(f"{name}.in_sum2", sums.astype(np.float16))
        writer.add_tensor(f"{name}.counts", np.ones(1, np.float32))

    def infinite(writer):
        writer.add_tensor(f"{name}.in_sum2", np.full_like(sums, np.inf))
        writer.add_tensor(f"{name}.counts", np.ones(1, np.float32))

    assert refused(uneven)
    assert refused(halves)
    assert refused(infinite)


def test_places_that_are_no_files(convert, tmp_path):
    for path in (tmp_path / "missing", tmp_path):
        _, _, stderr, code = convert("q4_k_m", "--imatrix", path)
        assert code == 2
        assert "no such file" in stderr


def test_progress_goes_to_the_end():
    from yarnconv.targets.gguf.quantiser import _follow

    done = []
    listen = _follow({"a": 3, "b": 5}, done.append)
    for name in ("a", "b", "unknown", "a"):
        listen({"tensor": name})
    assert done == [3, 5, 0]


def test_the_worker_ends_with_us(tmp_path):
    """Where we are killed outright, no quantiser goes on for nobody."""
    model = make_checkpoint(
        tmp_path / "model", "llama", hidden_size=512, intermediate_size=2048, num_hidden_layers=12
    )
    process = start("gguf", model, "--outtype", "iq3_s", "-o", tmp_path / "model.gguf")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not [p for p in tmp_path.glob(".*.partial") if p.stat().st_size]:
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert children
    process.kill()
    process.communicate(timeout=30)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(map(is_running, children)):
        time.sleep(0.05)
    assert not any(map(is_running, children))


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except FileNotFoundError:
        return False
