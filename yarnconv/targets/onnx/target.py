"""The ONNX target: what it refuses, and how a plan becomes a directory that ONNX Runtime loads."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from yarnconv.artifact import check_free_space, staged_directory
from yarnconv.binding import TensorBinding
from yarnconv.checkpoint.hub import model_name
from yarnconv.checkpoint.sources import files_of
from yarnconv.errors import BadInput, Inexpressible, one_of
from yarnconv.model.description import ExpertsDescription
from yarnconv.plan import ConversionPlan
from yarnconv.progress import Advance
from yarnconv.rope_plan import RopePlan
from yarnconv.targets.beside import FileBeside
from yarnconv.targets.destination import check_destination, kept_places
from yarnconv.targets.digest import file_digest
from yarnconv.targets.onnx.activations import ACTIVATIONS
from yarnconv.targets.onnx.card import model_card
from yarnconv.targets.onnx.decoder import build_decoder
from yarnconv.targets.onnx.experts import cost_notes
from yarnconv.targets.onnx.external_data import data_bytes, pieces
from yarnconv.targets.onnx.files import CARD_FILE, CONFIG_FILE, DATA_FILE, MODEL_FILE
from yarnconv.targets.onnx.genai import copy_tokenizer, genai_config
from yarnconv.targets.onnx.graph import Graph
from yarnconv.targets.onnx.operators import OPERATORS, Dialect, KvForm
from yarnconv.targets.onnx.options import DTYPES, GraphOptions
from yarnconv.targets.onnx.quantisation import INT4_BLOCK, SCHEMES
from yarnconv.targets.onnx.rope import lay_out_tables
from yarnconv.targets.onnx.weights import FLOAT_TYPES, as_matrix, matrix_shape
from yarnconv.targets.output_file import write_pieces
from yarnconv.targets.record import RECORD_KEY
from yarnconv.targets.templates import copy_runner

HEADROOM_BYTES = 2**24  # of a graph without its tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxOptions:
    """As in `GraphOptions`; max_context: None for the plan's target context. replace: whether an existing
    destination gives way.
    """

    dtype: str = "fp32"
    compute: str = "fp32"
    kv: KvForm = "in-place"
    dialect: Dialect = "standard"
    max_context: int | None = None
    last_token_only: bool = False
    int4_head: bool = True
    int4_embeddings: bool = False
    link_weights: bool = False
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
        return data_bytes(self.graph.tensors)


def parse_kv(text: str) -> KvForm:
    """The `--kv` of that name."""
    return one_of(text, get_args(KvForm), "--kv")


def parse_dialect(text: str) -> Dialect:
    """The `--dialect` of that name."""
    return one_of(text, get_args(Dialect), "--dialect")


def plan_refusals(plan: ConversionPlan) -> list[Inexpressible]:
    """What of a plan no graph of ours can say."""
    mlps = [layer.mlp for layer in plan.description.layers]
    clamped = [isinstance(mlp, ExpertsDescription) and mlp.clamp is not None for mlp in mlps]
    used = {mlp.activation for mlp, own in zip(mlps, clamped, strict=True) if not own}
    unknown = used - ACTIVATIONS.keys()
    return [
        Inexpressible(
            f"the graph has no nodes for the activation {activation}",
            where=f"config.json: {plan.family.structure.activation}",
            fix=f"Known: {', '.join(sorted(ACTIVATIONS))}.",
        )
        for activation in sorted(unknown)
    ]


def _matrix_shape(binding: TensorBinding) -> tuple[int, int]:
    return matrix_shape(as_matrix(binding.expected.role, binding.source))


def _asked_matrices(plan: ConversionPlan, options: GraphOptions) -> list[TensorBinding]:
    """The matrices that were asked for in codes."""
    return [b for b in plan.bindings if len(b.source.shape) >= 2 and options.asks_for(b.expected.role)]


def _notes(plan: ConversionPlan, options: GraphOptions) -> tuple[str, ...]:
    notes = []
    whole = [
        b.expected.name
        for b in _asked_matrices(plan, options)
        if not options.quantises(b.expected.role, _matrix_shape(b))
    ]
    if whole:
        kept = f"{len(whole)} matrices stay {options.compute}"
        notes.append(f"{kept}: they do not divide into blocks ({whole[0]}, ...).")
    if options.link_weights:
        notes.append("The checkpoint's files are hard-linked: who changes them in place changes this model.")
        if any(b.source.dtype != options.element.dtype for b in plan.bindings):
            notes.append(f"The runtime converts what is linked to {options.element.name} when it loads it.")
    notes += cost_notes(plan.description, options.element.bits)
    if options.dialect == "ort-cuda" and options.element.name == "FLOAT":
        notes.append("CUDA's GroupQueryAttention takes fp16 and bf16; in fp32 it runs on the CPU.")
    return tuple(notes)


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
    one_of(options.compute, tuple(FLOAT_TYPES), "compute")
    if not options.int4_head and options.dtype not in SCHEMES:
        fix = f"Leave it out, or add --dtype {' or '.join(SCHEMES)}."
        raise BadInput(f"the graph is {options.dtype}", where="--no-int4-head", fix=fix)
    if options.int4_embeddings and options.dtype != "int4":
        raise BadInput(f"the graph is {options.dtype}", where="--int4-embeddings", fix="Add --dtype int4.")
    if (options.dialect, options.kv) not in OPERATORS:
        raise BadInput(
            f"{options.dialect} keeps its cache in place",
            where=f"--kv {options.kv}",
            fix="Leave out --kv, or --dialect.",
        )
    chosen = GraphOptions(
        dtype=options.dtype,
        compute=options.compute,
        kv=options.kv,
        dialect=options.dialect,
        max_context=wanted,
        last_token_only=options.last_token_only,
        int4_head=options.int4_head,
        int4_embeddings=options.int4_embeddings,
        link_weights=options.link_weights,
    )
    matrices = _asked_matrices(plan, chosen)
    if matrices and not any(chosen.quantises(b.expected.role, _matrix_shape(b)) for b in matrices):
        first = matrices[0]
        raise BadInput(
            f"not one matrix divides into blocks of {INT4_BLOCK}, such as {first.expected.name} of shape "
            f"{list(first.source.shape)}",
            where="--dtype int4",
            fix="Choose another --dtype.",
        )
    return chosen


def choose_graph(plan: ConversionPlan, options: OnnxOptions) -> GraphOptions:
    """The options of the graph to build. Raises the first refusal, or BadInput for what makes no sense."""
    if found := plan_refusals(plan):
        raise found[0]
    return _graph_options(plan, options)


def prepare(plan: ConversionPlan, options: OnnxOptions) -> OnnxJob:
    """Build the graph. Raises the first refusal; writes nothing."""
    graph_options = choose_graph(plan, options)
    return OnnxJob(
        graph=build_decoder(plan, graph_options), options=graph_options, notes=_notes(plan, graph_options)
    )


def default_name(plan: ConversionPlan, options: OnnxOptions) -> str:
    """A directory name that says what it holds."""
    return f"{model_name(plan.checkpoint.directory)}{plan.rope.suffix}-{options.dtype}-onnx"


def graph_facts(rope: RopePlan, options: GraphOptions) -> dict[str, Any]:
    """What an artefact records of its form. bucket_contexts: the longest request that each bucket serves."""
    layout = lay_out_tables(rope.main_group, rope.original_context, options.max_context)
    return {
        "dtype": options.dtype,
        "kv": options.kv,
        "dialect": options.dialect,
        "max_context": options.max_context,
        "bucket_contexts": list(layout.positions),
    }


def _record(plan: ConversionPlan, options: GraphOptions, directory: Path, workers: int) -> dict[str, Any]:
    """How the artefact was made, and what the next tool needs to know of it without the checkpoint.

    data_digest: of the data file, as `targets.digest` takes it.
    """
    return {
        **plan.provenance,
        "graph": graph_facts(plan.rope, options),
        "config": dict(plan.config),
        "data_digest": file_digest(directory / DATA_FILE, workers),
    }


def _link(plan: ConversionPlan, graph: Graph, directory: Path) -> list[Path]:
    """Hard links to the checkpoint's files that the graph points into; runtimes follow no symbolic ones."""
    sources = {file.path.name: file.path for file in files_of(b.source for b in plan.bindings)}
    linked = []
    for name in sorted({tensor.location for tensor in graph.linked}):
        try:
            os.link(sources[name].resolve(), directory / name)
        except OSError as error:
            raise BadInput(
                f"cannot be hard-linked from {directory.parent} ({error.strerror})",
                where=name,
                fix="Write to the checkpoint's own file system with -o, or leave out --link-weights.",
            ) from None
        linked.append(directory / name)
    return linked


def emit(
    plan: ConversionPlan,
    job: OnnxJob,
    destination: Path,
    options: OnnxOptions,
    advance: Advance,
    extra: Sequence[FileBeside] = (),
) -> list[Path]:
    """Write the directory; it appears whole or not at all. Returns its files, the one to open first.

    extra: what else is to stand in it.
    """
    check_destination(destination, kept_places(plan), replace=options.replace)
    fix = "Free some space, write elsewhere with -o, choose a smaller --dtype, or --link-weights."
    check_free_space(destination, job.nbytes + HEADROOM_BYTES, fix)
    with staged_directory(destination, replace=options.replace) as directory:
        linked = _link(plan, job.graph, directory)
        write_pieces(directory / DATA_FILE, job.nbytes, pieces(job.graph.tensors), advance, options.workers)
        record = json.dumps(_record(plan, job.options, directory, options.workers), separators=(",", ":"))
        model = job.graph.model(DATA_FILE, {RECORD_KEY: record})
        (directory / MODEL_FILE).write_bytes(model.SerializeToString(deterministic=True))
        config = genai_config(plan, job.options, MODEL_FILE)
        (directory / CONFIG_FILE).write_text(config, encoding="utf-8")
        (directory / CARD_FILE).write_text(model_card(plan, job.options), encoding="utf-8")
        beside = copy_runner("onnx", directory)
        beside += copy_tokenizer(plan.checkpoint.directory, directory)
        for file in extra:
            file.write(directory / file.name)
            beside.append(directory / file.name)
    written = (MODEL_FILE, DATA_FILE, CONFIG_FILE, CARD_FILE)
    names = (*written, *(path.name for path in (*beside, *linked)))
    return [destination / name for name in names]
