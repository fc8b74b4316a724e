"""Which faults `yarnconv check` finds, in which types: the table of the README.

    python -m tests.bench.fault_table

Every fault of tests/support/faults.py in a right YaRN artefact of every family, checked with the options
given; and the right artefacts themselves, of every method, where a failure would be a false alarm.
"""

import contextlib
import io
import json
import tempfile
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from tests.parity.test_llama_cpp import METHODS
from tests.support.faults import FAULTS
from tests.support.gguf_editing import load
from tests.support.models import make_checkpoint
from tests.support.quantise import quantise
from yarnconv.cli import app

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
TYPES = ("f32", "q8_0", "q4_k_m")


def run(*arguments):
    """(exit code, stdout) of a command."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = app([str(argument) for argument in arguments], standalone_mode=False)
    return code or 0, out.getvalue()


def make(directory, model, outtype, options):
    path = directory / "right.gguf"
    own = "f32" if outtype == "q4_k_m" else outtype
    code, _ = run("gguf", model, *options, "--outtype", own, "-o", path)
    assert code == 0
    return quantise(path, directory / "quantised.gguf", outtype) if own != outtype else path


def check(path, model, options):
    code, stdout = run("check", path, "--reference", model, *options, "--json")
    return code, json.loads(stdout)


def main():
    found, right, alarms, worst, least = Counter(), Counter(), Counter(), {}, {}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        models = {family: make_checkpoint(directory / family, family) for family in FAMILIES}
        cases = [(family, outtype) for family in FAMILIES for outtype in TYPES]
        for family, outtype in track(cases, "checking", transient=True):
            model = models[family]
            for options, _ in METHODS.values():
                code, report = check(make(directory, model, outtype, options), model, options)
                right[outtype] += 1
                alarms[outtype] += code != 0
                errors = [window["relative_max"] for window in report["windows"]]
                worst[outtype] = max(worst.get(outtype, 0.0), *errors)
            good = make(directory, model, outtype, ("--factor", "4"))
            for fault, (edit, wrong) in FAULTS.items():
                file = load(good)
                edit(file)
                code, report = check(file.write(directory / "faulty.gguf"), model, ("--factor", "4"))
                found[fault, outtype] += code == 1
                if "structure" in wrong:
                    error = max(window["relative_max"] for window in report["windows"])
                    least[fault, outtype] = min(least.get((fault, outtype), 9.0), error)
    table = Table(title=f"found, of {len(FAMILIES)} families; in brackets the least relative error seen")
    table.add_column("fault")
    table.add_column("failing verdicts")
    for outtype in TYPES:
        table.add_column(outtype, justify="right")
    for fault, (_, wrong) in FAULTS.items():
        cells = []
        for outtype in TYPES:
            error = least.get((fault, outtype))
            cells.append(f"{found[fault, outtype]} of {len(FAMILIES)}" + (f" ({error:.1e})" if error else ""))
        table.add_row(fault, ", ".join(sorted(wrong)), *cells)
    table.add_section()
    cells = [f"{alarms[t]} of {right[t]} ({worst[t]:.1e})" for t in TYPES]
    table.add_row("false alarms on right artefacts (worst error)", "", *cells)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
