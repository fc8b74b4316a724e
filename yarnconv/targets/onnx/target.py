"""The ONNX target: what it refuses, and how a plan becomes a directory that ONNX Runtime loads."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np

from yarnconv.artifact import check_free_space, staged_directory
from yarnconv.checkpoint.hub import model_name
from yarnconv.errors import BadInput, Inexpressible
from yarnconv.plan import ConversionPlan, TensorBinding
from yarnconv.progress import Advance
from yarnconv.rope.scaling import LongRope, method_name
from yarnconv.targets.onnx.card import CARD_FILE, RUNNER_FILE, model_card
from yarnconv.targets.onnx.decoder import GraphOptions, build_decoder
from yarnconv.targets.onnx.genai import CONFIG_FILE, copy_tokenizer, genai_config
from yarnconv.targets.onnx.graph import ExternalTensor, Graph
from yarnconv.targets.onnx.operators import KvForm
from yarnconv.targets.onnx.rope import lay_out_tables
from yarnconv.targets.onnx.weights import FLOAT_TYPES, INT4_BLOCK, quantises
from yarnconv.targets.output_file import Buffer, Output, Piece, write_pieces
from yarnconv.targets.templates import verbatim

MODEL_FILE, DATA_FILE = "model.onnx", "model.onnx.data"
DTYPES = (*FLOAT_TYPES, "int4")
ACTIVATIONS = frozenset({"silu"})  # that the block builder has nodes for
HEADROOM_BYTES = 2**24  # of a graph without its tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxOptions:
    """max_context: positions of the tables, None for the plan's target context. replace: whether an existing
    destination gives way.
    """

    dtype: str = "fp32"
    kv: KvForm = "in-place"
    max_context: int | None = None
    last_token_only: bool = False
    replace: bool = False
    workers: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxJob:
    """A graph that is ready to be written; nothing has touched the disk yet."""

    graph: Graph
    options: GraphOptions
    notes: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the data file."""
        return max((offset + tensor.nbytes for tensor, offset in self.graph.layout()), default=0)


def parse_kv(text: str) -> KvForm:
    """The `--kv` of that name."""
    known: tuple[KvForm, ...] = get_args(KvForm)
    for form in known:
        if text == form:
            return form
    raise BadInput(f"{text!r} is no form of the cache", where="--kv", fix=f"Choose {' or '.join(known)}.")


def refusals(plan: ConversionPlan, options: OnnxOptions) -> list[Inexpressible]:
    """What of a plan the graph cannot say."""
    unknown = {layer.mlp.activation for layer in plan.description.layers} - ACTIVATIONS
    found = [
        Inexpressible(
            f"the graph has no nodes for the activation {activation}",
            where="config.json: hidden_act",
            fix=f"Known: {', '.join(sorted(ACTIVATIONS))}.",
        )
        for activation in sorted(unknown)
    ]
    if any(isinstance(group.scaling, LongRope) for group in plan.rope.groups):
        found.append(
            Inexpressible(
                "longrope's two sets of frequencies switch with the length of the sequence",
                where="method longrope",
                fix="Give another --method, such as dynamic-yarn with --factor.",
            )
        )
    return found


def _layer_matrices(plan: ConversionPlan) -> list[TensorBinding]:
    return [b for b in plan.bindings if b.expected.layer is not None and len(b.source.shape) == 2]


def _notes(plan: ConversionPlan, options: GraphOptions) -> tuple[str, ...]:
    whole = [b.expected.name for b in _layer_matrices(plan) if not quantises(b.source.shape)]
    if options.dtype != "int4" or not whole:
        return ()
    return (f"{len(whole)} matrices stay fp32: they do not divide into blocks ({whole[0]}, ...).",)


def _check_destination(plan: ConversionPlan, destination: Path) -> None:
    """Refuse a destination that replacing would cost more than an older artefact."""
    if destination.exists() and not destination.is_dir():
        raise BadInput("the destination is no directory", where=str(destination), fix="Give another -o.")
    resolved = destination.resolve()
    for kept, what in ((plan.checkpoint.directory, "the checkpoint"), (Path(), "the working directory")):
        if kept.resolve().is_relative_to(resolved):
            raise BadInput(f"the destination holds {what}", where=str(destination), fix="Give another -o.")


def _graph_options(plan: ConversionPlan, options: OnnxOptions) -> GraphOptions:
    if options.dtype not in DTYPES:
        raise BadInput(
            f"{options.dtype!r} is no type this writes", where="--dtype", fix=f"Choose {', '.join(DTYPES)}."
        )
    target = plan.rope.target_context
    wanted = target if options.max_context is None else options.max_context
    if not 1 <= wanted <= target:
        raise BadInput(
            f"{wanted} is not between 1 and the plan's target context of {target}",
            where="--max-context",
            fix="Lower it, or extend further with --factor.",
        )
    matrices = _layer_matrices(plan)
    if options.dtype == "int4" and not any(quantises(binding.source.shape) for binding in matrices):
        first = matrices[0]
        raise BadInput(
            f"not one matrix divides into blocks of {INT4_BLOCK}, such as {first.expected.name} of shape "
            f"{list(first.source.shape)}",
            where="--dtype int4",
            fix="Choose another --dtype.",
        )
    return GraphOptions(
        dtype=options.dtype, kv=options.kv, max_context=wanted, last_token_only=options.last_token_only
    )


def prepare(plan: ConversionPlan, options: OnnxOptions) -> OnnxJob:
    """Build the graph. Raises the first refusal; writes nothing."""
    if found := refusals(plan, options):
        raise found[0]
    graph_options = _graph_options(plan, options)
    return OnnxJob(
        graph=build_decoder(plan, graph_options), options=graph_options, notes=_notes(plan, graph_options)
    )


def default_name(plan: ConversionPlan, options: OnnxOptions) -> str:
    """A directory name that says what it holds."""
    scaling, longest = plan.rope.main, plan.rope.main_group.buckets[-1]
    extension = "" if longest.factor == 1.0 else f"-{method_name(scaling)}-x{longest.factor:g}"
    return f"{model_name(plan.checkpoint.directory)}{extension}-{options.dtype}-onnx"


def _write_rows(
    tensor: ExternalTensor, first: int, last: int, offset: int, output: Output, buffer: Buffer
) -> None:
    made = np.ascontiguousarray(tensor.rows(first, last))
    output.write(made.view(np.uint8).data.cast("B"), offset + first * tensor.row_bytes)


def _pieces(graph: Graph) -> Iterator[Piece]:
    for tensor, offset in graph.layout():
        for first in range(0, tensor.shape[0], tensor.step):
            last = min(first + tensor.step, tensor.shape[0])
            yield partial(_write_rows, tensor, first, last, offset)


def _graph_facts(plan: ConversionPlan, options: GraphOptions) -> dict[str, Any]:
    """What the artefact records of its form. bucket_contexts: the longest request that each bucket serves."""
    layout = lay_out_tables(plan.rope.main_group, plan.rope.original_context, options.max_context)
    return {
        "dtype": options.dtype,
        "kv": options.kv,
        "max_context": options.max_context,
        "bucket_contexts": list(layout.positions),
    }


def emit(
    plan: ConversionPlan, job: OnnxJob, destination: Path, options: OnnxOptions, advance: Advance
) -> list[Path]:
    """Write the directory; it appears whole or not at all. Returns its files, the one to open first."""
    _check_destination(plan, destination)
    fix = "Free some space, write elsewhere with -o, or choose a smaller --dtype."
    check_free_space(destination, job.nbytes + HEADROOM_BYTES, fix)
    provenance = {**plan.provenance, "graph": _graph_facts(plan, job.options)}
    model = job.graph.model(DATA_FILE, {"yarnconv.plan": json.dumps(provenance, separators=(",", ":"))})
    with staged_directory(destination, replace=options.replace) as directory:
        write_pieces(directory / DATA_FILE, job.nbytes, _pieces(job.graph), advance, options.workers)
        (directory / MODEL_FILE).write_bytes(model.SerializeToString(deterministic=True))
        config = genai_config(plan, job.options, MODEL_FILE)
        (directory / CONFIG_FILE).write_text(config, encoding="utf-8")
        (directory / CARD_FILE).write_text(model_card(plan, job.options), encoding="utf-8")
        (directory / RUNNER_FILE).write_bytes(verbatim(f"onnx/{RUNNER_FILE}"))
        tokenizer = copy_tokenizer(plan.checkpoint.directory, directory)
    written = (MODEL_FILE, DATA_FILE, CONFIG_FILE, CARD_FILE, RUNNER_FILE)
    names = (*written, *(path.name for path in tokenizer))
    return [destination / name for name in names]
