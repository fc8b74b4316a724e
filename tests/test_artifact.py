"""Signals while an artefact is published: none is lost, and afterwards each does what it did before."""

import os
import signal
import subprocess
import sys

import pytest

from yarnconv.artifact import held_back, staged, termination_as_interrupt, undisturbed

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
MANAGERS = (held_back, undisturbed, termination_as_interrupt)

# A process whose SIGHUP is handled by no Python, as where a program embeds one: `_signal` looks at what is
# installed when it is imported.
HANDLED_ELSEWHERE = """
import ctypes, signal, sys
from pathlib import Path

HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)
handler = HANDLER(lambda number: None)
install = ctypes.CDLL(None).signal
install.argtypes = [ctypes.c_int, HANDLER]
install(int(signal.SIGHUP), handler)
del sys.modules["_signal"]
import _signal

assert signal.getsignal(signal.SIGHUP) is None

from yarnconv.artifact import staged

with staged([Path(sys.argv[1])]) as paths:
    paths[0].write_text("whole")
print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
"""


@pytest.fixture
def noted():
    """Handlers that note what arrives."""
    arrived = []
    before = {number: signal.signal(number, lambda number, _: arrived.append(number)) for number in NUMBERS}
    yield arrived
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_handler_that_is_not_pythons_is_no_failure_after_the_rename(tmp_path):
    command = [sys.executable, "-c", HANDLED_ELSEWHERE, str(tmp_path / "a")]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "True\n", "")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["whole"]


def test_two_processes_of_one_number_do_not_write_into_the_same_file(tmp_path):
    """As two containers on a shared disk, in each of which yarnconv is process 1."""
    path = tmp_path / "a"
    with staged([path]) as first:
        first[0].write_text("first, whole")
        with staged([path]) as second:
            assert second != first
            second[0].write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first, whole"
    assert list(tmp_path.iterdir()) == [path]


def test_each_signal_that_was_held_back_arrives_once(noted):
    with held_back():
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.raise_signal(number)
        assert noted == []
    assert noted == [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


def test_a_signal_that_interrupts_takes_none_of_the_others_with_it(noted):
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def arrive():
        with held_back():
            for number in NUMBERS:
                signal.raise_signal(number)

    with pytest.raises(KeyboardInterrupt):
        arrive()
    assert noted == [signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("manager", MANAGERS)
def test_afterwards_every_handler_is_what_it_was(manager, noted):
    before = [signal.getsignal(number) for number in NUMBERS]
    with manager():
        assert [signal.getsignal(number) for number in NUMBERS] != before
    assert [signal.getsignal(number) for number in NUMBERS] == before


@pytest.mark.parametrize("manager", MANAGERS)
def test_one_that_cannot_be_exchanged_leaves_none_exchanged(manager, noted, monkeypatch):
    exchange, before = signal.signal, [signal.getsignal(number) for number in NUMBERS]

    def refusing(number, handler):
        if number == signal.SIGHUP and handler is not before[-1]:
            raise OSError("refused")
        return exchange(number, handler)

    monkeypatch.setattr(signal, "signal", refusing)
    with pytest.raises(OSError, match="refused"), manager():
        raise AssertionError("nothing is done")
    monkeypatch.undo()
    assert [signal.getsignal(number) for number in NUMBERS] == before


def test_an_interrupt_between_two_exchanges_leaves_none_exchanged(noted, monkeypatch):
    exchange, before = signal.signal, [signal.getsignal(number) for number in NUMBERS]

    def interrupted(number, handler):
        replaced = exchange(number, handler)
        if number == signal.SIGTERM and handler is not before[1]:
            os.kill(os.getpid(), signal.SIGTERM)
        return replaced

    monkeypatch.setattr(signal, "signal", interrupted)
    with pytest.raises(KeyboardInterrupt), termination_as_interrupt():
        raise AssertionError("nothing is done")
    monkeypatch.undo()
    assert [signal.getsignal(number) for number in NUMBERS] == before


def test_what_is_interrupted_leaves_the_destination_as_it_was(noted, tmp_path):
    place = tmp_path / "a"
    place.write_text("older")

    def write():
        with staged([place]) as paths:
            paths[0].write_text("half")
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        write()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["older"]
