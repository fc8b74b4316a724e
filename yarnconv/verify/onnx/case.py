"""What one check of an ONNX model works on: the plan, the artefact, and what is run through it."""

from dataclasses import dataclass

from yarnconv.checkpoint.mapped_file import MappedFile
from yarnconv.checkpoint.sources import files_of
from yarnconv.plan import ConversionPlan
from yarnconv.progress import Progress
from yarnconv.targets.onnx.placement import StoredWeight
from yarnconv.targets.onnx.reader import OnnxModel
from yarnconv.targets.onnx.rope import TableLayout, lay_out_tables
from yarnconv.verify.case import CheckOptions
from yarnconv.verify.passages import Tokens
from yarnconv.verify.runners.onnx_runtime import OnnxRuntime


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """plan: the expected one. weights: where its tensors stand, None where one is missing. max_context: what
    the tables should reach. tokens: int64 ids to run. layers: how many the structure is judged with.
    """

    plan: ConversionPlan
    artefact: OnnxModel
    weights: dict[str, StoredWeight | None]
    max_context: int
    tokens: Tokens
    layers: int
    options: CheckOptions
    runner: OnnxRuntime
    progress: Progress

    @property
    def files(self) -> tuple[MappedFile, ...]:
        """The artefact's and the checkpoint's."""
        held = [binding.held for binding in self.plan.bindings]
        return (*self.artefact.files, *files_of(source for source in held if source is not None))

    @property
    def is_dynamic(self) -> bool:
        """Whether the frequencies follow the context that a request declares."""
        return len(self.plan.rope.main_group.buckets) > 1

    @property
    def on_cpu_without_kernels(self) -> bool:
        """Whether the model computes in bfloat16, for which the CPU has no kernels."""
        cache = self.artefact.cache
        return self.runner.provider == "cpu" and cache is not None and cache.element == "BFLOAT16"

    @property
    def is_exact(self) -> bool:
        """Whether the model computes in float32 with float32 weights: what its copy does, it does too."""
        cache = self.artefact.cache
        exact = all(weight is not None and weight.stored.kind == "F32" for weight in self.weights.values())
        return exact and cache is not None and cache.element == "FLOAT"

    @property
    def layout(self) -> TableLayout:
        """The buckets of the scaling that is judged, and how far each reaches."""
        rope = self.plan.rope
        return lay_out_tables(rope.main_group, rope.original_context, self.max_context)
