"""How the reference is computed: where, in which type, and with how much memory. Imports nothing heavy."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

from yarnconv.errors import one_of
from yarnconv.rope.tables import Float32Array
from yarnconv.targets.memory import available_memory

Device = Literal["cpu", "cuda"]
Precision = Literal["float32", "float64", "bfloat16", "float16"]
DEVICES: tuple[Literal["auto", "cpu", "cuda"], ...] = ("auto", "cpu", "cuda")
BYTES: Mapping[Precision, int] = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}
SHARE_OF_MEMORY = 0.5  # of what is left, for the weights of a reference


@dataclass(frozen=True, slots=True, kw_only=True)
class Computing:
    """dtype: of weights and products. memory: bytes that the weights may take where they are computed with; a
    share of what is left there if None. What does not fit is read anew whenever it is needed.
    """

    device: Device = "cpu"
    dtype: Precision = "float32"
    memory: int | None = None

    @property
    def is_narrow(self) -> bool:
        """Whether it rounds more than float32 does."""
        return BYTES[self.dtype] < BYTES["float32"]

    @property
    def said(self) -> str:
        """For people, behind the versions; nothing where it is as ever."""
        return "" if (self.device, self.dtype) == ("cpu", "float32") else f", {self.dtype} on {self.device}"


AS_EVER = Computing()


class LazyWeights(Mapping[str, Float32Array]):
    """Weights in float32 that are made when they are asked for, and not kept.

    shapes: of each, by name. make: from a name to its values, float32, writable.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], make: Callable[[str], Float32Array]) -> None:
        self.shapes, self._make = shapes, make

    def __getitem__(self, name: str) -> Float32Array:
        if name not in self.shapes:
            raise KeyError(name)
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def writable(values: Float32Array) -> Float32Array:
    """As torch wants an array: copied only where it is a file's."""
    return values if values.flags.writeable else values.copy()


def shape_of(weights: Mapping[str, Float32Array], name: str) -> tuple[int, ...]:
    """Without making it."""
    return weights.shapes[name] if isinstance(weights, LazyWeights) else weights[name].shape


def host_memory() -> int | None:
    """Bytes that the weights of a reference may take on this machine; None where nothing is known."""
    left = available_memory()
    return None if left is None else int(SHARE_OF_MEMORY * left)


def held(weights: LazyWeights, computing: Computing) -> Mapping[str, Float32Array]:
    """Weights that several models are to share: made once where memory holds them, else as they are."""
    limit = host_memory() if computing.memory is None else computing.memory
    needed = BYTES["float32"] * sum(map(prod, weights.shapes.values()))
    return weights if limit is not None and needed > limit else dict(weights)


def parse_precision(text: str) -> Precision:
    """The `--dtype` of that name."""
    return one_of(text, tuple(BYTES), "--dtype")
