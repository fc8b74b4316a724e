"""What an engine is made of: a graph, and where each of its tensors lies.

It comes from a checkpoint, whose weights are handed to the parser where they lie, or from a directory that
`yarnconv onnx --kv concat` wrote.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yarnconv.checkpoint.hub import TOKENIZER_FILES
from yarnconv.checkpoint.sources import files_of
from yarnconv.errors import BadInput
from yarnconv.model.description import ModelDescription
from yarnconv.plan import ConversionPlan
from yarnconv.progress import Advance
from yarnconv.rope.request import RopeRequest
from yarnconv.rope.writing import write_rope
from yarnconv.rope_plan import RopePlan, plan_rope, rope_facts
from yarnconv.targets.check_workflow import WORKFLOW_FILE
from yarnconv.targets.destination import kept_places
from yarnconv.targets.digest import file_digest
from yarnconv.targets.onnx.decoder import build_decoder
from yarnconv.targets.onnx.experts import cost_notes
from yarnconv.targets.onnx.external_data import data_bytes, lay_out, pieces
from yarnconv.targets.onnx.files import DATA_FILE as ONNX_DATA_FILE
from yarnconv.targets.onnx.files import TABLES_FILE
from yarnconv.targets.onnx.graph import Graph
from yarnconv.targets.onnx.operators import ROPE_CONTEXT
from yarnconv.targets.onnx.options import DTYPES, GraphOptions
from yarnconv.targets.onnx.reader import FLOAT_DTYPES, OnnxModel
from yarnconv.targets.onnx.target import graph_facts
from yarnconv.targets.onnx.weights import FLOAT_TYPES
from yarnconv.targets.output_file import write_pieces
from yarnconv.targets.record import RECORD_KEY, read_record, recorded_request
from yarnconv.targets.templates import runner_names
from yarnconv.targets.tensorrt.builder import Initialiser
from yarnconv.targets.tensorrt.engine_weights import Sought, sought_weights
from yarnconv.targets.tensorrt.files import (
    CARD_FILE,
    DATA_FILE,
    ENGINE_FILE,
    MODEL_FILE,
    SIDECAR,
    TRITON_DIRECTORY,
)
from yarnconv.targets.tensorrt.network import input_names, output_names

if TYPE_CHECKING:
    import onnx

# of what stands in an engine's directory: nothing may be written through a link of that name
OWN_NAMES = frozenset(
    {
        ENGINE_FILE,
        MODEL_FILE,
        SIDECAR,
        CARD_FILE,
        WORKFLOW_FILE,
        TRITON_DIRECTORY,
        *runner_names("tensorrt"),
        *TOKENIZER_FILES,
    }
)
OLDEST_OPSET = 23  # the first with RotaryEmbedding, Attention and RMSNormalization
FIX = "Convert the checkpoint with `yarnconv onnx --kv concat`, or give the checkpoint itself."
CACHE_TYPES = {element.name: name for name, element in FLOAT_TYPES.items()}

# Writes the graph's files into a directory, advance(bytes), by so many workers; says where the tensors lie
# that are not in the graph itself.
Writer = Callable[[Path, Advance, int], list[Initialiser]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A graph to be parsed.

    name: the model's. rope, model: what it should carry. provenance: how it was asked for. dtype: of its
    weights. max_context: positions of its tables. element: ONNX's name of the type it computes in. config:
    the model's config.json. tokenizer: directory that may hold one. weight_bytes: of all its tensors,
    made_bytes: of those that are written beside it. converts: whether TensorRT has to convert some. keeps:
    what the engine may not replace. weights: the checkpoint's, where it is at hand. notes: for the
    user.
    """

    name: str
    rope: RopePlan
    model: ModelDescription
    provenance: Mapping[str, Any]
    dtype: str
    max_context: int
    element: str
    config: Mapping[str, Any]
    tokenizer: Path
    weight_bytes: int
    made_bytes: int
    converts: bool
    last_token_only: bool
    keeps: tuple[tuple[Path, str], ...]
    weights: tuple[Sought, ...]
    notes: tuple[str, ...]
    write: Writer


# from a checkpoint


@dataclass(frozen=True, slots=True)
class _FromCheckpoint:
    plan: ConversionPlan
    options: GraphOptions
    graph: Graph

    def __call__(self, directory: Path, advance: Advance, workers: int) -> list[Initialiser]:
        graph = self.graph
        data = directory / DATA_FILE
        write_pieces(data, data_bytes(graph.tensors), pieces(graph.tensors), advance, workers)
        record = {**self.plan.provenance, "graph": graph_facts(self.plan.rope, self.options)}
        model = graph.model(DATA_FILE, {RECORD_KEY: json.dumps(record, separators=(",", ":"))})
        (directory / MODEL_FILE).write_bytes(model.SerializeToString(deterministic=True))
        sources = files_of(binding.source for binding in self.plan.bindings)
        for file in sources:
            file.forget()  # what was read for the tensors that are made
        files = {file.path.name: file.path for file in sources}
        made = [
            Initialiser(name=tensor.name, path=data, offset=offset, nbytes=tensor.nbytes)
            for tensor, offset in lay_out(graph.tensors)
        ]
        return made + [
            Initialiser(name=t.name, path=files[t.location], offset=t.offset, nbytes=t.nbytes)
            for t in graph.linked
        ]


def from_checkpoint(plan: ConversionPlan, options: GraphOptions, name: str) -> Source:
    """The source that a plan makes. Its weights stay in the checkpoint's files, also for the parser."""
    graph = build_decoder(plan, options)
    made = data_bytes(graph.tensors)
    converted = sorted({FLOAT_DTYPES[tensor.element] for tensor in graph.linked} - {options.element.dtype})
    notes = list(cost_notes(plan.description, options.element.bits))
    if converted:
        note = f"TensorRT converts the checkpoint's {' and '.join(converted)} to {options.element.dtype}"
        faster = ": the checkpoint's own --dtype builds in half the time."
        notes.append(note + (faster if options.scheme is None else ", where it is not quantised."))
    return Source(
        name=name,
        rope=plan.rope,
        model=plan.description,
        provenance=plan.provenance,
        dtype=options.dtype,
        max_context=options.max_context,
        element=options.element.name,
        config=plan.config,
        tokenizer=plan.checkpoint.directory,
        weight_bytes=made + sum(prod(t.shape) * options.element.bits // 8 for t in graph.linked),
        made_bytes=made,
        converts=bool(converted),
        last_token_only=options.last_token_only,
        keeps=tuple(kept_places(plan)),
        weights=sought_weights(plan),
        notes=tuple(notes),
        write=_FromCheckpoint(plan, options, graph),
    )


# from an ONNX directory


def _bad(path: Path, what: str, fix: str = FIX) -> BadInput:
    return BadInput(what, where=path.name, fix=fix)


def _check_form(artefact: OnnxModel, layers: int) -> None:
    """Refuse a graph that is not the concat form of a decoder."""
    opset = next((o.version for o in artefact.proto.opset_import if o.domain == ""), 0)
    if opset < OLDEST_OPSET:
        what = f"its opset {opset} is too old: RotaryEmbedding and Attention came with opset {OLDEST_OPSET}"
        raise _bad(artefact.path, what)
    found = {value.name for value in artefact.proto.graph.input} - {ROPE_CONTEXT}
    outputs = {value.name for value in artefact.proto.graph.output}
    odd = sorted((found ^ {*input_names(layers, dynamic=False)}) | (outputs ^ {*output_names(layers)}))
    if odd:
        what = f"is no decoder of {layers} layers with a cache: {odd[0][:80]} is missing, or too much"
        raise _bad(artefact.path, what)
    if artefact.in_place:
        raise _bad(artefact.path, "writes its cache in place, in buffers of a size that TensorRT wants fixed")


def _check_data(artefact: OnnxModel, record: Mapping[str, Any], workers: int) -> tuple[str, ...]:
    """Refuse external data that is not what was written; a note where that cannot be told."""
    recorded = record.get("data_digest")
    if not isinstance(recorded, str):
        return ("The ONNX model records no digest of its data: whether that was altered is not known.",)
    data = artefact.directory / ONNX_DATA_FILE
    # every row of the tables is read back from the parsed network, wherever they lie
    others = sorted({file.path.name for file in artefact.files} - {ONNX_DATA_FILE, TABLES_FILE})
    if not data.is_file() or file_digest(data, workers) != recorded:
        raise BadInput(
            "is not the file that was written with the model: its digest is another",
            where=data.name,
            fix="Convert or download the model again.",
        )
    if others:
        said = "no digest of it is recorded: whether it was altered is not known"
        return (f"Weights lie in {', '.join(others)}; {said}.",)
    return ()


def _form(record: Mapping[str, Any], rope: RopePlan, path: Path) -> tuple[str, int]:
    """(dtype, positions of the tables) as recorded."""
    graph = record.get("graph")
    dtype, context = (graph.get(key) if isinstance(graph, dict) else None for key in ("dtype", "max_context"))
    if isinstance(context, int) and 1 <= context <= rope.target_context and dtype in DTYPES:
        return str(dtype), int(context)
    raise _bad(path, "its record does not say of which type it is, or how long its tables are")


@dataclass(frozen=True, slots=True)
class _FromOnnx:
    artefact: OnnxModel

    def __call__(self, directory: Path, advance: Advance, workers: int) -> list[Initialiser]:
        """The same graph, but every request has to declare its context. Its data files are hard-linked beside
        it, where that can be done.
        """
        import onnx

        model = onnx.ModelProto()
        model.CopyFrom(self.artefact.proto)
        _require_context(model.graph)
        (directory / MODEL_FILE).write_bytes(model.SerializeToString(deterministic=True))
        found = []
        for tensor in model.graph.initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                continue
            place = {entry.key: entry.value for entry in tensor.external_data}
            path = self.artefact.directory / place["location"]
            nbytes = len(self.artefact.tensors[tensor.name].data)
            found.append(
                Initialiser(name=tensor.name, path=path, offset=int(place.get("offset", "0")), nbytes=nbytes)
            )
        for path in {one.path for one in found}:
            if path.name in OWN_NAMES:
                raise _bad(self.artefact.path, f"its data file has the name {path.name}, which is taken here")
            try:
                (directory / path.name).hardlink_to(path.resolve())
            except OSError:
                continue  # another file system: `check` says then that it is missing
        return found


def _require_context(graph: "onnx.GraphProto") -> None:
    """Make the declared context an input like any other, of one dimension: TensorRT takes a default for a
    constant, and Triton no scalars.
    """
    kept = [tensor for tensor in graph.initializer if tensor.name != ROPE_CONTEXT]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for declared in graph.input:
        shape = declared.type.tensor_type.shape
        if declared.name == ROPE_CONTEXT and not shape.dim:
            shape.dim.add().dim_value = 1
    for node in graph.node:
        if node.op_type == "Unsqueeze" and node.input[0] == ROPE_CONTEXT:  # it has the dimension now
            node.op_type = "Identity"
            del node.input[1:]


def from_onnx(artefact: OnnxModel, request: RopeRequest, workers: int) -> Source:
    """The source that an ONNX directory of ours is. Raises BadInput where it is none, or was altered."""
    recorded = artefact.metadata(RECORD_KEY)
    if recorded is None:
        raise _bad(artefact.path, "does not say which plan it carries: yarnconv did not write it")
    if request.asks_for_something:
        what = "the model's tables are made already; the rope options come too late"
        raise BadInput(what, where=artefact.path.name, fix="Leave them out, or give the checkpoint.")
    record = read_record(recorded)
    config = record.get("config")
    own = recorded_request(recorded)
    if not isinstance(config, dict) or own is None:
        raise _bad(artefact.path, "its record holds no model configuration: it is of an older yarnconv")
    rope, model, _ = plan_rope(config, own)
    dtype, max_context = _form(record, rope, artefact.path)
    _check_form(artefact, len(model.layers))
    notes = _check_data(artefact, record, workers)
    element = artefact.cache.element if artefact.cache is not None else ""
    if element not in CACHE_TYPES:
        raise _bad(artefact.path, f"keeps its cache in {element or 'no type'}")
    return Source(
        name=artefact.directory.resolve().name,
        rope=rope,
        model=model,
        provenance={
            "yarnconv_version": record.get("yarnconv_version"),
            "rope_options": own.given,
            "rope_parameters": write_rope(rope.main),
            **rope_facts(rope, with_tables=False),
        },
        dtype=dtype,
        max_context=max_context,
        element=element,
        config=config,
        tokenizer=artefact.directory,
        weight_bytes=artefact.nbytes,
        made_bytes=0,
        converts=False,
        last_token_only=artefact.last_token_only,
        keeps=((artefact.directory, "the ONNX model"),),
        weights=(),
        notes=notes,
        write=_FromOnnx(artefact),
    )
