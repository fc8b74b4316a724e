"""A layer's mixture of experts in ONNX Runtime on the CPU, in three forms without control flow.

    python -m tests.bench.experts_bench [--rounds 7] [--shapes qwen3-30b] [--tokens 1 2 4 8 16 256]

all: every expert computed for every token, as yarnconv/targets/onnx/experts.py builds it.
gathered: the chosen experts' matrices taken by Gather, a copy of them for each token, and multiplied.
MoE: ONNX Runtime's own operator (com.microsoft), which no other runtime knows; for information.

float32, two threads, random weights; the forms in turn, each round in another order; medians, and the median
of the ratios within a round. Their outputs are compared. Memory is by what the process's own (RssAnon) has
grown while the form ran with up to so many tokens. Where copies alone take more than 6 GB, nothing is run.

Measured (5 rounds, ONNX Runtime 1.32, two cores that others used too; x: how many times as fast as all):

    shape        tokens   all ms   gathered          MoE
    mixtral/2         1      210   1.3x   365 MB     4.7x
                      2      271   0.9x   483 MB     2.2x
                    256     4774   (90 GB)           3.2x
    qwen3-30b         1      244   4.7x   151 MB    15.3x
                      8      371   1.2x   503 MB     3.1x
                     16      896   0.9x   905 MB     2.6x
                    256     5108   (39 GB)           6.5x
    gpt-oss/2         1      252   2.5x   200 MB     5.1x
                      2      275   1.5x   266 MB     4.0x
                      4      321   0.9x   399 MB     2.5x
                    256     4956   (51 GB)           4.7x

Gathering breaks even at about experts / chosen / 2 tokens a step, and cannot read a prompt. The operator does
both, with no copies.
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
ALL, GATHERED, OPERATOR = "all", "gathered", "MoE"


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


# Mixtral 8x7B at half of both sizes, gpt-oss-20b at half the hidden size: for a small machine's memory
SHAPES = {
    "mixtral/2": Shape(8, 2, 2048, 7168),
    "qwen3-30b": Shape(128, 8, 2048, 768),
    "gpt-oss/2": Shape(32, 4, 1440, 2880),
}


class Weights:
    """In a file for each form, as it wants them; and in the place of `Parameters`, what makes products."""

    def __init__(self, directory: Path, name: str, shape: Shape) -> None:
        self._path = directory / f"{name}.data"
        self._shape = shape
        self.initializers: list[onnx.TensorProto] = []

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


def _operator(graph: Graph, weights: Weights, shape: Shape, x: str) -> str:
    """[B, S, hidden] of x [B, S, hidden]; the operator wants matrices [out, in], gate and up in turn."""

    def turned(role: str):
        for index in range(shape.experts):
            matrix = weights.expert(index, role).T
            if role == "experts_gate_up":
                matrix = matrix.reshape(2, shape.size, shape.hidden).swapaxes(0, 1)
            yield np.ascontiguousarray(matrix)

    rows = graph.node("Reshape", x, graph.constant([-1, shape.hidden]))
    sizes = (shape.experts, 2 * shape.size, shape.hidden), (shape.experts, shape.hidden, shape.size)
    roles = ("experts_gate_up", "experts_down")
    up, down = (weights.write(role, size, turned(role)) for role, size in zip(roles, sizes, strict=True))
    made = graph.node(
        "MoE",
        *(rows, graph.node("MatMul", rows, weights.router()), up, "", down),
        domain="com.microsoft",
        k=shape.chosen,
        activation_type="swiglu",
        swiglu_fusion=1,
        activation_alpha=1.0,
        activation_beta=0.0,
        normalize_routing_weights=1,
    )
    return graph.node("Reshape", made, graph.node("Shape", x))


def make_session(directory: Path, form: str, shape: Shape) -> onnxruntime.InferenceSession:
    """One form of one layer."""
    graph, weights = Graph(OPSET), Weights(directory, form, shape)
    x = graph.input("x", "FLOAT", ["batch", "tokens", shape.hidden])
    if form == ALL:
        parameters = WideParameters(graph, weights, shape)
        made = mixture(graph, parameters, x, 0, shape.description(), lambda x: x)
    else:
        made = (_gathered if form == GATHERED else _operator)(graph, weights, shape, x)
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
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 2, 4, 8, 16, 256])
    parser.add_argument("--directory", type=Path, help="where weights are for the time: 7 GB")
    arguments = parser.parse_args()
    table = Table(title=f"One layer's mixture, float32, {THREADS} threads, {arguments.rounds} rounds")
    forms = (ALL, GATHERED, OPERATOR)
    times = (*(f"{form} ms" for form in forms), *(f"all / {form}" for form in forms[1:]))
    for heading in ("shape", "tokens", *times, *(f"{form} MB" for form in forms), "differ by"):
        table.add_column(heading, justify="left" if heading == "shape" else "right")
    for name in arguments.shapes:
        shape = SHAPES[name]
        with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
            sessions = {form: make_session(Path(directory), form, shape) for form in forms}
            grown = dict.fromkeys(forms, 0)
            for count in sorted(arguments.tokens):
                generator = np.random.default_rng(2)
                x = {"x": generator.standard_normal((1, count, shape.hidden), dtype=np.float32)}
                copies = count * shape.chosen * shape.expert_bytes()
                able = [form for form in forms if form != GATHERED or copies <= COPIES]
                made = {}
                for form in able:
                    before = anonymous()
                    made[form] = sessions[form].run(None, x)[0]
                    grown[form] += max(anonymous() - before, 0)
                seconds = {form: [] for form in able}
                for _ in range(arguments.rounds):
                    for form in random.sample(able, len(able)):
                        begin = time.perf_counter()
                        sessions[form].run(None, x)
                        seconds[form].append(time.perf_counter() - begin)
                differ = max(np.abs(own - made[ALL]).max() for own in made.values()) / np.abs(made[ALL]).max()
                assert differ < 1e-5, differ
                table.add_row(
                    f"{name}: {shape.chosen} of {shape.experts}" if count == min(arguments.tokens) else "",
                    str(count),
                    *(f"{1e3 * statistics.median(seconds[f]):.0f}" if f in able else "" for f in forms),
                    *(
                        f"{median_ratio(seconds[ALL], seconds[f]):.2f}" if f in able else ""
                        for f in forms[1:]
                    ),
                    *(f"{grown[f] / 1e6:.0f}" if f in able else f"({copies / 1e6:.0f})" for f in forms),
                    f"{differ:.0e}",
                )
            del sessions
        table.add_section()
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
