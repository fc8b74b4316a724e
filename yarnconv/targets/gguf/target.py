"""The GGUF target: what it refuses, and how a plan becomes a file."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Literal, get_args

from yarnconv.artifact import check_free_space
from yarnconv.checkpoint.hub import model_name
from yarnconv.checkpoint.tokenizer import read_tokenizer
from yarnconv.errors import Inexpressible, one_of
from yarnconv.plan import ConversionPlan, TensorBinding
from yarnconv.progress import Advance
from yarnconv.targets.beside import FileBeside
from yarnconv.targets.gguf.blocks import SOURCE_TYPES
from yarnconv.targets.gguf.file_format import BLOCKS, Metadata, TensorType
from yarnconv.targets.gguf.launch import key_shift_warning
from yarnconv.targets.gguf.metadata import write_general, write_model, write_provenance
from yarnconv.targets.gguf.output import published
from yarnconv.targets.gguf.placement import placements
from yarnconv.targets.gguf.rope import ROPE_FREQS, RopeEncoding, encode_rope
from yarnconv.targets.gguf.rope_keys import rope_keys
from yarnconv.targets.gguf.runtime import runtime_of
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
    """pre: llama.cpp's pre-tokenizer, None to recognise it. split_max_size: bytes per file."""

    outtype: OutType = "auto"
    pre: str | None = None
    split_max_size: int | None = None
    workers: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufJob:
    """Everything that is to be written, laid out; nothing has touched the disk yet."""

    files: tuple[OutputFile, ...]
    file_type: TensorType
    rope: RopeEncoding
    notes: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def structure_refusals(plan: ConversionPlan) -> list[Inexpressible]:
    """What of the model's structure llama.cpp would not compute."""
    runtime, model = runtime_of(plan), plan.description
    found = []

    def refuse(condition: bool, what: str, where: str, fix: str | None = None) -> None:
        if condition:
            found.append(Inexpressible(what, where=where, fix=fix))

    windows = [x.attention.window for x in model.layers if x.attention.window is not None]
    narrow = [w for w in windows if w < plan.rope.target_context]
    refuse(
        bool(narrow) and not runtime.sliding_window,
        f"{len(narrow)} layers look back over {min(narrow, default=0)} positions only, the context has "
        f"{plan.rope.target_context}, and llama.cpp's {runtime.name} architecture reads no window",
        "config.json: sliding_window",
        "Convert without a window only if you mean to: set it to null in config.json.",
    )
    attention, mlp = model.layers[0].attention, model.layers[0].mlp
    refuse(
        attention.output_bias and not runtime.output_bias,
        f"llama.cpp's {runtime.name} architecture loads no bias of the attention output",
        "config.json: attention_bias",
    )
    refuse(
        mlp.bias and not runtime.mlp_bias,
        f"llama.cpp's {runtime.name} architecture loads no bias of the MLP",
        "config.json: mlp_bias",
    )
    refuse(
        mlp.activation != runtime.activation,
        f"llama.cpp's {runtime.name} architecture computes {runtime.activation}, not {mlp.activation}",
        "config.json: hidden_act",
    )
    refuse(
        attention.heads * attention.head_dim != model.hidden_size and not runtime.head_size_free,
        f"llama.cpp's {runtime.name} architecture wants the heads to span the hidden size of "
        f"{model.hidden_size}, not {attention.heads * attention.head_dim}",
        "config.json: head_dim",
    )
    refuse(
        plan.rope.main.rotary_dim != attention.head_dim,
        f"llama.cpp's {runtime.name} architecture rotates whole heads of {attention.head_dim}, not "
        f"{plan.rope.main.rotary_dim} dimensions of them",
        "config.json: partial_rotary_factor",
    )
    return found


def _tensor_type(binding: TensorBinding, outtype: OutType) -> TensorType:
    # llama.cpp computes with norms and biases in float32 and wants them stored so.
    if len(binding.expected.shape) == 1:
        return TensorType.F32
    return SOURCE_TYPES[binding.source.dtype] if outtype == "auto" else TensorType[outtype.upper()]


def _output_tensors(plan: ConversionPlan, options: GgufOptions) -> tuple[list[OutputTensor], list[str]]:
    tensors, widened = [], []
    for placement in placements(plan):
        expected = placement.binding.expected
        tensor = OutputTensor(
            name=placement.name,
            shape=expected.shape,
            tensor_type=_tensor_type(placement.binding, options.outtype),
            source=placement.binding.source,
            interleave_heads=placement.interleave_heads,
        )
        if expected.shape[-1] % BLOCKS[tensor.tensor_type][0]:
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


def _file_type(tensors: list[OutputTensor]) -> TensorType:
    """The type of most of the weights."""
    values: Counter[TensorType] = Counter()
    for tensor in tensors:
        if len(tensor.shape) > 1:
            values[tensor.tensor_type] += prod(tensor.shape)
    return values.most_common(1)[0][0]


def prepare(plan: ConversionPlan, options: GgufOptions) -> GgufJob:
    """Lay out everything that will be written. Raises the first refusal; writes nothing."""
    if found := structure_refusals(plan):
        raise found[0]
    rope = encode_rope(plan.rope, rope_keys(runtime_of(plan).name))
    tensors, notes = _output_tensors(plan, options)
    file_type = _file_type(tensors)
    parameters = sum(prod(tensor.shape) for tensor in tensors)
    if rope.rope_freqs is not None:
        divisors = OutputTensor(
            name=ROPE_FREQS,
            shape=rope.rope_freqs.shape,
            tensor_type=TensorType.F32,
            source=rope.rope_freqs,
        )
        tensors.insert(0, divisors)
    if rope.note is not None:
        notes.append(rope.note)
    if (warning := key_shift_warning(plan.rope)) is not None:
        notes.append(warning)
    metadata = Metadata()
    write_general(metadata, plan, file_type, parameters)
    write_model(metadata, plan, rope)
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
    with published(destination, count, sources, OWN_FILE, beside) as place:
        check_free_space(destination, job.nbytes)
        for path, file in zip(place.temporary, job.files, strict=True):
            write_file(path, file, advance, options.workers)
    return place.files
