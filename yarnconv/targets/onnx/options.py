"""What can be chosen of a graph."""

from dataclasses import dataclass

from yarnconv.targets.onnx.operators import Dialect, KvForm
from yarnconv.targets.onnx.weights import FLOAT_TYPES, ElementType

QUANTISED = ("int4",)
DTYPES = (*FLOAT_TYPES, *QUANTISED)


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphOptions:
    """dtype: fp32, fp16, bf16, or int4 (4-bit matrices). compute: what a graph of quantised matrices computes
    in, and what their scales and all other tensors are of: fp32, fp16 or bf16. int4_head, int4_embeddings:
    whether int4 takes those in too. max_context: positions of the tables. last_token_only: logits of the last
    token instead of all. link_weights: whether tensors stay in the checkpoint's files where they can.
    requires_context: whether a dynamic graph of the concat form has to be told each request's context; else
    it takes the whole one where it is not.
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
    def element(self) -> ElementType:
        """What the graph computes in."""
        return FLOAT_TYPES[self.compute if self.dtype in QUANTISED else self.dtype]

    def quantises(self, role: str) -> bool:
        """Whether the matrix of this role becomes 4-bit, if it divides into blocks."""
        outside = {"token_embedding": self.int4_embeddings, "output_head": self.int4_head}
        return self.dtype == "int4" and outside.get(role, True)
