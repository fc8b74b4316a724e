"""The checkpoint's tensors as values of the graph, each in the form that the options ask for."""

from collections.abc import Mapping, Sequence

from yarnconv.checkpoint.safetensors_file import TensorRef
from yarnconv.checkpoint.sources import TensorSource
from yarnconv.plan import ConversionPlan
from yarnconv.targets.onnx.external_data import LinkedTensor, side_by_side
from yarnconv.targets.onnx.graph import Graph
from yarnconv.targets.onnx.options import GraphOptions
from yarnconv.targets.onnx.quantisation import INT4_BLOCK, PACKED_OFFSET, quantised, quantised_rows
from yarnconv.targets.onnx.weights import (
    FLOAT_TYPES,
    ElementType,
    as_it_lies,
    as_matrix,
    matrix_shape,
    transposed,
)

Role = tuple[str, int | None]
_ONNX_TYPES = {element.dtype: element.name for element in FLOAT_TYPES.values()}


class Parameters:
    """Puts tensors into a graph when they are first asked for."""

    def __init__(self, graph: Graph, plan: ConversionPlan, options: GraphOptions) -> None:
        self._graph = graph
        self._options = options
        self._element = options.element
        self._sources: dict[Role, tuple[str, TensorSource]] = {
            (b.expected.role, b.expected.layer): (
                b.expected.name,
                as_matrix(b.expected.role, b.source),
            )
            for b in plan.bindings
        }
        self._tied = plan.description.tied_embeddings
        self._names: Mapping[str, str] = plan.family.tensors
        self._values: dict[Role, str] = {}

    def has(self, role: str, layer: int | None) -> bool:
        """Whether the model has such a tensor."""
        return (role, layer) in self._sources

    def _links(self, name: str, source: TensorSource) -> bool:
        """Whether a tensor stays in the checkpoint's file, where it is one of that name."""
        return self._options.link_weights and isinstance(source, TensorRef) and source.name == name

    def _linked(self, name: str, source: TensorSource, element: ElementType | None = None) -> str:
        """A tensor in the checkpoint's own file; the runtime converts it, once, where the dtypes differ.
        element: the type it is wanted in, None for what the graph computes in.
        """
        assert isinstance(source, TensorRef)
        wanted = element or self._element
        tensor = LinkedTensor(
            name=name,
            element=_ONNX_TYPES[source.dtype],
            shape=source.shape,
            location=source.file.path.name,
            offset=source.offset,
            nbytes=source.nbytes,
        )
        value = self._graph.link(tensor)
        return value if source.dtype == wanted.dtype else self._graph.cast(value, wanted.name)

    def value(self, role: str, layer: int | None = None) -> str:
        """A tensor in its own layout, in the type the graph computes in."""
        if (role, layer) not in self._values:
            name, source = self._sources[role, layer]
            self._values[role, layer] = (
                self._linked(name, source)
                if self._links(name, source)
                else self._graph.tensor(as_it_lies(name, source, self._element))
            )
        return self._values[role, layer]

    def float32(self, role: str, layer: int | None = None) -> str:
        """A small tensor in float32, whatever the graph computes in; asked for once."""
        name, source = self._sources[role, layer]
        wide = FLOAT_TYPES["fp32"]
        if self._links(name, source):
            return self._linked(name, source, wide)
        return self._graph.tensor(as_it_lies(name, source, wide))

    def float32_product(self, x: str, role: str, layer: int | None) -> str:
        """X times a matrix, both float32, whatever the graph computes in: what decides is not rounded."""
        name, source = self._sources[role, layer]
        wide = FLOAT_TYPES["fp32"]
        if self._links(name, source):
            matrix = self._graph.node("Transpose", self._linked(name, source, wide), perm=[1, 0])
        else:
            matrix = self._graph.tensor(transposed(name, source, wide))
        return self._graph.node("MatMul", x, matrix)

    def _matrix(self, role: str, named: Sequence[tuple[str, TensorSource]]) -> str:
        """Matrices [out, in] side by side as one, [in, out]. role: of all of them, for what is quantised."""
        graph, scheme = self._graph, self._options.scheme
        fits = all(self._options.quantises(role, matrix_shape(source)) for _, source in named)
        if scheme is not None and fits:
            pairs = [quantised(name, source, scheme, self._element) for name, source in named]
            codes, scales = (graph.tensor(side_by_side(kind)) for kind in zip(*pairs, strict=True))
            return graph.node("DequantizeLinear", codes, scales, **scheme.attributes)
        if all(self._links(name, source) and len(source.shape) == 2 for name, source in named):
            linked = [self._linked(name, source) for name, source in named]
            whole = graph.node("Concat", *linked, axis=0) if len(linked) > 1 else linked[0]
            return graph.node("Transpose", whole, perm=[1, 0])
        return graph.tensor(side_by_side([transposed(*one, self._element) for one in named]))

    def joined(self, x: str, roles: Sequence[str], layer: int | None, *, biased: bool = True) -> str:
        """X times the matrices of these roles, and their biases where the model has them, side by side: one
        large product is faster than several small ones.
        """
        graph = self._graph
        y = graph.node("MatMul", x, self._matrix(roles[0], [self._sources[role, layer] for role in roles]))
        biases = [f"{role}_bias" for role in roles]
        if not biased or not self.has(biases[0], layer):
            return y
        values = [self.value(bias, layer) for bias in biases]
        return graph.node("Add", y, graph.node("Concat", *values, axis=0) if len(values) > 1 else values[0])

    def linear(self, x: str, role: str, layer: int | None, *, biased: bool = True) -> str:
        """X times a matrix, and its bias where the model has one."""
        return self.joined(x, [role], layer, biased=biased)

    def _quantises_embeddings(self) -> bool:
        _, source = self._sources["token_embedding", None]
        return self._options.quantises("token_embedding", source.shape)

    def embedded(self, tokens: str) -> str:
        """Embeddings of token ids: [B, S] as [B, S, hidden]."""
        graph, (name, source) = self._graph, self._sources["token_embedding", None]
        if not self._quantises_embeddings():
            return graph.node("Gather", self.value("token_embedding"), tokens, axis=0)
        # Gather takes no 4-bit type, so its rows are taken as bytes; and a whole table is not dequantised
        # for the sake of a few rows
        codes, scales = (graph.tensor(tensor) for tensor in quantised_rows(name, source, self._element))
        packed = graph.node("Unsqueeze", graph.node("Gather", codes, tokens, axis=0), graph.constant([-1]))
        low = graph.node("BitwiseAnd", packed, graph.constant(15, "uint8"))
        high = graph.node("BitShift", packed, graph.constant(4, "uint8"), direction="RIGHT")
        both = graph.cast(graph.node("Concat", low, high, axis=-1), self._element.name)
        blocks = graph.node("Reshape", both, graph.constant([0, 0, -1, INT4_BLOCK]))
        zero = graph.node("CastLike", graph.constant(PACKED_OFFSET, "float32"), blocks)
        own = graph.node("Unsqueeze", graph.node("Gather", scales, tokens, axis=0), graph.constant([-1]))
        values = graph.node("Mul", graph.node("Sub", blocks, zero), own)
        return graph.node("Reshape", values, graph.constant([0, 0, source.shape[1]]))

    def logits(self, x: str) -> str:
        """X times the output head, which is the embedding where the model ties them."""
        if not self._tied:
            return self.linear(x, "output_head", None)
        _, source = self._sources["token_embedding", None]
        in_codes = self._options.quantises("output_head", source.shape)
        if not in_codes and not self._quantises_embeddings():
            matrix = self._graph.node("Transpose", self.value("token_embedding"), perm=[1, 0])
        else:
            matrix = self._matrix("output_head", [(self._names["output_head"], source)])
        return self._graph.node("MatMul", x, matrix)
