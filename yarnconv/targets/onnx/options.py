"""What can be chosen of a graph."""

from dataclasses import dataclass

from yarnconv.targets.onnx.operators import Dialect, KvForm
from yarnconv.targets.onnx.quantisation import QUANTISATIONS, Quantisation
from yarnconv.targets.onnx.weights import FLOAT_TYPES, ElementType

DTYPES = (*FLOAT_TYPES, *QUANTISATIONS)


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphOptions:
    """dtype: fp32, fp16, bf16; int4 or fp8 (matrices of so many bits). compute: what a graph of quantised
    matrices computes in, and what their scales and all other tensors are of: fp32, fp16 or bf16. int4_head,
    int4_embeddings: whether those are quantised too. max_context: positions of the tables. last_token_only:
    logits of the last token instead of all. link_weights: whether tensors stay in the checkpoint's files
    where they can. requires_context: whether a dynamic graph of the concat form has to be told each request's
    context; else it takes the whole one where it is not.
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
        return FLOAT_TYPES[self.dtype if self.quantisation is None else self.compute]

    @property
    def quantisation(self) -> Quantisation | None:
        """How matrices are stored, where not as floats."""
        return QUANTISATIONS.get(self.dtype)

    def asks_for(self, role: str) -> bool:
        """Whether matrices of this role are to be stored in fewer bits."""
        outside = {"token_embedding": self.int4_embeddings, "output_head": self.int4_head}
        return self.quantisation is not None and outside.get(role, True)

    def quantises(self, role: str, shape: tuple[int, ...]) -> bool:
        """Whether the matrix of this role and shape [out, in] is stored in fewer bits."""
        return self.asks_for(role) and self.quantisation is not None and self.quantisation.fits(shape)
