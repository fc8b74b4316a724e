"""Numbers that a config.json may leave out, read as widely as transformers reads them: null is absent, and
a whole number may be spelled 4096.0.
"""

import math
from collections.abc import Mapping
from typing import Any

from yarnconv.errors import BadInput

JsonObject = Mapping[str, Any]


def misread(where: str, what: str, fix: str | None = None) -> BadInput:
    """The error of a config.json that says `what` at `where`."""
    return BadInput(what, where=f"config.json: {where}", fix=fix)


def _key_path(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def optional_number(source: JsonObject, key: str, where: str) -> float | None:
    """A number, None where it is absent. Raises BadInput for anything else."""
    value = source.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise misread(_key_path(where, key), f"{key} is {value!r}, not a number")
    try:
        return float(value)
    except OverflowError:
        raise misread(_key_path(where, key), f"{key} is too large a number") from None


def optional_whole_number(source: JsonObject, key: str, where: str) -> int | None:
    """A whole number, None where it is absent. Raises BadInput for anything else."""
    value = optional_number(source, key, where)
    if value is None:
        return None
    if not math.isfinite(value) or not value.is_integer():
        raise misread(_key_path(where, key), f"{key} is {value!r}, not a whole number")
    return int(value)


def head_dim(config: JsonObject) -> int:
    """Dimensions of one query/key head: `head_dim`, or hidden_size / num_attention_heads."""
    given = optional_whole_number(config, "head_dim", "")
    if given is not None:
        return given
    hidden, heads = (optional_whole_number(config, k, "") for k in ("hidden_size", "num_attention_heads"))
    if not hidden or not heads or hidden < 0 or heads < 0:
        raise misread("head_dim", "neither head_dim nor hidden_size and num_attention_heads are given")
    if hidden % heads:
        raise misread("num_attention_heads", f"hidden_size {hidden} does not divide into {heads} heads")
    return hidden // heads
