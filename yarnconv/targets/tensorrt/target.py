"""The TensorRT target: from a graph to a directory with an engine, or nothing."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from yarnconv.artifact import check_free_space, staged_directory
from yarnconv.checkpoint.mapped_file import MappedFile
from yarnconv.errors import BadInput, NotJudged, ParityFails, one_of
from yarnconv.plan import ConversionPlan
from yarnconv.progress import Progress
from yarnconv.rope.request import RopeRequest
from yarnconv.targets.beside import FileBeside
from yarnconv.targets.destination import check_destination
from yarnconv.targets.digest import file_digest
from yarnconv.targets.facts import FactComparison
from yarnconv.targets.onnx.genai import copy_tokenizer
from yarnconv.targets.onnx.options import GraphOptions
from yarnconv.targets.onnx.quantisation import SCHEMES
from yarnconv.targets.onnx.target import OnnxOptions, choose_graph
from yarnconv.targets.onnx.weights import FLOAT_TYPES
from yarnconv.targets.templates import copy_runner
from yarnconv.targets.tensorrt.builder import Builder, BuildSettings, Network
from yarnconv.targets.tensorrt.card import model_card
from yarnconv.targets.tensorrt.engine_bytes import find_array
from yarnconv.targets.tensorrt.engine_weights import find_weights
from yarnconv.targets.tensorrt.files import CARD_FILE, ENGINE_FILE, MODEL_FILE, SIDECAR
from yarnconv.targets.tensorrt.memory import check_memory
from yarnconv.targets.tensorrt.network import compare_network
from yarnconv.targets.tensorrt.profiles import (
    MOST_BATCH,
    MOST_TOKENS,
    Profile,
    check_profiles,
    default_profiles,
    read_profiles,
)
from yarnconv.targets.tensorrt.sidecar import make_sidecar
from yarnconv.targets.tensorrt.source import CACHE_TYPES, Source
from yarnconv.targets.tensorrt.triton import write_repository
from yarnconv.worker import RuntimeRefused

DTYPES = ("auto", "fp16", "bf16", "fp32", *SCHEMES)
NARROW = {"F16": "fp16", "BF16": "bf16"}
HIGHEST_OPTIMIZATION = 5
ENGINE_SHARE = 1.05  # of its weights, at most

Message = Callable[[str, str], None]  # level and text of what the runtime says


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRtOptions:
    """dtype: auto for the checkpoint's own 16 bits, fp16 where it has none. max_context: positions of the
    tables, None for all. max_input: new tokens at once. profiles: a file of them instead of the default ones.
    workspace: bytes. level: of the runtime's messages. replace: whether an existing destination gives way.
    """

    dtype: str = "auto"
    max_context: int | None = None
    max_batch: int | None = None
    max_input: int | None = None
    profiles: Path | None = None
    compute_capabilities: tuple[str, ...] = ()
    optimization_level: int | None = None
    workspace: int | None = None
    weight_streaming: bool = False
    last_token_only: bool = True
    level: int = 2
    replace: bool = False
    workers: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What was built. facts: the read-back, all of which agree."""

    files: tuple[Path, ...]
    facts: tuple[FactComparison, ...]
    notes: tuple[str, ...]
    sidecar: Mapping[str, Any]


def _own_narrow(plan: ConversionPlan) -> str:
    """The checkpoint's own type of 16 bits, fp16 where it has none or several."""
    kinds = {b.source.dtype for b in plan.bindings if len(b.source.shape) == 2}
    return NARROW[kinds.pop()] if len(kinds) == 1 and kinds <= NARROW.keys() else "fp16"


def check_choices(options: TensorRtOptions, request: RopeRequest, revision: str | None) -> None:
    """Refuse for a graph that is made what only a graph to be made can be given."""
    given = {
        "--revision": revision is not None,
        "--no-profile": not request.use_profile,
        "--dtype": options.dtype != "auto",
        "--max-context": options.max_context is not None,
        "--all-logits": not options.last_token_only,
    }
    for option, chosen in given.items():
        if chosen:
            raise BadInput(
                "the ONNX graph is made already", where=option, fix="Leave it out, or give the checkpoint."
            )


def graph_options(plan: ConversionPlan, options: TensorRtOptions) -> GraphOptions:
    """The graph that TensorRT is to parse. Raises BadInput, or Inexpressible where none can say the plan."""
    dtype, own = one_of(options.dtype, DTYPES, "--dtype"), _own_narrow(plan)
    wanted = OnnxOptions(
        dtype=own if dtype == "auto" else dtype,
        compute=own,
        kv="concat",
        max_context=options.max_context,
        last_token_only=options.last_token_only,
        link_weights=True,
    )
    return replace(choose_graph(plan, wanted), requires_context=True)


def _positive(value: int | None, option: str, most: int) -> None:
    if value is not None and not 1 <= value <= most:
        raise BadInput(f"{value} is not between 1 and {most}", where=option)


def _profiles(options: TensorRtOptions, max_context: int) -> tuple[Profile, ...]:
    _positive(options.max_batch, "--max-batch", MOST_BATCH)
    _positive(options.max_input, "--max-input", min(max_context, MOST_TOKENS))
    if options.profiles is None:
        return default_profiles(max_context, options.max_batch or 1, options.max_input)
    for value, option in ((options.max_batch, "--max-batch"), (options.max_input, "--max-input")):
        if value is not None:
            raise BadInput("--profiles says it all", where=option, fix="Leave one of them out.")
    profiles = read_profiles(options.profiles)
    check_profiles(profiles, max_context, options.profiles.name)
    return profiles


def _settings(source: Source, options: TensorRtOptions, builder: Builder) -> BuildSettings:
    level = options.optimization_level
    if level is not None and not 0 <= level <= HIGHEST_OPTIMIZATION:
        raise BadInput(f"{level} is not between 0 and {HIGHEST_OPTIMIZATION}", where="--opt-level")
    return BuildSettings(
        compute_capabilities=builder.choose_capabilities(
            options.compute_capabilities, (source.dtype, CACHE_TYPES[source.element])
        ),
        optimization_level=level,
        workspace=options.workspace,
        weight_streaming=options.weight_streaming,
    )


def default_name(source: Source) -> str:
    """A directory name that says what it holds."""
    return f"{source.name}{source.rope.suffix}-{source.dtype}-trt"


def _read_back(source: Source, network: Network) -> tuple[FactComparison, ...]:
    """What TensorRT made of the graph. Raises ParityFails where that is not the plan."""
    facts = compare_network(source.rope, source.model, network, source.max_context)
    wrong = [fact for fact in facts if not fact.agrees]
    if wrong:
        said = "; ".join(f"{f.key} is {f.found}, expected {f.expected}" for f in wrong[:3])
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ParityFails(
            f"what TensorRT made of the graph is not the plan: {said}{more}",
            where=source.name,
            fix="No engine was built. Convert the checkpoint again.",
        )
    return facts


def _find_tables(file: MappedFile, network: Network) -> list[dict[str, Any]]:
    """Where each table stands in the engine, as often as it does: an observation, no promise of anyone's."""
    found = []
    for name, table in sorted(network.tables.items()):
        places = [] if table.values is None else find_array(file, np.asarray(table.values))
        found.append({"name": name, "rows": table.shape[0], "pairs": table.shape[1], "offsets": places})
    return found


def _count_weights(file: MappedFile, source: Source) -> dict[str, int] | None:
    """How many of the checkpoint's tensors stand in the engine; None where there is no checkpoint."""
    if not source.weights:
        return None
    element = FLOAT_TYPES[CACHE_TYPES[source.element]]
    found = find_weights(file, source.weights, element, source.dtype)
    return {"tensors": len(found), "found": sum(found.values())}


def _table_notes(tables: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = []
    for table in tables:
        if len(table["offsets"]) != 1:
            count = len(table["offsets"])
            notes.append(
                f"{table['name']} stands {count} times in the engine, byte by byte; once was expected."
            )
    return notes


PARSING = "does not parse the graph", "Give the checkpoint itself, or convert it again with `yarnconv onnx`."
BUILDING = "does not build the engine", "Try another --dtype, smaller --profiles, or more --workspace."


@contextmanager
def _refusals(builder: Builder, doing: str, fix: str) -> Iterator[None]:
    """What TensorRT would not do as bad input, and what this machine has no room for."""
    try:
        yield
    except RuntimeRefused as error:
        raise BadInput(f"{builder.name} {builder.version} {doing}: {error.what}", fix=fix) from None
    except NotJudged as error:
        raise BadInput(error.what, fix="Free some space, or write elsewhere with -o.") from None


def emit(
    source: Source,
    destination: Path,
    options: TensorRtOptions,
    builder: Builder,
    progress: Progress,
    message: Message,
    extra: Sequence[FileBeside] = (),
) -> Engine:
    """Build, prove and write; the directory appears whole or not at all. message: hears what TensorRT says.
    extra: what else is to stand in it.

    Raises ParityFails where what TensorRT parsed is not the plan.
    """
    check_destination(destination, source.keeps, replace=options.replace)
    max_context = source.max_context
    profiles, settings = _profiles(options, max_context), _settings(source, options, builder)
    fix = "Free some space, write elsewhere with -o, or choose a smaller --dtype."
    check_free_space(destination, source.made_bytes + int(ENGINE_SHARE * source.weight_bytes), fix)
    check_memory(source.weight_bytes, converts=source.converts)
    with staged_directory(destination, replace=options.replace) as directory:
        with progress.stage("Writing the graph", source.made_bytes, is_bytes=True) as advance:
            initialisers = source.write(directory, advance, options.workers)
        with progress.activity(f"{builder.name} parses the graph") as say:
            with _refusals(builder, *PARSING):
                network = builder.parse(
                    directory / MODEL_FILE, initialisers, level=options.level, listen=_listener(say, message)
                )
            facts = _read_back(source, network)
        shapes = {p.name: {t.name: p.shapes(t.name, t.shape) for t in network.inputs} for p in profiles}
        started = time.perf_counter()
        title = f"{builder.name} builds the engine"
        with progress.activity(title) as say, _refusals(builder, *BUILDING):
            cost = builder.build(directory / ENGINE_FILE, shapes, settings, listen=_listener(say, message))
        seconds = time.perf_counter() - started
        with progress.activity("Looking into the engine"):
            file = MappedFile(directory / ENGINE_FILE)
            try:
                tables, weights = _find_tables(file, network), _count_weights(file, source)
            finally:
                file.close()
            names = (ENGINE_FILE, MODEL_FILE)
            digests = {name: file_digest(directory / name, options.workers) for name in names}
        sidecar = make_sidecar(
            source,
            builder,
            profiles,
            settings,
            cost,
            engine_bytes=(directory / ENGINE_FILE).stat().st_size,
            digests=digests,
            tables=tables,
            weights=weights,
            seconds=seconds,
        )
        (directory / SIDECAR).write_text(json.dumps(sidecar, indent=2) + "\n", encoding="utf-8")
        card = model_card(source.rope, source.model, sidecar, name=source.name)
        (directory / CARD_FILE).write_text(card, encoding="utf-8")
        copy_runner("tensorrt", directory)
        copy_tokenizer(source.tokenizer, directory)
        write_repository(directory, source.name, sidecar)
        for added in extra:
            added.write(directory / added.name)
        written = sorted(path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    first = Path(ENGINE_FILE)
    ordered = [first, *(path for path in written if path != first)]
    return Engine(
        files=tuple(destination / path for path in ordered),
        facts=facts,
        notes=(*source.notes, *_table_notes(tables)),
        sidecar=sidecar,
    )


def _listener(say: Callable[[str], None], message: Message) -> Callable[[Mapping[str, Any]], None]:
    """What hears a worker's events."""

    def listen(event: Mapping[str, Any]) -> None:
        if "phase" in event:
            say(str(event["phase"]))
        else:
            message(str(event["level"]), str(event["message"]))

    return listen
