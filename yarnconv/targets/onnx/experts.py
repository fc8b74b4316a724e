"""A mixture of experts as nodes of a graph: all experts as one wide MLP, of whose parts each token counts
those that its router chose.

Every expert is computed for every token, which is exact, has no control flow, and is two matrix products of
the fast kind; what it costs beside the chosen ones alone is `spare_work`. To gather the chosen experts'
matrices costs a copy of them for each token (`python -m tests.bench.experts_bench`).

Shapes: B batch, S new tokens, E experts, I an expert's intermediate size, k chosen experts.
"""

from collections.abc import Callable, Iterator

from yarnconv.model.description import ClampedGate, ExpertsDescription, ModelDescription, Routing
from yarnconv.sizes import readable_size
from yarnconv.targets.onnx.activations import ACTIVATIONS
from yarnconv.targets.onnx.graph import Graph
from yarnconv.targets.onnx.parameters import Parameters

NOTEWORTHY_TOKENS = 1024  # of which a prompt has as many, and more
TINY = 1e-20  # by which transformers keeps a sum of sigmoids from zero


def spare_work(mlp: ExpertsDescription) -> float:
    """How many times the work of the chosen experts all of them are."""
    return mlp.experts / mlp.routing.chosen


def cost_notes(model: ModelDescription, bits: int) -> Iterator[str]:
    """What a graph of this model costs beside what a runtime needs that is built for it. bits: of a value."""
    mlp, attention = model.mixture, model.layers[0].attention
    if mlp is not None:
        kept = NOTEWORTHY_TOKENS * mlp.experts * 3 * mlp.intermediate_size * bits // 8
        yield (
            f"Every token computes all {mlp.experts} experts of a layer and counts the {mlp.routing.chosen} "
            f"that its router chose: {spare_work(mlp):.3g} times their work, and {readable_size(kept)} "
            f"between the matrices for {NOTEWORTHY_TOKENS} tokens at once (feed long prompts in parts)."
        )
    if attention.latent is not None:
        token = 2 * len(model.layers) * attention.head_dim * bits // 8
        yield (
            "Latent attention caches one vector for all heads, as key and as value once more, since clients "
            f"expect both: {readable_size(token)} a token."
        )


def _among_chosen_groups(graph: Graph, choice: str, routing: Routing) -> str:
    """Scores [B, S, E] of the chosen groups; those of the others are no choice."""
    grouped = graph.node("Reshape", choice, graph.constant([0, 0, routing.groups, -1]))
    best = graph.top(grouped, routing.group_best)[0]
    best = graph.node("ReduceSum", best, graph.constant([3]), keepdims=0)
    _, chosen = graph.top(best, routing.chosen_groups)
    numbers = graph.constant(list(range(routing.groups)))
    same = graph.node("Equal", graph.node("Unsqueeze", chosen, graph.constant([3])), numbers)
    among = graph.node("ReduceMax", graph.cast(same, "FLOAT"), graph.constant([2]), keepdims=0)
    among = graph.node("Unsqueeze", graph.cast(among, "BOOL"), graph.constant([3]))
    # softmax scores are positive: transformers leaves out groups of DeepSeek-V2 so
    nothing = 0.0 if routing.scores == "softmax" else float("-inf")
    kept = graph.node("Where", among, grouped, graph.constant(nothing, "float32"))
    return graph.node("Reshape", kept, graph.constant([0, 0, -1]))


def _shares(graph: Graph, parameters: Parameters, x: str, index: int, routing: Routing) -> str:
    """float32[B, S, E]: by how much each expert counts, zero for those that were not chosen. x: float32."""
    logits = parameters.float32_product(x, "router", index)
    if routing.bias:
        logits = graph.node("Add", logits, parameters.float32("router_bias", index))
    scores = (
        graph.node("Sigmoid", logits)
        if routing.scores == "sigmoid"
        else graph.node("Softmax", logits, axis=-1)
    )
    choice = scores
    if routing.correction:
        choice = graph.node("Add", scores, parameters.float32("router_correction", index))
    if routing.is_limited:
        choice = _among_chosen_groups(graph, choice, routing)
    _, chosen = graph.top(choice, routing.chosen)
    own = graph.node("GatherElements", scores, chosen, axis=-1)
    if routing.normalised:
        total = graph.node("ReduceSum", own, graph.constant([2]), keepdims=1)
        own = graph.node("Div", own, graph.node("Add", total, graph.constant(TINY, "float32")))
    if routing.scale != 1.0:
        own = graph.node("Mul", own, graph.constant(routing.scale, "float32"))
    nothing = graph.node("Mul", scores, graph.constant(0.0, "float32"))
    return graph.node("ScatterElements", nothing, chosen, own, axis=-1)


def _clamped(graph: Graph, gate: str, up: str, clamp: ClampedGate) -> str:
    def number(value: float, like: str) -> str:
        return graph.node("CastLike", graph.constant(value, "float32"), like)

    most = number(clamp.limit, gate)
    gate = graph.node("Min", gate, most)
    up = graph.node("Max", graph.node("Min", up, most), number(-clamp.limit, up))
    opened = graph.node("Sigmoid", graph.node("Mul", gate, number(clamp.alpha, gate)))
    return graph.node("Mul", graph.node("Mul", gate, opened), graph.node("Add", up, number(1.0, up)))


def _activated(graph: Graph, both: str, mlp: ExpertsDescription) -> str:
    """[B, S, E, I] of gate and up [B, S, E, 2 I]."""
    size = mlp.intermediate_size
    if mlp.interleaved:
        pairs = graph.node("Reshape", both, graph.constant([0, 0, -1, size, 2]))
        gate, up = (
            graph.node("Squeeze", part, graph.constant([4])) for part in graph.split(pairs, 4, [1, 1])
        )
    else:
        gate, up = graph.split(both, 3, [size, size])
    if mlp.clamp is not None:
        return _clamped(graph, gate, up, mlp.clamp)
    return graph.node("Mul", ACTIVATIONS[mlp.activation](graph, gate), up)


def mixture(
    graph: Graph,
    parameters: Parameters,
    x: str,
    index: int,
    mlp: ExpertsDescription,
    shared: Callable[[str], str],
) -> str:
    """What a layer's mixture makes of x [B, S, hidden]. shared: makes what the MLP gives that every token
    takes besides.
    """
    wide = graph.cast(x, "FLOAT")
    shares = _shares(graph, parameters, wide, index, mlp.routing)
    both = parameters.linear(x, "experts_gate_up", index, biased=False)
    both = graph.node("Reshape", both, graph.constant([0, 0, -1, 2 * mlp.intermediate_size]))
    if mlp.bias:
        both = graph.node("Add", both, parameters.value("experts_gate_up_bias", index))
    activated = _activated(graph, both, mlp)
    counted = graph.node("CastLike", shares, x)
    each = graph.node("Unsqueeze", counted, graph.constant([3]))
    # not by a product alone: an expert that was not chosen may overflow, and zero times infinity is no number
    zero = graph.node("CastLike", graph.constant(0.0, "float32"), x)
    weighted = graph.node(
        "Where", graph.node("Greater", each, zero), graph.node("Mul", activated, each), zero
    )
    weighted = graph.node("Reshape", weighted, graph.constant([0, 0, -1]))
    made = parameters.linear(weighted, "experts_down", index, biased=False)
    if mlp.bias:
        biases = graph.node("Unsqueeze", parameters.value("experts_down_bias", index), graph.constant([0]))
        own = graph.node("MatMul", counted, biases)
        made = graph.node("Add", made, own)
    if mlp.shared is None:
        return made
    besides = shared(x)
    if mlp.shared_gate:
        # one row: a sum of products, which no runtime takes together with the router's matrix
        scores = graph.node("Mul", wide, parameters.float32("shared_router", index))
        opened = graph.node("ReduceSum", scores, graph.constant([2]), keepdims=1)
        opened = graph.node("Sigmoid", opened)
        besides = graph.node("Mul", besides, graph.node("CastLike", opened, besides))
    return graph.node("Add", made, besides)
