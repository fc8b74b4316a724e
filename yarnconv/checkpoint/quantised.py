"""Checkpoints whose weights are codes: what config.json says of them, and where codes and scales stand.

Read are FP8 with a factor for each square block (DeepSeek-V3) and MXFP4 (gpt-oss); anything else is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from yarnconv.checkpoint.codes import MXFP4_BLOCK, Fp8Tensor, Mxfp4Tensor
from yarnconv.checkpoint.safetensors_file import TensorRef
from yarnconv.checkpoint.sources import TensorSource
from yarnconv.errors import BadInput

WHERE = "config.json: quantization_config"
FP8_FACTORS = "_scale_inv"  # behind the name of a weight
FACTOR_DTYPES = ("F32", "BF16")  # DeepSeek's, and Qwen's
MXFP4_CODES, MXFP4_EXPONENTS = "_blocks", "_scales"
LARGEST_BLOCK = 2**16


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantisation:
    """How weights may be stored. method: "fp8", "mxfp4" or None. block_size: of fp8, rows and columns."""

    method: str | None = None
    block_size: tuple[int, int] = (1, 1)


def read_quantisation(config: Mapping[str, Any]) -> Quantisation:
    """What config.json says. Raises BadInput for codes that are not read here."""
    said = config.get("quantization_config")
    if not said:
        return Quantisation()
    if not isinstance(said, Mapping):
        raise BadInput(f"quantization_config is {said!r:.80}, not an object", where=WHERE)
    method = said.get("quant_method")
    if method == "mxfp4":
        return Quantisation(method="mxfp4")
    size = said.get("weight_block_size")
    whole = isinstance(size, list) and len(size) == 2 and all(type(n) is int for n in size)
    if method == "fp8" and said.get("fmt", "e4m3") == "e4m3" and whole and size is not None:
        height, width = size
        if 0 < height <= LARGEST_BLOCK and 0 < width <= LARGEST_BLOCK:
            return Quantisation(method="fp8", block_size=(height, width))
    named = f"{method!r}" + (f" in blocks of {size!r}" if method == "fp8" else "")
    raise BadInput(
        f"the checkpoint is quantised by {named:.100}",
        where=WHERE,
        fix="Read are fp8 in blocks and mxfp4; convert from the unquantised checkpoint.",
    )


def _misshapen(ref: TensorRef, what: str) -> BadInput:
    return BadInput(f"{ref.name} has shape {list(ref.shape)}, {what}", where=ref.file.path.name)


def _fp8(codes: TensorRef, factors: TensorRef, block_size: tuple[int, int]) -> Fp8Tensor:
    if len(codes.shape) != 2:
        raise _misshapen(codes, "and FP8 weights are matrices")
    wanted = tuple(-(-n // size) for n, size in zip(codes.shape, block_size, strict=True))
    if factors.shape != wanted or factors.dtype not in FACTOR_DTYPES:
        named = " or ".join(FACTOR_DTYPES)
        raise _misshapen(factors, f"{factors.dtype}, and {codes.name} needs {named} {list(wanted)}")
    return Fp8Tensor(codes=codes, factors=factors, block_size=block_size)


def _mxfp4(name: str, codes: TensorRef, exponents: TensorRef) -> Mxfp4Tensor:
    if codes.dtype != "U8" or len(codes.shape) < 2 or codes.shape[-1] != MXFP4_BLOCK // 2:
        raise _misshapen(codes, f"{codes.dtype}, and MXFP4 has blocks of {MXFP4_BLOCK // 2} bytes")
    if exponents.dtype != "U8" or exponents.shape != codes.shape[:-1]:
        raise _misshapen(exponents, f"{exponents.dtype}, and {codes.name} needs U8 {list(codes.shape[:-1])}")
    return Mxfp4Tensor(name=name, codes=codes, exponents=exponents)


def find_source(
    tensors: Mapping[str, TensorRef], name: str, quantisation: Quantisation
) -> TensorSource | None:
    """A tensor of the checkpoint by its name, in floats or in codes; None where there is none."""
    ref = tensors.get(name)
    if ref is not None and quantisation.method == "fp8" and ref.dtype == "F8_E4M3":
        factors = tensors.get(name + FP8_FACTORS)
        if factors is None:
            raise BadInput(f"{name} is in FP8, and {name}{FP8_FACTORS} is missing", where=ref.file.path.name)
        return _fp8(ref, factors, quantisation.block_size)
    if ref is None and quantisation.method == "mxfp4":
        codes, exponents = (tensors.get(name + end) for end in (MXFP4_CODES, MXFP4_EXPONENTS))
        if codes is None or exponents is None:
            if (only := codes or exponents) is None:
                return None
            missing = MXFP4_EXPONENTS if exponents is None else MXFP4_CODES
            raise BadInput(f"{only.name} is there, and {name}{missing} is missing", where=only.file.path.name)
        return _mxfp4(name, codes, exponents)
    return ref
