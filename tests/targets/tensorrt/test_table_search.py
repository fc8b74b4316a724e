"""Tables in an engine's raw bytes are found without a sidecar, and nothing is taken for one that is none."""

import json
import shutil

import numpy as np
import pytest

from yarnconv.checkpoint.floats import convert_floats
from yarnconv.checkpoint.mapped_file import MappedFile
from yarnconv.targets.tensorrt import table_search
from yarnconv.targets.tensorrt.table_search import find_tables

DTYPES = {"FLOAT": "F32", "FLOAT16": "F16", "BFLOAT16": "BF16"}
FREQUENCIES = 10000.0 ** -(np.arange(32) / 32)


@pytest.fixture
def search(tmp_path):
    """The tables in bytes that lie behind each other in a file."""

    def run(*parts):
        path = tmp_path / "model.engine"
        path.write_bytes(b"".join(part if isinstance(part, bytes) else part.tobytes() for part in parts))
        file = MappedFile(path)
        try:
            return find_tables(file)
        finally:
            file.close()

    return run


def tables(rows, frequencies=FREQUENCIES, *, factor=1.0, element="FLOAT"):
    angles = np.arange(rows)[:, None] * frequencies
    return [
        convert_floats((made(angles) * factor).astype(np.float32), "F32", DTYPES[element])
        for made in (np.cos, np.sin)
    ]


def assert_read(table, rows, frequencies=FREQUENCIES, factor=1.0, rel=1e-6):
    assert (table.reach, table.broken) == (rows, None)
    off = np.abs(table.observation.inv_freq / frequencies - 1)
    assert (off <= table.observation.uncertainty).all()
    assert table.observation.attention_factor == pytest.approx(factor, rel=rel)


def weights(count=2**16, seed=0):
    return (np.random.default_rng(seed).standard_normal(count) * 0.02).astype(np.float32)


# engines


@pytest.mark.parametrize("method", ["yarn", "dynamic-yarn", "linear"])
def test_an_engines_tables_are_found(method, engines, checkpoints, yarnconv):
    """Each bucket's, once, as long as it is, by no byte of a sidecar."""
    pytest.importorskip("tensorrt_rtx", reason="there are wheels for Linux and Windows on x86-64 only")
    options = ("--factor", "4") if method == "yarn" else ("--factor", "4", "--method", method)
    directory, document = engines("llama", *options)
    file = MappedFile(directory / "model.engine")
    found = find_tables(file)
    file.close()
    plan = json.loads(yarnconv("plan", checkpoints("llama"), *options, "--json")[1])
    wanted = [bucket for group in plan["groups"] for bucket in group["buckets"]]
    reaches = document["engine"]["graph"]["bucket_contexts"]
    assert len(found) == len(wanted) == len(reaches)
    for table, bucket, reach in zip(found, wanted, reaches, strict=True):
        assert_read(table, reach, np.array(bucket["inv_freq"]), bucket["attention_factor"])


def test_an_engine_whose_table_is_damaged(engines, tmp_path):
    """It reaches to the damage."""
    pytest.importorskip("tensorrt_rtx", reason="there are wheels for Linux and Windows on x86-64 only")
    directory, document = engines("llama", "--factor", "4")
    engine = shutil.copy(directory / "model.engine", tmp_path / "model.engine")
    (entry,) = [entry for entry in document["engine"]["tables"] if entry["name"] == "sin_cache"]
    shape = entry["rows"], entry["pairs"]
    np.memmap(engine, "<f4", "r+", offset=entry["offsets"][0], shape=shape)[777, 3] += np.float32(1e-3)
    file = MappedFile(engine)
    (table,) = find_tables(file)
    file.close()
    assert table.reach == 777


# bytes


@pytest.mark.parametrize("element", DTYPES)
@pytest.mark.parametrize("shift", [0, 1, 2, 3])
def test_wherever_they_lie(element, shift, search):
    """At any place that the type is aligned to, sines before cosines, far from each other, in any types."""
    cos, sin = tables(500, factor=1.125, element=element)
    before = bytes((4 if element == "FLOAT" else 2) * shift)
    (table,) = search(weights(), before, sin, weights(seed=1), cos, b"\x01")
    assert_read(table, 500, factor=1.125, rel=1e-6 if element == "FLOAT" else 2.0**-8)


@pytest.mark.parametrize("offset", [-512, -64, -4, 0, 4])
def test_where_two_windows_meet(offset, search, monkeypatch):
    monkeypatch.setattr(table_search, "WINDOW", 2**16)
    cos, sin = tables(2000)
    first = np.ones(2**16 + offset, np.uint8) * 7
    (table,) = search(first, cos, sin)
    assert_read(table, 2000)


@pytest.mark.parametrize("pairs", [8, 12, 64, 128])
@pytest.mark.parametrize("theta", [1e4, 1e6])
def test_of_slow_pairs_more_than_one_row_looks_like_the_first(pairs, theta, search):
    """Their cosines are 1 in many rows, and before row 0 there may be values that are 1 too."""
    frequencies = theta ** -(np.arange(pairs) / pairs)
    cos, sin = tables(300, frequencies)
    (table,) = search(weights(), np.ones(5000, np.float32), cos, np.zeros(5000, np.float32), sin, weights())
    assert_read(table, 300, frequencies)


def test_buckets_behind_each_other(search):
    parts = [tables(256 * f, FREQUENCIES / f, factor=1 + f / 10) for f in (1, 2, 4)]
    end = np.full(32, np.nan, np.float32)
    found = search(*(p[0] for p in parts), end, weights(), *(p[1] for p in parts), end)
    assert len(found) == 3
    for table, factor in zip(found, (1, 2, 4), strict=True):
        assert_read(table, 256 * factor, FREQUENCIES / factor, 1 + factor / 10)


def test_two_sets_of_frequencies_of_one_factor(search):
    """LongRoPE's, whose first frequencies are the same."""
    other = FREQUENCIES / np.linspace(1, 40, 32)
    short, long = tables(256, factor=1.19), tables(1024, other, factor=1.19)
    found = search(long[1], short[1], weights(), long[0], short[0])
    assert [table.reach for table in found] == [1024, 256]
    assert_read(found[0], 1024, other, 1.19)
    assert_read(found[1], 256, FREQUENCIES, 1.19)


def test_copies_are_one_and_a_damaged_copy_is_another(search):
    cos, sin = tables(512)
    wrong = sin.copy()
    wrong[100, 2] += np.float32(1e-3)
    copies = [cos, sin, weights(99), cos, sin, weights(98), cos, wrong]
    assert [table.reach for table in search(*copies)] == [512, 100]
    assert [table.reach for table in search(*copies[6:], *copies[:6])] == [100, 512]


NONE = {
    "a byte": b"\x00",
    "random weights": np.random.default_rng(0).standard_normal(2**20).astype(np.float32),
    "random halves": np.random.default_rng(0).standard_normal(2**20).astype(np.float16),
    "random bytes": np.random.default_rng(0).integers(0, 256, 2**21).astype(np.uint8),
    "zeros": np.zeros(2**20, np.uint8),
    "ones": np.ones(2**18, np.float32),
    "halves of one": np.ones(2**18, np.float16),
    "norms and weights": np.concatenate([np.ones(512, np.float32), weights(512)] * 64),
    "runs of everything": np.repeat(np.random.default_rng(0).uniform(-4, 4, 2**14), 40).astype(np.float32),
    "runs and zeros": np.concatenate([np.repeat(np.float32([1, 0.5, 0, 2, 0]), 64)] * 200),
    "a cosine without a sine": np.concatenate([weights(), tables(500)[0].reshape(-1), weights()]),
    "a sine without a cosine": np.concatenate([weights(), tables(500)[1].reshape(-1), weights()]),
    "sines of other frequencies": np.concatenate(
        [tables(500)[0].reshape(-1), tables(500, FREQUENCIES / 2)[1].reshape(-1)]
    ),
    "a few rows": np.concatenate([*(t.reshape(-1) for t in tables(7)), weights()]),
    "runs and signalling numbers": np.concatenate(
        [np.ones(64, np.float32).view("<u4"), np.full(999, 0x7F800001)] * 9
    ).astype("<u4"),
    "no numbers": np.full(2**18, np.nan, np.float32),
    "waves of one frequency": np.cos(np.arange(2**18) * 0.01).astype(np.float32),
}


@pytest.mark.parametrize("case", NONE)
def test_nothing_is_taken_for_a_table(case, search):
    assert search(NONE[case]) == ()


def test_a_table_that_the_file_cuts_off(search):
    cos, sin = tables(500)
    (table,) = search(cos, sin.reshape(-1)[: 123 * 32 + 7])
    assert_read(table, 123)


def nearly_sines(frequencies, copies):
    """Rows that begin as a table of sin does and are none."""
    row = np.sin(frequencies).astype(np.float32)
    row[1] /= 2
    return np.tile(np.concatenate([np.zeros_like(row), row]), copies)


@pytest.fixture
def fitted(monkeypatch):
    """Places at which a table of sin was tried."""
    places, fits = [], table_search._fits

    def counted(file, cosines, offset):
        places.append(offset)
        return fits(file, cosines, offset)

    monkeypatch.setattr(table_search, "_fits", counted)
    return places


def test_bytes_that_are_nearly_sines_are_tried_so_often_in_the_whole_file(search, fitted, monkeypatch):
    """Not so often for each set of cosines, nor for each window: two of both would be 4,800."""
    monkeypatch.setattr(table_search, "WINDOW", 2**16)
    monkeypatch.setattr(table_search, "MOST_LOOKED", 1000)
    monkeypatch.setattr(table_search, "MOST_FITTED", 1000)
    other = np.concatenate([FREQUENCIES[:1], FREQUENCIES[1:] / 3])
    cosines = [tables(20)[0], tables(20, other)[0]]
    assert search(*cosines, nearly_sines(FREQUENCIES, 1200)) == ()
    assert 900 <= len(fitted) <= 1000


def test_what_is_nearly_the_sine_of_one_does_not_hide_anothers(search, monkeypatch):
    monkeypatch.setattr(table_search, "MOST_FITTED", 100)
    other = FREQUENCIES / 3
    cosines = [tables(20)[0], tables(20, other)[0]]
    (table,) = search(*cosines, nearly_sines(FREQUENCIES, 300), tables(20, other)[1])
    assert_read(table, 20, other)


def test_runs_that_are_tried_in_vain_have_an_end(search, monkeypatch):
    """After each 72 ones, rows of nearly ones that might be of 9 to 72 pairs, and are of none."""
    block = np.concatenate([np.full(72, 1, np.float32), np.full(216, 1 - 1e-7, np.float32)])
    block[80] = 0.3
    parts = [np.tile(block, 40), *tables(100)]
    assert [table.reach for table in search(*parts)] == [100]
    monkeypatch.setattr(table_search, "MOST_TRIED_AT_ALL", 1000)
    assert search(*parts) == ()


def test_so_many_different_tables_and_no_more(search, monkeypatch):
    monkeypatch.setattr(table_search, "MOST_DIFFERENT", 3)
    parts = []
    for rows in (40, 50, 60, 70, 80):  # that begin alike
        cos, sin = tables(rows)
        parts += [cos, np.full(32, np.nan, np.float32), sin, np.full(32, np.nan, np.float32)]
    assert len(search(*parts)) == 3
