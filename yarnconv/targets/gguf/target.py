"""The GGUF target: what it refuses, and how a plan becomes a file."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Literal, get_args

from yarnconv.artifact import check_free_space
from yarnconv.checkpoint.codes import Mxfp4Tensor
from yarnconv.checkpoint.hub import model_name
from yarnconv.checkpoint.tokenizer import read_tokenizer
from yarnconv.errors import one_of
from yarnconv.plan import ConversionPlan
from yarnconv.progress import Advance
from yarnconv.rope.tables import Float32Array
from yarnconv.targets.beside import FileBeside
from yarnconv.targets.gguf.blocks import SOURCE_TYPES
from yarnconv.targets.gguf.file_format import BLOCKS, Metadata, TensorType
from yarnconv.targets.gguf.float_copy import EXPERT_TENSOR
from yarnconv.targets.gguf.launch import key_shift_warning
from yarnconv.targets.gguf.layered_rope import layered_encodings
from yarnconv.targets.gguf.metadata import write_general, write_model, write_provenance
from yarnconv.targets.gguf.output import published
from yarnconv.targets.gguf.placement import TensorPlacement, made_tensors, placements
from yarnconv.targets.gguf.refusals import runtime_of, runtimes_of, structure_refusals
from yarnconv.targets.gguf.rope import RopeEncoding
from yarnconv.targets.gguf.runtime import RuntimeArchitecture
from yarnconv.targets.gguf.split import SplitPart, check_count
from yarnconv.targets.gguf.vocabulary import write_vocabulary
from yarnconv.targets.gguf.writer import (
    OutputFile,
    OutputTensor,
    lay_out,
    write_file,
)

OWN_FILE = "a file of the checkpoint itself"
OutType = Literal["auto", "f32", "f16", "bf16", "q8_0"]


def parse_outtype(text: str) -> OutType:
    """The `--outtype` of that name."""
    return one_of(text, get_args(OutType), "--outtype")


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufOptions:
    """pre: llama.cpp's pre-tokenizer, None to recognise it. split_max_size: bytes per file. keeps_codes:
    whether codes that llama.cpp has a type for stay what they are; its quantiser takes none.
    """

    outtype: OutType = "auto"
    pre: str | None = None
    split_max_size: int | None = None
    keeps_codes: bool = True
    workers: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufJob:
    """Everything that is to be written, laid out; nothing has touched the disk yet.

    files: the whole model's. only: the number of the one that is written, counted from 1; None: all are.
    """

    files: tuple[OutputFile, ...]
    file_type: TensorType
    rope: RopeEncoding
    notes: tuple[str, ...]
    only: int | None = None

    @property
    def written(self) -> tuple[OutputFile, ...]:
        """The files that are written."""
        return self.files if self.only is None else (self.files[self.only - 1],)

    @property
    def nbytes(self) -> int:
        """Bytes of them."""
        return sum(file.size for file in self.written)

    def part(self, part: SplitPart) -> "GgufJob":
        """The job of one file. Raises BadInput where the plan gives another number of them."""
        check_count(part, len(self.files))
        return replace(self, only=part.number)


# that stay in float32 whatever is asked: a router decides between experts, and is small
IN_FLOAT32 = frozenset({"router", "shared_router"})
# in which codes of four bits stay what they are: eight bits would say no more
KEEP_MXFP4 = frozenset({"auto", "q8_0"})


def _tensor_type(placement: TensorPlacement, options: GgufOptions) -> TensorType:
    # llama.cpp computes with norms and biases in float32 and wants them stored so.
    source = placement.binding.source
    if placement.is_column or placement.binding.expected.role in IN_FLOAT32:
        return TensorType.F32
    outtype = options.outtype
    if isinstance(source, Mxfp4Tensor) and options.keeps_codes and outtype in KEEP_MXFP4:
        return TensorType.MXFP4
    if outtype == "auto" and source.refs[0].dtype == "F8_E4M3":
        return TensorType.BF16  # which such models are computed in; float32 would be four times the codes
    if outtype == "auto":
        return SOURCE_TYPES[source.dtype]
    return TensorType[outtype.upper()]


def _output_tensors(
    plan: ConversionPlan, runtime: RuntimeArchitecture, options: GgufOptions
) -> tuple[list[OutputTensor], list[str]]:
    tensors, widened = [], []
    for placement in placements(plan, runtime):
        tensor = OutputTensor(
            name=placement.name,
            shape=placement.shape,
            tensor_type=_tensor_type(placement, options),
            source=placement.source,
            interleave_heads=placement.interleave_heads,
            added=placement.added,
        )
        if tensor.shape[-1] % BLOCKS[tensor.tensor_type][0]:
            tensor = replace(tensor, tensor_type=TensorType.F16)
            widened.append(tensor.name)
        tensors.append(tensor)
    notes = []
    if widened:
        notes.append(
            f"{len(widened)} tensors stay f16: their rows do not divide into blocks of 32 "
            f"({widened[0]}, ...)."
        )
    return tensors, notes


def _architecture_note(plan: ConversionPlan, runtime: RuntimeArchitecture) -> list[str]:
    """That it is not the architecture one would look for, and why."""
    usual = runtimes_of(plan)[0]
    if runtime.name == usual.name:
        return []
    why = structure_refusals(plan, usual)[0].what
    return [
        f"The file is of llama.cpp's architecture {runtime.name}, which computes exactly this model: {why}. "
        f"A llama.cpp too old to know {runtime.name} does not load it."
    ]


def _file_type(tensors: list[OutputTensor]) -> TensorType:
    """The type of most of the weights."""
    values: Counter[TensorType] = Counter()
    for tensor in tensors:
        if len(tensor.shape) > 1:
            values[tensor.tensor_type] += prod(tensor.shape)
    return values.most_common(1)[0][0]


def _made(named: tuple[str, Float32Array]) -> OutputTensor:
    """A tensor of values that no checkpoint holds."""
    name, values = named
    return OutputTensor(name=name, shape=values.shape, tensor_type=TensorType.F32, source=values)


def prepare(plan: ConversionPlan, options: GgufOptions) -> GgufJob:
    """Lay out everything that will be written. Raises the first refusal; writes nothing."""
    runtime = runtime_of(plan)
    if found := structure_refusals(plan, runtime):
        raise found[0]
    rope = layered_encodings(plan, runtime)[0]
    tensors, notes = _output_tensors(plan, runtime, options)
    notes = [*_architecture_note(plan, runtime), *notes]
    file_type = _file_type(tensors)
    parameters = sum(prod(tensor.shape) for tensor in tensors)
    of_experts = sum(prod(t.shape) for t in tensors if EXPERT_TENSOR.fullmatch(t.name) and len(t.shape) > 2)
    made = {tensor.name: tensor.values for tensor in made_tensors(plan, runtime)}
    tensors = [*map(_made, rope.tensors.items()), *tensors, *map(_made, made.items())]
    if rope.note is not None:
        notes.append(rope.note)
    if plan.departure is not None:
        notes.append(plan.departure.said)
    if (warning := key_shift_warning(plan.rope)) is not None:
        notes.append(warning)
    metadata = Metadata()
    write_general(metadata, plan, runtime, file_type, parameters, of_experts)
    write_model(metadata, plan, runtime, rope)
    write_vocabulary(
        metadata,
        read_tokenizer(plan.checkpoint.directory),
        plan.config,
        pre=options.pre,
        space_prefix_key=plan.family.gguf.add_space_prefix_key,
    )
    write_provenance(metadata, plan)
    return GgufJob(
        files=tuple(lay_out(metadata, tensors, options.split_max_size)),
        file_type=file_type,
        rope=rope,
        notes=tuple(notes),
    )


def default_name(plan: ConversionPlan, kind: str) -> str:
    """A file name that says what it is: the model, the extension, the type of its weights."""
    return f"{model_name(plan.checkpoint.directory)}{plan.rope.suffix}-{kind.upper()}.gguf"


def checkpoint_files(plan: ConversionPlan) -> set[Path]:
    """The files that the plan's weights lie in, resolved."""
    return {ref.file.path.resolve() for ref in plan.checkpoint.tensors.values()}


def emit(
    plan: ConversionPlan,
    job: GgufJob,
    destination: Path,
    options: GgufOptions,
    advance: Advance,
    beside: Sequence[FileBeside] = (),
) -> list[Path]:
    """Write the job's files and those beside them; all of them appear, or none. Returns their paths."""
    sources, count = checkpoint_files(plan), len(job.files)
    with published(destination, count, sources, OWN_FILE, beside, job.only) as place:
        check_free_space(destination, job.nbytes)
        for path, file in zip(place.temporary, job.written, strict=True):
            write_file(path, file, advance, options.workers)
    return place.files
