"""Which broken artefacts `inspect` and `check` find, and whether they name the cause: README's table.

    python -m tests.bench.diagnosis_table [--targets gguf,onnx,tensorrt]

Every kind of tests/support/broken.py and, by other tools, what llama.cpp's converter and onnxruntime-genai's
model builder make of checkpoints that ask for more than they do; then right artefacts of every family, method
and type, where a finding would be a false alarm.
"""

import argparse
import contextlib
import io
import json
import tempfile
import time
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from tests.support.broken import (
    FACTOR,
    FROZEN,
    GGUF_EDITS,
    IN_TABLES,
    ONNX_EDITS,
    PLANS,
    RIGHT,
    edited_gguf,
    edited_onnx,
    with_theta,
)
from tests.support.models import ORIGINAL_CONTEXT, make_checkpoint
from tests.support.quantise import quantise
from yarnconv.cli import app

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
COMMANDS = {"gguf": "gguf", "onnx": "onnx", "tensorrt": "trt"}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL_CONTEXT}
BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}
# what the checkpoint asks for -> the cause, of llama.cpp's converter and of genai's builder
BY_CONVERTER = {
    "attention_factor": ({"attention_factor": 1.3}, "attention-factor-dropped"),
    "betas": ({"beta_fast": 16.0, "beta_slow": 2.0}, "betas-ignored"),
    "truncate = false": ({"truncate": False}, "truncate-ignored"),
    "unequal mscales": ({"mscale": 1.0, "mscale_all_dim": 0.5}, "attention-factor-dropped"),
    "dynamic NTK": ({"rope_type": "dynamic"}, "plain-rope"),
}
BY_BUILDER = {
    "Llama, YaRN": ("llama", YARN, "plain-rope"),
    "Llama, linear": ("llama", {"rope_type": "linear", "factor": 4.0}, "plain-rope"),
    "Qwen3, YaRN with betas": ("qwen3", YARN | BETAS, "truncate-ignored"),
    "Qwen3, attention_factor": ("qwen3", YARN | BETAS | {"attention_factor": 1.3}, "truncate-ignored"),
}


def run(*arguments):
    """(exit code, document) of a command."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        code = app([str(argument) for argument in arguments], standalone_mode=False)
    return code or 0, json.loads(out.getvalue()) if out.getvalue() else {}


class Bench:
    """Checkpoints and artefacts, made once; and what was found in which."""

    def __init__(self, directory):
        self.directory, self.made, self.rows = directory, {}, []
        self.models = {family: make_checkpoint(directory / family, family) for family in FAMILIES}

    def artefact(self, target, model, *options):
        key = target, model, options
        if key not in self.made:
            out = self.directory / f"{len(self.made)}{'.gguf' if target == 'gguf' else ''}"
            code, _ = run(COMMANDS[target], model, *options, "-o", out, "--json")
            assert code == 0, key
            self.made[key] = out
        return self.made[key]

    def inspected(self, path, *arguments):
        code, document = run("inspect", path, *arguments, "--json")
        return [f["code"] for f in document["findings"] if f["severity"] != "note"], code

    def diagnosed(self, path, model, *options):
        _, document = run("check", path, "--reference", model, *options, "--weights", "none", "--json")
        return document["parity"], (document["diagnosis"] or {}).get("label")

    def add(self, kind, target, maker, wanted, found):
        """wanted, found: pairs of what inspect and check say; None where it cannot show there."""
        self.rows.append((kind, target, maker, wanted, found))


def other_plans(bench, targets):
    model = bench.models["llama"]
    cases = [(k, t) for k in PLANS | FROZEN for t in targets if not (t == "gguf" and k in FROZEN)]
    for kind, target in track(cases, "another plan", transient=True):
        case = (PLANS | FROZEN)[kind]
        source = model
        if case.config is not None:
            source = bench.directory / "other-theta"
            if not source.exists():
                with_theta(model, case.config["rope_theta"], source)
        path = bench.artefact(target, source, *case.made)
        codes, _ = bench.inspected(path, "--reference", model, *case.expected)
        parity, label = bench.diagnosed(path, model, *case.expected)
        found = (codes[0] if codes else None, label if parity is False else "holds")
        bench.add(kind, target, "another plan", (case.inspect, case.check), found)


def edits(bench):
    model = bench.models["llama"]
    for kind, case in track(GGUF_EDITS.items(), "GGUFs by hand", transient=True):
        path = edited_gguf(bench.artefact("gguf", model, *FACTOR), case.edit, bench.directory / "e.gguf")
        codes, _ = bench.inspected(path)
        label = case.check
        if case.check is not None:
            _, document = run("check", path, "--reference", model, *FACTOR, "--json")
            label = (document["diagnosis"] or {}).get("label")
        bench.add(kind, "gguf", "by hand", (case.inspect, case.check), (codes[0] if codes else None, label))
    for number, (kind, case) in enumerate(track(ONNX_EDITS.items(), "ONNX by hand", transient=True)):
        source = bench.artefact("onnx", model, *FACTOR)
        path = edited_onnx(source, case.edit, bench.directory / f"edited-{number}")
        codes, _ = bench.inspected(path, "--reference", model, *FACTOR)
        label = None if case.check is None else bench.diagnosed(path, model, *FACTOR)[1]
        bench.add(kind, "onnx", "by hand", (case.inspect, case.check), (codes[0] if codes else None, label))


def by_others(bench):
    from tests.support.genai_builder import build
    from tests.support.llama_converter import LlamaConverter
    from tests.support.llama_cpp_source import fetch_source

    def checkpoint(name, family, rope):
        context = ORIGINAL_CONTEXT if rope.get("rope_type") == "dynamic" else 4 * ORIGINAL_CONTEXT
        rope = {"rope_theta": 10000.0, **rope}
        where = bench.directory / name
        return make_checkpoint(where, family, rope_parameters=rope, max_position_embeddings=context)

    with LlamaConverter(fetch_source()) as converter:
        for number, (kind, (changes, cause)) in enumerate(BY_CONVERTER.items()):
            model = checkpoint(f"converter-{number}", "llama", YARN | changes)
            path = converter.convert(model, bench.directory / f"converter-{number}.gguf")
            codes, _ = bench.inspected(path, "--reference", model)
            dynamic = changes.get("rope_type") == "dynamic"  # which no GGUF holds: nothing to check
            label = None if dynamic else bench.diagnosed(path, model)[1]
            bench.add(
                kind, "gguf", "llama.cpp's converter", (cause, None if dynamic else cause), (codes[0], label)
            )
    for number, (kind, (family, rope, cause)) in enumerate(BY_BUILDER.items()):
        model = checkpoint(f"builder-{number}", family, rope)
        path = build(model, bench.directory / f"builder-out-{number}", "fp32")
        codes, _ = bench.inspected(path, "--reference", model)
        alone = len(codes) == 1  # two mistakes at once have no name
        label = bench.diagnosed(path, model)[1] if alone else None
        wanted = cause, cause if alone else None
        bench.add(kind, "onnx", "genai's builder", wanted, (codes[0] if codes else None, label))
    from tests.support.torch_export import export_as_optimum, rope_config

    config = rope_config("default")
    config.rope_parameters = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    codes, _ = bench.inspected(export_as_optimum(config, bench.directory / "frozen"))
    wanted = "plain-rope", None
    bench.add("dynamic NTK, traced", "onnx", "torch's exporter", wanted, (codes[0] if codes else None, None))


def false_alarms(bench, targets):
    alarms, right = [], Counter()
    for family in track(FAMILIES, "right artefacts", transient=True):
        model = bench.models[family]
        for method, options in (RIGHT | IN_TABLES).items():
            for target in targets:
                kinds = {"gguf": ("f32", "q8_0", "q4_k_m"), "onnx": ("fp32", "fp16", "bf16", "int4")}
                if target == "tensorrt" and method not in {"yarn", "dynamic-yarn", "linear"}:
                    continue
                if target == "gguf" and method not in RIGHT:
                    continue
                for kind in kinds.get(target, ("bf16",)):
                    name = "--outtype" if target == "gguf" else "--dtype"
                    own = "f32" if kind == "q4_k_m" else kind
                    path = bench.artefact(target, model, *options, name, own)
                    if kind == "q4_k_m":
                        path = quantise(path, bench.directory / "q4_k_m.gguf", kind)
                    codes, code = bench.inspected(path, "--reference", model, *options)
                    right[target] += 1
                    if codes or code:
                        alarms.append((family, method, target, kind, codes))
    return alarms, right


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", default="gguf,onnx,tensorrt")
    targets = parser.parse_args().targets.split(",")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name))
        other_plans(bench, targets)
        edits(bench)
        by_others(bench)
        alarms, right = false_alarms(bench, targets)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("mistake", "target", "made by", "inspect says", "check says"):
        table.add_column(title)
    found, named, asked = Counter(), Counter(), Counter()
    for kind, target, maker, wanted, said in bench.rows:
        cells = []
        for who, want, say in zip(("inspect", "check"), wanted, said, strict=True):
            if want is None:
                cells.append("-")
                continue
            asked[who] += 1
            found[who] += say not in {None, "holds"} or (who == "check" and say is None)
            named[who] += say == want
            cells.append(say if say == want else f"[red]{say}, not {want}[/red]")
        table.add_row(kind, target, maker, *cells)
    console = Console(width=140)
    console.print(table)
    for who in asked:
        console.print(f"{who}: {found[who]} of {asked[who]} found, {named[who]} named right")
    console.print(f"right artefacts: {dict(right)}, false alarms: {len(alarms)} {alarms[:5]}")
    console.print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
