"""An ONNX model as strangers send it: graph and tensors, checked before anything of them is believed.

Large tensors are mapped where they lie and never loaded as a whole.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from yarnconv.checkpoint.floats import NUMPY_DTYPES, to_float32
from yarnconv.checkpoint.json_files import read_bytes
from yarnconv.checkpoint.mapped_file import MappedFile
from yarnconv.checkpoint.safetensors_file import TensorRef
from yarnconv.errors import BadInput
from yarnconv.rope.tables import Float32Array
from yarnconv.targets.onnx.files import MODEL_FILE
from yarnconv.targets.onnx.operators import ROPE_CONTEXT

if TYPE_CHECKING:
    import onnx

MAXIMUM_MODEL = 2**31 - 1  # of a protobuf message
MAXIMUM_ELEMENTS = 2**48
UNCHECKED = "com.microsoft"  # a domain of which the checker knows no operator
ELEMENT_BITS = {
    "FLOAT": 32, "FLOAT16": 16, "BFLOAT16": 16, "DOUBLE": 64, "INT4": 4, "UINT4": 4,
    "FLOAT8E4M3FN": 8,
    "INT8": 8, "UINT8": 8, "INT16": 16, "UINT16": 16, "INT32": 32, "UINT32": 32, "INT64": 64, "UINT64": 64,
    "BOOL": 8,
}  # fmt: skip
FLOAT_DTYPES = {"FLOAT": "F32", "FLOAT16": "F16", "BFLOAT16": "BF16"}  # as a checkpoint calls them


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """An initialiser. element: its ONNX type's name. data: its bytes, mapped or from the graph itself."""

    name: str
    element: str
    shape: tuple[int, ...]
    data: memoryview

    def array(self) -> NDArray[np.generic]:
        """Floats in their shape, bfloat16 as its 16 bits; any other type as flat bytes. Without a copy."""
        if self.element in FLOAT_DTYPES:
            return np.frombuffer(self.data, NUMPY_DTYPES[FLOAT_DTYPES[self.element]]).reshape(self.shape)
        return np.frombuffer(self.data, np.uint8)

    def float32(self, first: int, last: int) -> Float32Array:
        """Rows first..last-1 of a float tensor."""
        rows = np.ascontiguousarray(self.array()[first:last])
        return np.asarray(to_float32(rows, FLOAT_DTYPES[self.element]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What a graph says of an input: its ONNX type's name, and its shape, symbolic dimensions by name."""

    element: str
    shape: list[int | str]


@dataclass(frozen=True, kw_only=True)
class OnnxModel:
    """An open model. tensors: its initialisers by name. files: what they are mapped from."""

    path: Path
    proto: "onnx.ModelProto"
    tensors: Mapping[str, StoredTensor]
    files: tuple[MappedFile, ...]

    @property
    def directory(self) -> Path:
        """Where the model lies."""
        return self.path.parent

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(len(tensor.data) for tensor in self.tensors.values())

    @cached_property
    def producers(self) -> "Mapping[str, onnx.NodeProto]":
        """The node that makes each value."""
        return {output: node for node in self.proto.graph.node for output in node.output if output}

    @cached_property
    def consumers(self) -> "Mapping[str, list[onnx.NodeProto]]":
        """The nodes that take each value."""
        found: dict[str, list[onnx.NodeProto]] = {}
        for node in self.proto.graph.node:
            for name in set(node.input):
                found.setdefault(name, []).append(node)
        return found

    @cached_property
    def needed(self) -> "frozenset[str]":
        """The values that some graph output is made of."""
        found: set[str] = set()
        stack = [output.name for output in self.proto.graph.output]
        while stack:
            name = stack.pop()
            if name in found:
                continue
            found.add(name)
            if (node := self.producers.get(name)) is not None:
                stack += node.input
        return frozenset(found)

    def metadata(self, key: str) -> str | None:
        """A value of metadata_props."""
        return next((p.value for p in self.proto.metadata_props if p.key == key), None)

    @cached_property
    def cache(self) -> Declared | None:
        """What the graph says of the first layer's past keys; None where it takes none."""
        from onnx import TensorProto

        types = TensorProto.DataType
        for value in self.proto.graph.input:
            if value.name == "past_key_values.0.key":
                kind = value.type.tensor_type
                return Declared(
                    element=types.Name(kind.elem_type) if kind.elem_type in types.values() else "",
                    shape=[d.dim_param if d.HasField("dim_param") else d.dim_value for d in kind.shape.dim],
                )
        return None

    @property
    def requires_context(self) -> bool:
        """Whether every request has to declare its context, as an engine's do: in a list of one. Where it is
        a scalar it should have a default.
        """
        return any(
            value.name == ROPE_CONTEXT and len(value.type.tensor_type.shape.dim) == 1
            for value in self.proto.graph.input
        )

    @property
    def last_token_only(self) -> bool:
        """Whether the graph gives fewer logits than it takes tokens."""
        names = [
            [d.dim_param for d in value.type.tensor_type.shape.dim[1:2]]
            for value in (*self.proto.graph.output, *self.proto.graph.input)
            if value.name in {"logits", "input_ids"}
        ]
        return len(names) == 2 and names[0] != names[1]

    @property
    def in_place(self) -> bool:
        """Whether the cache is a buffer of the client's, written in place."""
        return self.cache is not None and self.cache.shape[2:3] == ["kv_capacity"]


def _bad(name: str, what: str, path: Path) -> BadInput:
    return BadInput(f"{name[:200]}: {what}", where=path.name, fix="Convert or download the model again.")


def _number(text: str, name: str, path: Path) -> int:
    if not text.isdecimal() or len(text) > 18:
        raise _bad(name, f"its place in the external data is {text[:40]!r}, not a number", path)
    return int(text)


class _Files:
    """The external data files of one directory, each mapped once.

    lender: tensors by name that lie in files of somebody else's, of whom the directory holds none.
    """

    def __init__(self, path: Path, lender: Mapping[str, TensorRef]) -> None:
        self._path, self._lender = path, lender
        self.mapped: dict[str, MappedFile] = {}

    def borrowed(
        self, location: str, offset: int, name: str, element: str, shape: tuple[int, ...]
    ) -> memoryview | None:
        """The bytes of a tensor whose file is not in the directory, from who lends it: of the very place that
        the graph names.
        """
        lent = self._lender.get(name)
        if lent is None or location in self.mapped or _is_beside(self._path, location):
            return None
        place, meant = (lent.file.path.name, lent.offset), (location, offset)
        if lent.shape != shape or FLOAT_DTYPES.get(element) != lent.dtype or place != meant:
            own = f"{element} {list(shape)} at {offset} of {location[:80]}"
            other = f"{lent.dtype} {list(lent.shape)} at {lent.offset} of {lent.file.path.name}"
            raise BadInput(
                f"{name[:200]} is {own}, in the checkpoint {other}",
                where=self._path.name,
                fix="Give the checkpoint that the model was made from, its files as they were.",
            )
        return lent.file.view(lent.offset, lent.nbytes)

    def view(self, location: str, offset: int, nbytes: int, name: str) -> memoryview:
        if location in {"", ".", ".."} or any(forbidden in location for forbidden in ("/", "\\", "\0")):
            raise _bad(name, f"its data lies at {location[:80]!r}, outside the directory", self._path)
        if location not in self.mapped:
            place, own = self._path.parent / location, self._path.resolve().parent
            # links are followed where the model itself is one, as in the Hub's cache, and no further
            if place.is_symlink() and place.resolve().parent != own:
                raise _bad(name, f"its data file {location[:80]} links outside the directory", self._path)
            if not place.is_file():
                raise _bad(name, f"its data file {location[:80]} is missing", self._path)
            try:
                self.mapped[location] = MappedFile(place)
            except (OSError, ValueError) as error:
                raise _bad(name, f"its data file cannot be mapped ({error})", self._path) from None
        file = self.mapped[location]
        if offset + nbytes > file.size:
            raise _bad(
                name,
                f"its bytes {offset}..{offset + nbytes} lie outside the {file.size} bytes of {location[:80]}",
                self._path,
            )
        return file.view(offset, nbytes)

    def close(self) -> None:
        for file in self.mapped.values():
            file.close()


def _is_beside(path: Path, location: str) -> bool:
    plain = location and not any(forbidden in location for forbidden in ("/", "\\", "\0"))
    return bool(plain) and (path.parent / location).exists()


def inline_bytes(proto: "onnx.TensorProto", nbytes: int) -> memoryview | None:
    """A tensor's bytes that stand in the graph itself; None where they are not as many as its shape says."""
    from onnx import numpy_helper

    if proto.HasField("raw_data"):
        return memoryview(proto.raw_data) if len(proto.raw_data) == nbytes else None
    fields = (proto.float_data, proto.int32_data, proto.int64_data, proto.double_data, proto.uint64_data)
    if nbytes > 8 * max(map(len, fields)):
        return None
    try:
        values = np.ascontiguousarray(numpy_helper.to_array(proto))
    except (ValueError, TypeError, KeyError):
        return None
    data = values.view(np.uint8).reshape(-1)
    return memoryview(data.tobytes()) if data.nbytes == nbytes else None


def _tensor(proto: "onnx.TensorProto", files: _Files, path: Path) -> StoredTensor:
    from onnx import TensorProto

    name = proto.name
    types = TensorProto.DataType
    element = types.Name(proto.data_type) if proto.data_type in types.values() else str(proto.data_type)
    shape = tuple(proto.dims)
    if element not in ELEMENT_BITS:
        raise _bad(name, f"is of type {element}, which is not read", path)
    if any(dimension < 0 for dimension in shape) or len(shape) > 8 or prod(shape) > MAXIMUM_ELEMENTS:
        raise _bad(name, f"has the shape {list(shape)[:8]}", path)
    nbytes = -(-prod(shape) * ELEMENT_BITS[element] // 8)
    if proto.data_location == TensorProto.EXTERNAL:
        place = {entry.key: entry.value for entry in proto.external_data}
        offset = _number(place.get("offset", "0"), name, path)
        if _number(place.get("length", str(nbytes)), name, path) != nbytes:
            raise _bad(name, f"its length is not the {nbytes} bytes of its shape {list(shape)}", path)
        location = place.get("location", "")
        data = files.borrowed(location, offset, name, element, shape)
        if data is None:
            data = files.view(location, offset, nbytes, name)
    else:
        data = inline_bytes(proto, nbytes)
    if data is None:
        raise _bad(name, f"does not hold the {nbytes} bytes of its shape {list(shape)}", path)
    return StoredTensor(name=name, element=element, shape=shape, data=data)


def _is_text(model: "onnx.ModelProto") -> bool:
    """Whether every string is one: where it is not UTF-8, protobuf gives bytes instead."""
    import onnx

    stack: list[Any] = [model]
    while stack:
        message = stack.pop()
        if isinstance(message, onnx.TensorProto):  # whose fields would be copied, large ones too
            strings: list[object] = [message.name, message.doc_string]
            stack += message.external_data
        else:
            strings = []
            for field, value in message.ListFields():
                values = [value] if isinstance(value, str | bytes) or hasattr(value, "ListFields") else value
                if field.type == field.TYPE_STRING:
                    strings += values
                elif field.type == field.TYPE_MESSAGE:
                    stack += values
        if not all(isinstance(text, str) for text in strings):
            return False
    return True


def _parse(path: Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    model, fix = onnx.ModelProto(), "Give an ONNX file or its directory."
    try:
        model.ParseFromString(read_bytes(path, MAXIMUM_MODEL))
    except (DecodeError, RecursionError):
        raise BadInput("is no ONNX model", where=path.name, fix=fix) from None
    if not model.graph.node:
        raise BadInput("holds no graph", where=path.name, fix=fix)
    if not _is_text(model):
        raise BadInput("holds names that are no text", where=path.name, fix="Export the model again.")
    return model


def _check_graph(model: "onnx.ModelProto", path: Path, unknown: Collection[str]) -> None:
    """What walks the graph counts on: every node has the inputs of its kind, and no value needs itself."""
    import onnx

    # the tensors themselves were looked at; in their places stand empty ones, so that none is copied
    outline = onnx.ModelProto(ir_version=model.ir_version)
    outline.opset_import.extend(model.opset_import)
    outline.functions.extend(model.functions)
    outline.graph.name = model.graph.name
    outline.graph.node.extend(model.graph.node)
    for node in outline.graph.node:
        if node.op_type in unknown and node.domain == "":
            node.domain = UNCHECKED
    if UNCHECKED not in {opset.domain for opset in outline.opset_import}:
        outline.opset_import.add(domain=UNCHECKED, version=1)
    outline.graph.input.extend(model.graph.input)
    outline.graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        outline.graph.initializer.add(name=tensor.name, data_type=onnx.TensorProto.FLOAT, dims=[0])
    try:
        onnx.checker.check_model(outline)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        what = f"is not valid ONNX ({' '.join(str(error).split())[:300]})"
        raise BadInput(what, where=path.name, fix="Export the model again.") from None


def find_model(artefact: Path) -> Path:
    """The model file of a directory, or the file itself."""
    if artefact.is_file():
        return artefact
    found = sorted(artefact.glob("*.onnx"))
    if len(found) == 1:
        return found[0]
    if artefact / MODEL_FILE in found:
        return artefact / MODEL_FILE
    what = "there is no .onnx file in it" if not found else f"there are {len(found)} .onnx files in it"
    raise BadInput(what, where=str(artefact), fix="Give the ONNX file, or the GGUF, itself.")


def missing_files(artefact: Path) -> list[str]:
    """Data files that a model's tensors lie in and that are not beside it: it borrows those tensors."""
    path = find_model(artefact)
    tensors = _parse(path).graph.initializer
    named = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    return sorted(location for location in named if not _is_beside(path, location))


@contextmanager
def open_onnx(
    artefact: Path,
    lender: Mapping[str, TensorRef] | None = None,
    *,
    unknown: Collection[str] = frozenset(),
) -> Iterator[OnnxModel]:
    """Open a model; every tensor's place is checked, none is read.

    lender: of a model without its weights, the checkpoint's tensors by name, which stand in for those whose
    file is not in the directory. unknown: operators under the standard's name that it does not define, and
    that the caller lets be.
    """
    path = find_model(artefact)
    proto, files = _parse(path), _Files(path, lender or {})
    try:
        tensors: dict[str, StoredTensor] = {}
        for initialiser in proto.graph.initializer:
            if initialiser.name in tensors:
                raise _bad(initialiser.name, "stands twice among the tensors", path)
            tensors[initialiser.name] = _tensor(initialiser, files, path)
        _check_graph(proto, path, unknown)
        yield OnnxModel(path=path, proto=proto, tensors=tensors, files=tuple(files.mapped.values()))
    finally:
        files.close()
