"""Values of a config.json, checked: a stranger wrote it."""

from yarnconv.errors import BadInput
from yarnconv.model.family import JsonObject

# Far above any model there is, far below what would hurt: dimensions come from strangers.
MAXIMUM_DIMENSION = 2**24
# Of multipliers and softcaps: outside it float32 logits are lost.
SMALLEST, LARGEST = 1e-6, 1e6


def whole_number(config: JsonObject, key: str, maximum: int = MAXIMUM_DIMENSION) -> int:
    """One of at least 1. Raises BadInput for anything else."""
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= maximum:
        raise BadInput(
            f"{key} is {value!r}" if key in config else f"{key} is missing",
            where=f"config.json: {key}",
            fix=f"It must be a whole number between 1 and {maximum}.",
        )
    return value


def number(config: JsonObject, key: str, smallest: float = SMALLEST, largest: float = LARGEST) -> float:
    """One between these. Raises BadInput for anything else."""
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not smallest <= value <= largest:
        raise BadInput(
            f"{key} is {value!r}" if key in config else f"{key} is missing",
            where=f"config.json: {key}",
            fix=f"It must be a number between {smallest:g} and {largest:g}.",
        )
    return float(value)


def multiplier(config: JsonObject, key: str | None) -> float:
    """A number, 1 where the family has none."""
    return 1.0 if key is None else number(config, key)


def softcap(config: JsonObject, key: str | None) -> float | None:
    """A number, None where there is none."""
    return None if key is None or config.get(key) is None else number(config, key)


def switch(config: JsonObject, fact: bool | str) -> bool:
    """A fact, or what the config key says that decides it. Raises BadInput for what is no truth value."""
    if isinstance(fact, bool):
        return fact
    value = config.get(fact)
    if not isinstance(value, bool):
        raise BadInput(f"{fact} is {value!r}, not true or false", where=f"config.json: {fact}")
    return value


def counted(config: JsonObject, key: str | None) -> int:
    """A whole number of at least 0, null among them."""
    found = 0 if key is None else config.get(key)
    if found is None:
        return 0
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found < 2**16:
        raise BadInput(f"{key} is {found!r}", where=f"config.json: {key}")
    return found
