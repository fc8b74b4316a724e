"""TensorRT as a builder: the real library, in a process of its own."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from yarnconv.errors import BadInput, MissingComponent, one_of
from yarnconv.rope.tables import Float32Array
from yarnconv.targets.onnx.rope_comparison import Rotation, Rotations
from yarnconv.targets.tensorrt.profiles import Shape
from yarnconv.worker import Listen, RuntimeRefused, Worker

WORKER = Path(__file__).with_name("builder_worker.py")
RuntimeName = Literal["tensorrt", "tensorrt-rtx"]
MODULES: dict[RuntimeName, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
EXTRAS: dict[RuntimeName, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "trt"}  # of ours that install them
LEVELS = ("error", "warning", "info", "verbose")
# the first compute capability that has a type; what is asked for by default has no other reason to be older
LEAST_CAPABILITY = {"bf16": 8.0, "fp8": 8.9}
DEFAULT_LEAST = 8.0


def parse_level(text: str) -> int:
    """The `--runtime-log` of that name, as TensorRT counts."""
    return LEVELS.index(one_of(text, LEVELS, "--runtime-log")) + 1


def parse_capabilities(text: str | None) -> tuple[str, ...]:
    """The compute capabilities of `--compute-capability`, such as 8.9,12.0."""
    names = [] if text is None else [name.strip() for name in text.split(",")]
    for name in names:
        major, _, minor = name.partition(".")
        if not (major.isdecimal() and minor.isdecimal() and len(name) <= 6):
            raise BadInput(
                f"{name[:20]!r} is no compute capability",
                where="--compute-capability",
                fix="Write it as 8.9.",
            )
    return tuple(names)


def find_runtime(text: str) -> RuntimeName:
    """The `--runtime` of that name; auto: the one that is installed, tensorrt where both are.

    Raises MissingComponent with the install line.
    """
    wanted = one_of(text, ("auto", *MODULES), "--runtime")
    candidates = [name for name in MODULES if wanted in ("auto", name)]
    for name in candidates:
        if find_spec(MODULES[name]) is not None:
            return name
    extra = EXTRAS[candidates[-1]]
    raise MissingComponent(
        f"{' or '.join(candidates)} is not installed",
        where=f"--runtime {wanted}",
        fix=f'Install with: pip install "yarnconv[{extra}]" (in a clone: pip install --constraint '
        f'constraints.txt ".[{extra}]").',
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Initialiser:
    """A tensor of the graph that the parser is handed: bytes of a file."""

    name: str
    path: Path
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkTensor:
    """An input or output. type: TensorRT's name. shape: -1 where it varies."""

    name: str
    type: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkTable:
    """A constant that rotations take their rows from. values: None where numpy has no such type."""

    element: str
    shape: tuple[int, ...]
    values: Float32Array | None

    def float32(self, first: int, last: int) -> Float32Array:
        """Rows first..last-1; NaN where the values are not known."""
        if self.values is None:
            return np.full((last - first, *self.shape[1:]), np.nan, np.float32)
        return np.asarray(self.values[first:last], np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkAttention:
    """One attention. layer: whose keys it reads, None where those are no layer's. needed: whether any output
    is made of it. causal: whether it masks by itself, upper left. mask: whether it takes one. scales: on the
    scores, of each of a dynamic plan's buckets where they differ. window: slots that a query looks back over,
    by the mask. softcap: of the scores, NaN for something else that bends them. sinks: whether something
    beside the keys' scores takes a share. growth: beta and context of queries that grow with their position,
    NaN for something else that they are multiplied with. turns: how often its queries, keys and values are
    rotated. rotations: of its queries and keys.
    """

    layer: int | None
    needed: bool
    causal: bool
    mask: bool
    scales: tuple[float, ...]
    window: int | None
    softcap: float | None
    sinks: bool
    growth: tuple[float, float] | None
    turns: tuple[int, ...]
    rotations: Rotations


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What TensorRT made of a graph. unused: inputs that no output depends on."""

    inputs: tuple[NetworkTensor, ...]
    outputs: tuple[NetworkTensor, ...]
    unused: frozenset[str]
    attentions: tuple[NetworkAttention, ...]
    tables: Mapping[str, NetworkTable]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSettings:
    """compute_capabilities: such as 8.9; none where the runtime takes the GPU that is there.
    optimization_level: 0 to 5. workspace: bytes. Both None for the runtime's own.
    """

    compute_capabilities: tuple[str, ...]
    optimization_level: int | None
    workspace: int | None
    weight_streaming: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildCost:
    """Bytes of the builder's process at most: its own, and with mapped files."""

    peak_anonymous: int
    peak_resident: int


def _module_name(capability: str) -> str:
    return f"SM{capability.replace('.', '')}"


def _capability(module_name: str) -> str:
    digits = module_name.removeprefix("SM")
    return f"{digits[:-1]}.{digits[-1]}"


def _tensors(found: Sequence[Mapping[str, Any]]) -> tuple[NetworkTensor, ...]:
    return tuple(NetworkTensor(name=t["name"], type=t["type"], shape=tuple(t["shape"])) for t in found)


def _rotation(found: Mapping[str, Any] | None) -> Rotation | None:
    return None if found is None else Rotation(**found)


PLAIN_FACTS = ("layer", "needed", "causal", "mask", "window", "softcap", "sinks")


def _attention(found: Mapping[str, Any]) -> NetworkAttention:
    plain = {key: found[key] for key in PLAIN_FACTS}
    turns, growth = tuple(found["turns"]), found["growth"]
    return NetworkAttention(
        **plain,
        scales=tuple(found["scales"]),
        growth=None if growth is None else tuple(growth),
        turns=turns,
        rotations=(_rotation(found["query"]), _rotation(found["key"])),
    )


def _table(found: Mapping[str, Any]) -> NetworkTable:
    path = found["path"]
    values = None if path is None else np.load(path, mmap_mode="r")
    return NetworkTable(element=found["element"], shape=tuple(found["shape"]), values=values)


class Builder(Worker):
    """Parses one graph and builds an engine of it."""

    crashed_while = "it parsed the graph or built the engine"

    def __init__(self, runtime: RuntimeName) -> None:
        super().__init__("TensorRT-RTX" if runtime == "tensorrt-rtx" else "TensorRT", WORKER)
        self._module = MODULES[runtime]
        self.runtime = runtime
        try:
            offer = self.ask({"do": "offer", "module": self._module, "path": self._module})
        except RuntimeRefused as error:
            self.close()
            raise MissingComponent(
                f"{self._module} is installed, but {error.what}",
                fix="Install its libraries, or choose another --runtime.",
            ) from None
        self.version = str(offer["version"])
        self.compute_capabilities = tuple(
            sorted(map(_capability, offer["compute_capabilities"]), key=lambda text: float(text))
        )

    def choose_capabilities(self, asked: Sequence[str], types: Iterable[str]) -> tuple[str, ...]:
        """The compute capabilities to build for; where none are asked for, all from 8.0 on that can run the
        engine. types: that it computes with or stores.

        Raises BadInput for one that the runtime does not build for.
        """
        if asked and not self.compute_capabilities:
            raise BadInput(
                f"{self.name} builds for the GPU of the machine it runs on",
                where="--compute-capability",
                fix="Leave it out, or give --runtime tensorrt-rtx.",
            )
        least, kind = max(((LEAST_CAPABILITY.get(kind, 0.0), kind) for kind in types), default=(0.0, ""))
        able = [one for one in self.compute_capabilities if float(one) >= least]
        for one in asked:
            if one not in able:
                lacks = one in self.compute_capabilities
                raise BadInput(
                    f"compute capability {one[:20]} "
                    + (f"has no {kind}" if lacks else f"is none that {self.name} builds for"),
                    where="--compute-capability",
                    fix=f"Choose among {', '.join(able)}, or "
                    + ("another --dtype." if lacks else "--runtime tensorrt, on a machine with such a GPU."),
                )
        chosen = asked or [one for one in able if float(one) >= DEFAULT_LEAST]
        return tuple(sorted(set(chosen), key=float))

    def parse(
        self, graph: Path, initialisers: Sequence[Initialiser], *, level: int, listen: Listen
    ) -> Network:
        """Parse a graph; its tensors are handed over from where they lie. level: of the messages that are
        heard. Raises RuntimeRefused where TensorRT does not take it.
        """
        handed = [
            {"name": one.name, "path": str(one.path), "offset": one.offset, "nbytes": one.nbytes}
            for one in initialisers
        ]
        request = {
            "do": "parse",
            "path": str(graph),
            "module": self._module,
            "initialisers": handed,
            "tables": str(self.scratch),
            "level": level,
        }
        found = self.ask(request, listen=listen)
        return Network(
            inputs=_tensors(found["inputs"]),
            outputs=_tensors(found["outputs"]),
            unused=frozenset(found["unused"]),
            attentions=tuple(map(_attention, found["attentions"])),
            tables={name: _table(table) for name, table in found["tables"].items()},
        )

    def build(
        self,
        engine: Path,
        shapes: Mapping[str, Mapping[str, tuple[Shape, Shape, Shape]]],
        settings: BuildSettings,
        *,
        listen: Listen,
    ) -> BuildCost:
        """Build an engine of what was parsed and write it. shapes: least, usual and largest, of each input,
        by profile. Raises RuntimeRefused where TensorRT does not build it.
        """
        request = {
            "do": "build",
            "path": str(engine),
            "engine": str(engine),
            "profiles": [{"name": name, "shapes": by_input} for name, by_input in shapes.items()],
            "compute_capabilities": [_module_name(one) for one in settings.compute_capabilities],
            "optimization_level": settings.optimization_level,
            "workspace": settings.workspace,
            "weight_streaming": settings.weight_streaming,
        }
        return BuildCost(**self.ask(request, listen=listen))
