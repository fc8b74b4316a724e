"""What the files beside a GGUF are made of."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from yarnconv.rope_plan import RopePlan
from yarnconv.targets.check_workflow import Reference
from yarnconv.targets.gguf.deployment.chat_source import ChatSource
from yarnconv.targets.gguf.output import output_paths, stem_of
from yarnconv.targets.gguf.rope import RopeEncoding
from yarnconv.targets.gguf.rope_keys import RopeKeys


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """served: the plan that runtimes are to be started with; the file's own is a plain one where flags make
    the other of it. check_options: rope options that make the file's own again. encoding, dtype: how the file
    says it, and what most of its weights are.

    name: the model's. kind: what it is, in a word. keys: what its architecture reads. extended_from: the GGUF
    that was extended, None where a checkpoint was converted. destination: where the GGUF goes, parts: in how
    many files. reference: what to check against. wanted: the names of `--emit`. read_chat: reads the model's
    chat format and ends, for whoever needs them.
    """

    served: RopePlan
    check_options: str
    encoding: RopeEncoding
    dtype: str
    name: str
    kind: str
    keys: RopeKeys
    extended_from: str | None
    destination: Path
    parts: int
    reference: Reference
    wanted: Collection[str]
    read_chat: Callable[[], ChatSource]

    @property
    def paths(self) -> list[Path]:
        """The GGUF's own files, the one to open first."""
        return output_paths(self.destination, self.parts)

    @property
    def stem(self) -> str:
        """The GGUF's name without .gguf."""
        return stem_of(self.destination)

    @property
    def model(self) -> str:
        """The name of the file to open first."""
        return self.paths[0].name

    @property
    def layers(self) -> int:
        """How many the model has."""
        return sum(len(group.layers) for group in self.served.groups)
