"""What a passage can tell of a runtime that multiplies in a narrower type than float32.

The reference's logits with products in that type lie so far from its float32 ones, and the runtime's may lie
MARGIN times as far (`compare.narrowed`).
"""

from yarnconv.rope.tables import Float32Array
from yarnconv.verify.compare import Sharpness, narrowed
from yarnconv.verify.passages import Passage
from yarnconv.verify.reference import Reference

NARROW = {"FLOAT16": "float16", "BFLOAT16": "bfloat16"}  # ONNX's names, as torch calls them


def widened(
    exact: Sharpness, reference: Reference, passage: Passage, wanted: Float32Array, element: str
) -> Sharpness:
    """The sharpness of float32, `exact`, widened by what products in a type cost; itself for any but the
    narrow ones. element: ONNX's name of the type.
    """
    if element not in NARROW or exact.blind is not None:
        return exact
    with reference.products_in(NARROW[element]):
        rounded = reference.logits(passage)
    return narrowed(exact, rounded, wanted, NARROW[element])
