"""What one check of a GGUF works on: the plan, the artefact, and what is run through it."""

from dataclasses import dataclass

from yarnconv.checkpoint.mapped_file import MappedFile
from yarnconv.checkpoint.sources import files_of
from yarnconv.plan import ConversionPlan
from yarnconv.progress import Progress
from yarnconv.targets.gguf.placement import MadeTensor, TensorPlacement
from yarnconv.targets.gguf.reader import GgufFile
from yarnconv.targets.gguf.runtime import RuntimeArchitecture
from yarnconv.verify.case import CheckOptions
from yarnconv.verify.passages import Tokens
from yarnconv.verify.runners.llama_cpp import LlamaCpp


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """plan: the expected one. runtime: the architecture that the artefact is of. places: where the plan's
    tensors should stand. made: what should stand there besides. tokens: int64 ids to run. layers: how many
    the structure is judged with.
    """

    plan: ConversionPlan
    runtime: RuntimeArchitecture
    artefact: GgufFile
    places: tuple[TensorPlacement, ...]
    made: tuple[MadeTensor, ...]
    tokens: Tokens
    layers: int
    options: CheckOptions
    runner: LlamaCpp
    progress: Progress

    @property
    def files(self) -> tuple[MappedFile, ...]:
        """The artefact's and the checkpoint's."""
        held = [place.binding.held for place in self.places]
        return (*self.artefact.files, *files_of(source for source in held if source is not None))

    @property
    def all_layers(self) -> int:
        """Layers of the whole model."""
        return len(self.plan.description.layers)
