"""What can be chosen of a graph."""

from dataclasses import dataclass

from yarnconv.targets.onnx.operators import Dialect, KvForm
from yarnconv.targets.onnx.quantisation import SCHEMES, Scheme
from yarnconv.targets.onnx.weights import FLOAT_TYPES, ElementType

DTYPES = (*FLOAT_TYPES, *SCHEMES)


# of what is computed in float32 whatever the graph's type: what decides between experts, and sinks
FLOAT32_ROLES = frozenset({"router", "router_bias", "router_correction", "shared_router", "sinks"})
# that no scheme quantises: these, biases of experts, and what latent attention is absorbed by
NEVER = FLOAT32_ROLES | {"experts_gate_up_bias", "experts_down_bias", "key_value_up"}


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphOptions:
    """dtype: fp32, fp16, bf16, or that of quantised matrices: int4, fp8 (codes with a scale for each block of
    32, or for each column). compute: fp32, fp16 or bf16, what a graph of quantised matrices computes in and
    stores everything else in; of no meaning for the other dtypes. int4_head: whether quantisation takes the
    output head in. int4_embeddings: whether int4 takes them in. max_context: positions of the tables.
    last_token_only: logits of the last token instead of all. link_weights: whether tensors stay in the
    checkpoint's files where they can. requires_context: whether a dynamic graph of the concat form has to be
    told each request's context; else it takes the whole one where it is not.
    """

    dtype: str
    compute: str = "fp32"
    kv: KvForm
    dialect: Dialect = "standard"
    max_context: int
    last_token_only: bool = False
    int4_head: bool = True
    int4_embeddings: bool = False
    link_weights: bool = False
    requires_context: bool = False

    @property
    def scheme(self) -> Scheme | None:
        """How matrices are quantised; None: they are not."""
        return SCHEMES.get(self.dtype)

    @property
    def element(self) -> ElementType:
        """What the graph computes in."""
        return FLOAT_TYPES[self.dtype if self.scheme is None else self.compute]

    def quantises(self, role: str, shape: tuple[int, ...]) -> bool:
        """Whether the matrix [out, in] of this role is asked for in codes and can be."""
        return self.asks_for(role) and self.scheme is not None and self.scheme.fits(shape)

    def asks_for(self, role: str) -> bool:
        """Whether the matrix of this role is to be quantised, if it can be."""
        outside = {"token_embedding": self.int4_embeddings, "output_head": self.int4_head}
        return self.scheme is not None and role not in NEVER and outside.get(role, True)
