"""The activations of an MLP as nodes of a graph, by transformers' names."""

from collections.abc import Callable, Mapping

from yarnconv.targets.onnx.graph import Graph


def _silu(graph: Graph, x: str) -> str:
    return graph.node("Mul", x, graph.node("Sigmoid", x))


def _gelu_tanh(graph: Graph, x: str) -> str:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    return graph.node("Gelu", x, approximate="tanh")


ACTIVATIONS: Mapping[str, Callable[[Graph, str], str]] = {"silu": _silu, "gelu_pytorch_tanh": _gelu_tanh}
