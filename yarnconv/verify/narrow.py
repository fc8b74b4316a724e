"""What a passage can tell of a runtime that multiplies in a narrower type than float32.

The reference's logits with products in that type lie so far from its float32 ones, and the runtime's may lie
MARGIN times as far.
"""

from yarnconv.rope.tables import Float32Array
from yarnconv.verify.compare import LARGEST_TOLERANCE, Sharpness, position_errors
from yarnconv.verify.passages import Passage
from yarnconv.verify.reference import Reference

# tests/verify/test_tensorrt_check.py measures it on what runs without a GPU: fp16 graphs on ONNX Runtime's
# CPU lie 0.39 to 1.77 times as far from the float32 reference as the reference does with products in fp16.
MARGIN = 3.0
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
    noise = float(position_errors(rounded, wanted).max())
    allowed = exact.allowed + MARGIN * noise
    if not allowed <= LARGEST_TOLERANCE:
        return Sharpness(allowed=allowed, blind=f"{NARROW[element]} alone moves these logits by {noise:.1g}")
    return Sharpness(allowed=allowed)
