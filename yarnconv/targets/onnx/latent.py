"""Multi-head latent attention as nodes of a graph, absorbed: what is cached of a position is one vector, from
which the keys and values of all heads could be made, and behind it the rotated part of the keys.

Queries are multiplied by what would make keys, and what attention gives by what would make values: the same
sums in another order (DeepSeek-V2, arXiv:2405.04434, section 2.1.2), over a cache smaller by a factor of
H D / (rank + rotary_dim). Attention takes the one vector for key and value both, so that head sizes are
equal, as TensorRT wants them.

Shapes: B batch, S new tokens, H heads, R the latent vector's rank.
"""

from collections.abc import Callable

from yarnconv.model.description import AttentionDescription, LatentAttention
from yarnconv.targets.onnx.graph import Graph
from yarnconv.targets.onnx.parameters import Parameters

LATENT_NORMS = frozenset({"query_latent_norm", "key_value_latent_norm"})
Norm = Callable[[str, str, int], str]  # a value, the weight's role, the layer
Rotate = Callable[[str], str]


def _by_head(graph: Graph, x: str, heads: int, width: int) -> str:
    """[B, S, H D] as [B, H, S, D]."""
    heads_last = graph.node("Reshape", x, graph.constant([0, 0, heads, width]))
    return graph.node("Transpose", heads_last, perm=[0, 2, 1, 3])


class Latent:
    """One layer's."""

    def __init__(
        self,
        graph: Graph,
        parameters: Parameters,
        attention: AttentionDescription,
        latent: LatentAttention,
        index: int,
    ) -> None:
        self._graph, self._parameters, self._index = graph, parameters, index
        self._attention, self._latent = attention, latent
        rows = latent.plain_dim + latent.value_dim
        by_head = graph.node(
            "Reshape", parameters.value("key_value_up", index), graph.constant([-1, rows, latent.rank])
        )
        self._to_keys, self._to_values = graph.split(by_head, 1, [latent.plain_dim, latent.value_dim])

    def _queries(self, x: str, norm: Norm) -> str:
        linear, index = self._parameters.linear, self._index
        if self._latent.query_rank is None:
            return linear(x, "query", index)
        return linear(norm(linear(x, "query_down", index), "query_latent_norm", index), "query_up", index)

    def heads(self, x: str, norm: Norm, rotate: Rotate) -> tuple[str, str, str]:
        """Absorbed queries [B, H, S, R + rotary_dim], and keys [B, 1, S, R + rotary_dim], which are the
        values as well.
        """
        graph, latent = self._graph, self._latent
        width = latent.plain_dim + latent.rotary_dim
        queries = _by_head(graph, self._queries(x, norm), self._attention.heads, width)
        plain, turning = graph.split(queries, 3, [latent.plain_dim, latent.rotary_dim])
        absorbed = graph.node("MatMul", plain, self._to_keys)
        query = graph.node("Concat", absorbed, rotate(turning), axis=3)
        both = self._parameters.linear(x, "key_value_down", self._index)
        vector, turning = graph.split(both, 2, [latent.rank, latent.rotary_dim])
        vector = norm(vector, "key_value_latent_norm", self._index)
        turning = rotate(_by_head(graph, turning, 1, latent.rotary_dim))
        key = graph.node("Concat", graph.node("Unsqueeze", vector, graph.constant([1])), turning, axis=3)
        return query, key, key

    def values(self, attended: str) -> str:
        """[B, S, H value_dim] of what attention gives, [B, S, H (R + rotary_dim)]."""
        graph, latent, heads = self._graph, self._latent, self._attention.heads
        by_head = _by_head(graph, attended, heads, latent.rank + latent.rotary_dim)
        vectors, _ = graph.split(by_head, 3, [latent.rank, latent.rotary_dim])
        made = graph.node("MatMul", vectors, graph.node("Transpose", self._to_values, perm=[0, 2, 1]))
        heads_last = graph.node("Transpose", made, perm=[0, 2, 1, 3])
        return graph.node("Reshape", heads_last, graph.constant([0, 0, heads * latent.value_dim]))
