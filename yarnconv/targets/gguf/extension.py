"""An existing GGUF with another plan: new metadata (and divisors, where the plan needs them), the same tensor
data, copied by the kernel.

The header is padded so that tensor data stands at the same place within 64 KiB as before. A kernel copies
what its page cache holds in pieces of up to that size (2.47 GB: 0.64 s, at another place 0.92 s), and a file
system that shares blocks between files copies nothing at all.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from yarnconv import __version__
from yarnconv.artifact import check_free_space
from yarnconv.errors import BadInput, Inexpressible
from yarnconv.progress import Advance
from yarnconv.rope.request import RopeRequest
from yarnconv.rope.resolve import request_of
from yarnconv.rope_plan import RopePlan, provenance
from yarnconv.targets.beside import FileBeside
from yarnconv.targets.copying import BLOCK, copy_range, reserve, share_range, write_all
from yarnconv.targets.gguf.file_format import (
    Metadata,
    TensorInfo,
    TensorType,
    align,
    pack_header,
)
from yarnconv.targets.gguf.launch import key_shift_warning
from yarnconv.targets.gguf.output import published, stem_of
from yarnconv.targets.gguf.reader import GgufFile, GgufPart
from yarnconv.targets.gguf.rope import ROPE_FREQS, RopeEncoding, encode_rope
from yarnconv.targets.gguf.rope_keys import RopeKeys
from yarnconv.targets.gguf.rope_reading import read_encoding
from yarnconv.targets.record import RECORD_KEY

PLACE = 2**16  # bytes
# what a plan says anew, or no longer; other keys under rope.scaling are not its business
_SCALING_KEYS = (
    *("type", "factor", "original_context_length", "attn_factor", "finetuned", "yarn_ext_factor"),
    *("yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow", "yarn_log_multiplier"),
)


@dataclass(frozen=True, slots=True)
class CopiedRange:
    """Bytes of the source's file that stand at `target` in the new one."""

    source: int
    target: int
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtendedFile:
    """One file to write. added: bytes that are not the source's, and where."""

    part: GgufPart
    header: bytes
    ranges: tuple[CopiedRange, ...]
    added: tuple[tuple[int, bytes], ...]
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtensionJob:
    """Everything that is to be written; nothing has touched the disk yet. kind: the type of most weights."""

    plan: RopePlan
    encoding: RopeEncoding
    files: tuple[ExtendedFile, ...]
    kind: str
    notes: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def _keeping_original(artefact: GgufFile, encoding: RopeEncoding, keys: RopeKeys) -> RopeEncoding:
    """With the key that a temperature by position counts from, whether the method needs it or not: left out,
    it would be the new context.
    """
    name = artefact.architecture
    if not keys.counts_from_original or not artefact.scalar(
        f"{name}.attention.temperature_scale", float, 0.0
    ):
        return encoding
    original = read_encoding(artefact, keys).original_context_length
    if encoding.original_context_length not in {None, original}:
        raise Inexpressible(
            f"its temperature by position counts from the original context of {original} too, and one key "
            "says both",
            where=f"{name}.rope.scaling.original_context_length",
            fix=f"Give no --original-context, or {original}.",
        )
    return replace(encoding, original_context_length=original)


def _metadata(artefact: GgufFile, plan: RopePlan, encoding: RopeEncoding, keys: RopeKeys) -> Metadata:
    """The source's keys in their order, those of the plan anew."""
    name = artefact.architecture
    new = Metadata()
    new.uint32(f"{name}.context_length", plan.target_context)
    encoding.write(new, name, None if keys.finetuned_is_switch else plan.finetuned)
    new.string("yarnconv.version", __version__)
    record = provenance(request_of(plan.main), plan)
    new.string(RECORD_KEY, json.dumps(record, separators=(",", ":")))
    dropped = {f"{name}.rope.scale_linear", *(f"{name}.rope.scaling.{key}" for key in _SCALING_KEYS)}
    if keys.sliding == "alike":
        dropped.add(f"{name}.rope.freq_base_swa")  # left out, it is freq_base
    if keys.finetuned_is_switch:
        dropped.discard(f"{name}.rope.scaling.finetuned")
    kept = {key: value for key, value in artefact.packed.items() if key not in dropped - new.packed.keys()}
    return Metadata(packed=kept | new.packed)


def _padded(metadata: Metadata, count: int) -> Metadata:
    """With `count` bytes more: blanks behind the record, which is JSON."""
    padded = Metadata(packed=dict(metadata.packed))
    record = metadata.packed[RECORD_KEY][12:].decode()  # behind its type and its length
    padded.string(RECORD_KEY, record + " " * count)
    return padded


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """Where a file's tensors stand, from the start of its data. moved: (source, offset, bytes), in order."""

    infos: tuple[TensorInfo, ...]
    moved: tuple[tuple[int, int, int], ...]
    added: tuple[tuple[int, bytes], ...]
    size: int


def _lay_out(part: GgufPart, encoding: RopeEncoding | None) -> _Layout:
    """encoding: of the file that holds the divisors, where the plan has some."""
    infos, moved, added, offset = [], [], [], 0
    for tensor in sorted(part.tensors.values(), key=lambda tensor: tensor.offset):
        if tensor.name == ROPE_FREQS:
            continue
        info = TensorInfo(name=tensor.name, shape=tensor.shape, tensor_type=tensor.tensor_type, offset=offset)
        infos.append(info)
        moved.append((tensor.offset, offset, tensor.nbytes))
        offset += align(tensor.nbytes, part.alignment)
    if encoding is not None and encoding.rope_freqs is not None:
        data = encoding.rope_freqs.astype("<f4").tobytes()
        shape = encoding.rope_freqs.shape
        infos.append(TensorInfo(name=ROPE_FREQS, shape=shape, tensor_type=TensorType.F32, offset=offset))
        added.append((offset, data))
        offset += align(len(data), part.alignment)
    return _Layout(infos=tuple(infos), moved=tuple(moved), added=tuple(added), size=offset)


def _joined(moved: Sequence[tuple[int, int, int]], start: int) -> tuple[CopiedRange, ...]:
    """Neighbours that move by the same distance as one range. start: of the new file's data."""
    ranges: list[CopiedRange] = []
    for source, offset, nbytes in moved:
        last = ranges[-1] if ranges else None
        target = start + offset
        if last is not None and target - source == last.target - last.source:
            ranges[-1] = replace(last, nbytes=source + nbytes - last.source)
        else:
            ranges.append(CopiedRange(source=source, target=target, nbytes=nbytes))
    return tuple(ranges)


def _padding(header: int, layout: _Layout, alignment: int) -> int:
    """Bytes to put into a header so that the longest range keeps its place within a page."""
    ranges = _joined(layout.moved, header)
    if not ranges or PLACE % alignment:
        return 0
    longest = max(ranges, key=lambda one: one.nbytes)
    return (longest.source - longest.target) % PLACE


def _extended_file(part: GgufPart, metadata: Metadata, layout: _Layout, *, padded: bool) -> ExtendedFile:
    def header_of(of: Metadata) -> bytes:
        return pack_header(of, layout.infos, part.alignment)

    header = header_of(metadata)
    if padded and (padding := _padding(len(header), layout, part.alignment)):
        header = header_of(_padded(metadata, padding))
    return ExtendedFile(
        part=part,
        header=header,
        ranges=_joined(layout.moved, len(header)),
        added=tuple((len(header) + offset, data) for offset, data in layout.added),
        size=len(header) + layout.size,
    )


def check_extension(artefact: GgufFile, request: RopeRequest) -> None:
    """Raise BadInput where there is nothing to ask or nothing to extend."""
    if not request.asks_for_something:
        raise BadInput(
            "nothing is asked for that would change the file",
            where="rope options",
            fix="Give --factor or --target-context (`yarnconv inspect` shows what it carries).",
        )
    if not artefact.tensors:
        raise BadInput("holds no tensors", where=artefact.path.name)


def prepare_extension(artefact: GgufFile, plan: RopePlan, keys: RopeKeys) -> ExtensionJob:
    """Lay out the files. Raises Inexpressible where the file's architecture cannot be told the plan."""
    encoding = _keeping_original(artefact, encode_rope(plan, keys), keys)
    layouts = [_lay_out(part, None if number else encoding) for number, part in enumerate(artefact.parts)]
    count = sum(len(layout.infos) for layout in layouts)
    files = []
    for number, (part, layout) in enumerate(zip(artefact.parts, layouts, strict=True)):
        own = Metadata(packed=dict(part.packed)) if number else _metadata(artefact, plan, encoding, keys)
        if "split.tensors.count" in own.packed:
            own.int32("split.tensors.count", count)
        files.append(_extended_file(part, own, layout, padded=number == 0))
    return ExtensionJob(
        plan=plan,
        encoding=encoding,
        files=tuple(files),
        kind=artefact.weight_type.lower(),
        notes=tuple(note for note in (encoding.note, key_shift_warning(plan)) if note is not None),
    )


def default_name(artefact: GgufFile, plan: RopePlan) -> str:
    """The source's name and what was done to it."""
    stem = stem_of(artefact.path)
    if len(artefact.parts) > 1:
        stem = stem.rpartition("-of-")[0].rpartition("-")[0]
    return f"{stem}{plan.suffix or '-plain'}.gguf"


def _share(file: ExtendedFile, descriptor: int, advance: Advance) -> list[CopiedRange]:
    """Share what can be shared; what is left to copy."""
    left = []
    for one in file.ranges:
        shared = share_range(file.part.file.descriptor, one.source, descriptor, one.target, one.nbytes)
        before = -one.source % BLOCK if shared else 0
        behind = before + shared
        left.append(replace(one, nbytes=before))
        left.append(CopiedRange(one.source + behind, one.target + behind, one.nbytes - behind))
        advance(shared)
    return [one for one in left if one.nbytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class _OpenFile:
    """A file that is being written. left: what could not be shared."""

    file: ExtendedFile
    descriptor: int
    left: Sequence[CopiedRange]

    @property
    def nbytes(self) -> int:
        """Bytes that are still to be written."""
        copied = sum(one.nbytes for one in self.left)
        return copied + len(self.file.header) + sum(len(data) for _, data in self.file.added)

    def fill(self, advance: Advance) -> None:
        """Copy and write what was not shared."""
        source = self.file.part.file
        if self.nbytes > self.file.size // 2:
            reserve(self.descriptor, self.file.size)
        for one in self.left:
            copy_range(
                source.descriptor,
                one.source,
                self.descriptor,
                one.target,
                one.nbytes,
                advance,
                name=source.path.name,
            )
        for offset, data in (*self.file.added, (0, self.file.header)):
            write_all(self.descriptor, data, offset)
        os.truncate(self.descriptor, self.file.size)  # the last tensor's padding


@contextmanager
def _opened(path: Path, file: ExtendedFile, advance: Advance) -> Iterator[_OpenFile]:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666)
    try:
        yield _OpenFile(file=file, descriptor=descriptor, left=_share(file, descriptor, advance))
    finally:
        os.close(descriptor)


def emit_extension(
    job: ExtensionJob, destination: Path, advance: Advance, beside: Sequence[FileBeside] = ()
) -> list[Path]:
    """Write the job's files and those beside them; all of them appear, or none. Returns their paths.

    Raises BadInput for a destination that is the source or no GGUF, and where there is no room.
    """
    sources = {file.part.file.path.resolve() for file in job.files}
    count = len(job.files)
    with published(destination, count, sources, "the source itself", beside) as place, ExitStack() as stack:
        files = [
            stack.enter_context(_opened(path, file, advance))
            for path, file in zip(place.temporary, job.files, strict=True)
        ]
        needed = sum(file.nbytes for file in files)
        check_free_space(destination, needed, "Free some space, or write elsewhere with -o.")
        for file in files:
            file.fill(advance)
    return place.files
