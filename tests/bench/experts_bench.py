"""A layer's mixture of experts in ONNX Runtime on the CPU, in two forms without control flow.

    python -m tests.bench.experts_bench [--rounds 7] [--shapes qwen3-30b] [--tokens 1 2 4 8 16 64 256]

all: every expert computed for every token, as yarnconv/targets/onnx/experts.py builds it.
gathered: the chosen experts' matrices taken by Gather, a copy of them for each token, and multiplied.

float32, two threads, random weights; the forms in turn, each round in another order; medians, and the median
of the ratios within a round. Their outputs are compared. Memory is by what the process's own (RssAnon) has
grown while the form ran with up to so many tokens. Where copies alone take more than 6 GB, nothing is run.
"""

import argparse
import random
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from rich.console import Console
from rich.table import Table

from tests.bench.measuring import median_ratio
from yarnconv.model.description import ExpertsDescription, Routing
from yarnconv.targets.onnx.experts import _shares, mixture
from yarnconv.targets.onnx.graph import Graph

THREADS = 2
OPSET = 23
COPIES = 6e9  # bytes, at most
ALL, GATHERED = "all", "gathered"


@dataclass(frozen=True)
class Shape:
    """hidden, size: of the model, and of an expert's MLP."""

    experts: int
    chosen: int
    hidden: int
    size: int

    def expert_bytes(self) -> int:
        return 4 * 3 * self.hidden * self.size

    def description(self) -> ExpertsDescription:
        routing = Routing(
            scores="softmax",
            chosen=self.chosen,
            groups=1,
            chosen_groups=1,
            group_best=1,
            correction=False,
            bias=False,
            normalised=True,
            scale=1.0,
        )
        return ExpertsDescription(
            experts=self.experts,
            intermediate_size=self.size,
            activation="silu",
            bias=False,
            interleaved=False,
            clamp=None,
            routing=routing,
            shared=None,
            shared_gate=False,
        )


# Mixtral 8x7B and gpt-oss-20b at half and at half the width, for the memory of this machine
SHAPES = {
    "mixtral, halved": Shape(8, 2, 2048, 7168),
    "qwen3-30b": Shape(128, 8, 2048, 768),
    "gpt-oss-20b, hidden halved": Shape(32, 4, 1440, 2880),
}


class Weights:
    """In a file for each form, as it wants them; and in the place of `Parameters`, what makes products."""

    def __init__(self, directory: Path, name: str, shape: Shape) -> None:
        self._path = directory / f"{name}.data"
        self._shape, self._seed = shape, np.random.SeedSequence(0)
        self.initializers: list[onnx.TensorProto] = []
        self._offset = 0

    def expert(self, index: int, role: str) -> np.ndarray:
        """[hidden, 2 size] or [size, hidden]: the same whoever asks."""
        generator = np.random.default_rng([index, len(role)])
        ends = {"experts_gate_up": (self._shape.hidden, 2 * self._shape.size)}
        inputs, outputs = ends.get(role, (self._shape.size, self._shape.hidden))
        return generator.standard_normal((inputs, outputs), dtype=np.float32) * np.float32(inputs**-0.5)

    def write(self, name: str, shape: tuple[int, ...], pieces) -> str:
        """A tensor into the file, by pieces of it."""
        with self._path.open("ab") as file:
            begin = file.tell()
            for piece in pieces:
                file.write(piece.data)
            size = file.tell() - begin
        tensor = onnx.TensorProto(name=name, dims=shape, data_type=onnx.TensorProto.FLOAT)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", self._path.name), ("offset", begin), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
        self.initializers.append(tensor)
        return name

    def router(self) -> str:
        generator = np.random.default_rng(1)
        shape = (self._shape.hidden, self._shape.experts)
        values = generator.standard_normal(shape, dtype=np.float32) * np.float32(shape[0] ** -0.5)
        return self.write("router", shape, [values])


class WideParameters:
    """What `mixture` asks of `Parameters`: experts side by side, and down one below the other."""

    def __init__(self, graph: Graph, weights: Weights, shape: Shape) -> None:
        self._graph, self._weights, self._shape = graph, weights, shape

    def float32_product(self, x: str, role: str, layer: int | None) -> str:
        return self._graph.node("MatMul", x, self._weights.router())

    def linear(self, x: str, role: str, layer: int | None, *, biased: bool) -> str:
        shape, experts = self._shape, range(self._shape.experts)
        made = (self._weights.expert(index, role) for index in experts)
        if role == "experts_down":
            name = self._weights.write(role, (shape.experts * shape.size, shape.hidden), made)
        else:
            width = 2 * shape.size
            whole = np.empty((shape.hidden, shape.experts * width), np.float32)
            for index, matrix in enumerate(made):
                whole[:, index * width : (index + 1) * width] = matrix
            name = self._weights.write(role, whole.shape, [whole])
        return self._graph.node("MatMul", x, name)


def _gathered(graph: Graph, weights: Weights, shape: Shape, x: str) -> str:
    """[B, S, hidden] of x [B, S, hidden]."""
    parameters = WideParameters(graph, weights, shape)
    shares = _shares(graph, parameters, x, 0, shape.description().routing)
    own, chosen = graph.top(shares, shape.chosen)  # [B, S, k]

    def matrices(role: str, inputs: int, outputs: int) -> str:
        made = (weights.expert(index, role) for index in range(shape.experts))
        name = weights.write(role, (shape.experts, inputs, outputs), made)
        return graph.node("Gather", name, chosen, axis=0)  # [B, S, k, inputs, outputs]

    rows = graph.node("Unsqueeze", x, graph.constant([2, 3]))
    both = graph.node("MatMul", rows, matrices("experts_gate_up", shape.hidden, 2 * shape.size))
    gate, up = graph.split(both, 4, [shape.size, shape.size])
    activated = graph.node("Mul", graph.node("Mul", gate, graph.node("Sigmoid", gate)), up)
    made = graph.node("MatMul", activated, matrices("experts_down", shape.size, shape.hidden))
    made = graph.node("Squeeze", made, graph.constant([3]))  # [B, S, k, hidden]
    weighted = graph.node("Mul", made, graph.node("Unsqueeze", own, graph.constant([3])))
    return graph.node("ReduceSum", weighted, graph.constant([2]), keepdims=0)


def make_session(directory: Path, form: str, shape: Shape) -> onnxruntime.InferenceSession:
    """One form of one layer."""
    graph, weights = Graph(OPSET), Weights(directory, form, shape)
    x = graph.input("x", "FLOAT", ["batch", "tokens", shape.hidden])
    if form == ALL:
        parameters = WideParameters(graph, weights, shape)
        made = mixture(graph, parameters, x, 0, shape.description(), lambda x: x)
    else:
        made = _gathered(graph, weights, shape, x)
    graph.node("Identity", made, output="y")
    graph.output("y", "FLOAT", ["batch", "tokens", shape.hidden])
    model = graph.model("none", {})
    model.graph.initializer.extend(weights.initializers)
    path = directory / f"{form}.onnx"
    onnx.save(model, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def anonymous() -> int:
    """Bytes of this process's own memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 2, 4, 8, 16, 64, 256])
    arguments = parser.parse_args()
    table = Table(title=f"One layer's mixture, float32, {THREADS} threads, {arguments.rounds} rounds")
    headings = ("tokens", "all ms", "gathered ms", "all / gathered", "grown MB: all", "gathered", "differ by")
    for heading in ("shape", *headings):
        table.add_column(heading, justify="left" if heading == "shape" else "right")
    for name in arguments.shapes:
        shape = SHAPES[name]
        with tempfile.TemporaryDirectory() as directory:
            sessions, grown = {}, dict.fromkeys((ALL, GATHERED), 0)
            for form in (ALL, GATHERED):
                sessions[form] = make_session(Path(directory), form, shape)
            for count in sorted(arguments.tokens):
                generator = np.random.default_rng(2)
                x = {"x": generator.standard_normal((1, count, shape.hidden), dtype=np.float32)}
                copies = count * shape.chosen * shape.expert_bytes()
                forms = [ALL] if copies > COPIES else [ALL, GATHERED]
                made = {}
                for form in forms:
                    before = anonymous()
                    made[form] = sessions[form].run(None, x)[0]
                    grown[form] += max(anonymous() - before, 0)
                seconds = {form: [] for form in forms}
                for _ in range(arguments.rounds):
                    for form in random.sample(forms, len(forms)):
                        begin = time.perf_counter()
                        sessions[form].run(None, x)
                        seconds[form].append(time.perf_counter() - begin)
                label = f"{name}: {shape.chosen} of {shape.experts}" if count == min(arguments.tokens) else ""
                spent = [f"{1e3 * statistics.median(own):.1f}" for own in seconds.values()]
                memory = [f"{grown[form] / 1e6:.0f}" for form in forms]
                if len(forms) == 1:
                    needed = f"needs {copies / 1e9:.0f} GB"
                    table.add_row(label, str(count), *spent, needed, "", *memory)
                    continue
                ratio = median_ratio(seconds[ALL], seconds[GATHERED])
                differ = np.abs(made[ALL] - made[GATHERED]).max() / np.abs(made[ALL]).max()
                table.add_row(label, str(count), *spent, f"{ratio:.2f}", *memory, f"{differ:.1e}")
                assert differ < 1e-5, differ
            del sessions
        table.add_section()
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
