"""The extension of an ONNX model that is there already: its tables are exchanged, its weights stay.

The weights' files are hard-linked, or copied where that cannot be done; the source is never written to.
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from yarnconv.artifact import check_free_space, staged_directory
from yarnconv.checkpoint.hub import model_name
from yarnconv.checkpoint.json_files import read_json_object
from yarnconv.errors import BadInput
from yarnconv.plan import RopePlan, plan_artefact, plan_rope, provenance
from yarnconv.progress import Advance
from yarnconv.rope.request import RopeRequest
from yarnconv.rope.resolve import request_of
from yarnconv.targets.destination import check_destination
from yarnconv.targets.onnx.cache_reading import MODEL_CONFIG, Carried, read_carried
from yarnconv.targets.onnx.card import extended_card
from yarnconv.targets.onnx.extended_graph import ExtendedGraph, extend_graph
from yarnconv.targets.onnx.external_data import data_bytes, pieces
from yarnconv.targets.onnx.files import CARD_FILE, CONFIG_FILE, DATA_FILE, RECORD, TABLES_FILE
from yarnconv.targets.onnx.lookup import Lookup, attributes, find_lookup, refusal
from yarnconv.targets.onnx.options import DTYPES
from yarnconv.targets.onnx.reader import OnnxModel
from yarnconv.targets.onnx.rope import lay_out_tables
from yarnconv.targets.onnx.target import HEADROOM_BYTES
from yarnconv.targets.onnx.weights import FLOAT_TYPES
from yarnconv.targets.output_file import write_pieces
from yarnconv.targets.record import read_record
from yarnconv.targets.templates import copy_runner, runner_names

# that ONNX Runtime knows under the standard's name and ONNX does not
RUNTIME_OPERATORS = frozenset({"SimplifiedLayerNormalization"})
BESIDE = frozenset({".json", ".jinja", ".model", ".txt"})  # of a tokenizer, of processors, of a licence
LINKED = (
    "Its weights are hard-linked: who changes them in place changes this model. Runtimes load them; the "
    "onnx package's own loader refuses files of two names.",
)
COPIED = ("Its weights are copies: hard links do not reach this place.",)
TYPE_NAMES = {element.name: name for name, element in FLOAT_TYPES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtensionOptions:
    """max_context: positions of the tables, None for the plan's target context. replace: whether an existing
    destination gives way.
    """

    max_context: int | None = None
    replace: bool = False
    workers: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Extension:
    """A model that is ready to be written; nothing has touched the disk yet.

    request: the rope options that make the plan of the model's own config. dtype: of its weights, as recorded
    or else what it computes in. data: the files that hold them. beside: other files that are copied.
    """

    model: OnnxModel
    lookup: Lookup
    rope: RopePlan
    request: RopeRequest
    carried: Carried
    max_context: int
    dtype: str
    graph: ExtendedGraph
    data: tuple[Path, ...]
    beside: tuple[Path, ...]
    notes: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the new tables."""
        return data_bytes(self.graph.tables)


# the plan


def _layers(model: OnnxModel) -> int:
    names = {value.name for value in model.proto.graph.input}
    keys = [name for name in names if name.startswith("past_key_values.") and name.endswith(".key")]
    return max(1, len(keys))


def _head_dim(model: OnnxModel, lookup: Lookup) -> int:
    """By the cache's shape, or else by what clients are told; at least what rotates."""
    stated: list[object] = [] if model.cache is None else [*model.cache.shape[3:4]]
    if (path := model.directory / CONFIG_FILE).exists():
        inside = read_json_object(path).get("model")
        decoder = inside.get("decoder") if isinstance(inside, dict) else None
        stated += [decoder.get("head_size")] if isinstance(decoder, dict) else []
    sizes = [size for size in stated if isinstance(size, int) and not isinstance(size, bool)]
    return max([2 * lookup.pairs, *sizes[:1]])


def _plan(model: OnnxModel, lookup: Lookup, carried: Carried, request: RopeRequest) -> RopePlan:
    return plan_artefact(
        carried.rope,
        request,
        carried.profile if request.use_profile else None,
        maximum=carried.context,
        layers=_layers(model),
        head_dim=_head_dim(model, lookup),
    )


def _same(one: RopePlan, other: RopePlan) -> bool:
    contexts = (one.original_context, one.target_context) == (other.original_context, other.target_context)
    pairs = list(zip(one.main_group.buckets, other.main_group.buckets, strict=False))
    return (
        contexts
        and len(one.main_group.buckets) == len(other.main_group.buckets)
        and all((a.inv_freq == b.inv_freq).all() for a, b in pairs)
        and all(a.attention_factor == b.attention_factor for a, b in pairs)
    )


def _recordable(model: OnnxModel, carried: Carried, rope: RopePlan, asked: RopeRequest) -> RopeRequest:
    """The options that make the plan of the model's own config, as if it were converted anew."""
    made = request_of(rope.main)
    if carried.config is None or carried.options is None:
        return made
    for options in (carried.options, made):
        for use_profile in dict.fromkeys((options.use_profile and asked.use_profile, True, False)):
            request = replace(options, use_profile=use_profile)
            try:
                plan, _, _ = plan_rope(carried.config, request)
            except BadInput:
                continue
            if _same(plan, rope):
                return request
    raise refusal("no options make this plan of the model's own config.json, as its record would say", model)


def _check_context(asked: int | None, rope: RopePlan) -> int:
    target = rope.target_context
    wanted = target if asked is None else asked
    if not 1 < wanted <= target:
        raise BadInput(
            f"{wanted} is not between 2 and the plan's target context of {target}",
            where="--max-context",
            fix="Lower it, or extend further with --factor.",
        )
    return wanted


def _windows(lookup: Lookup, rope: RopePlan) -> tuple[str, ...]:
    narrow = sorted(size for size in lookup.windows if size < rope.target_context)
    if not narrow:
        return ()
    return (
        f"Attention looks back over {narrow[0]} positions in some layers, which the extension leaves as it "
        f"is: they see no more of a longer context.",
    )


# what stands in the source's directory


def _is_own_file(path: Path, model: OnnxModel) -> bool:
    """A regular file of this directory; links are followed as `reader` follows them."""
    inside = path.resolve().parent == model.path.resolve().parent
    return path.is_file() and (inside or not path.is_symlink())


def _data_files(model: OnnxModel, graph: ExtendedGraph) -> tuple[Path, ...]:
    """What the weights that stay lie in."""
    names = {
        entry.value
        for tensor in graph.proto.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    } - {TABLES_FILE}
    own = {model.path.name, CONFIG_FILE, CARD_FILE, MODEL_CONFIG, *runner_names("onnx")}
    tables = {tensor.name for tensor in graph.tables}
    for tensor in graph.proto.graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place.get("location") == TABLES_FILE and tensor.name not in tables:
            names.add(TABLES_FILE)
    for name in sorted(names):
        # what is written under that name would go through the link into the source
        if name in own | {TABLES_FILE}:
            what = f"weights lie in a file called {name[:80]}, a name that is taken"
            raise BadInput(what, where=model.path.name, fix="Export the model again.")
    return tuple(model.directory / name for name in sorted(names))


def _beside(model: OnnxModel, data: Sequence[Path]) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """(what is copied, names of what is left out)."""
    written = {model.path.name, CONFIG_FILE, CARD_FILE, TABLES_FILE, *runner_names("onnx")}
    own = written | {path.name for path in data} | {file.path.name for file in model.files}
    copied, left = list[Path](), list[Path]()
    for path in sorted(model.directory.iterdir()):
        if path.name in own:
            continue
        fits = path.suffix in BESIDE and path.name != MODEL_CONFIG and _is_own_file(path, model)
        (copied if fits else left).append(path)
    return tuple(copied), tuple(path.name for path in left)


def _check_alone(model: OnnxModel) -> None:
    others = sorted(p.name for p in model.directory.glob("*.onnx") if p.name != model.path.name)
    if others:
        what = f"{others[0][:80]} lies beside it: only a model in one piece is extended"
        raise BadInput(what, where=model.path.name, fix="Put what does not belong to it elsewhere.")


def prepare(model: OnnxModel, request: RopeRequest, options: ExtensionOptions) -> Extension:
    """Read, plan, and build the graph. Raises BadInput and Inexpressible; writes nothing."""
    if not request.asks_for_something and options.max_context is None:
        fix = "Give --factor or --target-context."
        raise BadInput("nothing is asked of a model that is there already", where=str(model.path), fix=fix)
    _check_alone(model)
    lookup = find_lookup(model)
    carried, disbelieved = read_carried(model, lookup)
    rope = _plan(model, lookup, carried, request)
    rope = replace(rope, warnings=(*rope.warnings, *_windows(lookup, rope)))
    before = carried.layout.buckets[-1].softmax_multiplier
    if rope.main_group.buckets[-1].softmax_multiplier != before:
        raise refusal("the plan changes the scale of the scores too, which stands in its nodes", model)
    max_context = _check_context(options.max_context, rope)
    graph = extend_graph(model, lookup, rope, max_context)
    data = _data_files(model, graph)
    beside, left = _beside(model, data)
    notes = [f"What it carries ({carried.scaling.theta:g} as its base) is known from {carried.source}."]
    notes += disbelieved
    if left:
        more = ", ..." if len(left) > 3 else ""
        notes.append(f"Left out: {', '.join(name[:60] for name in left[:3])}{more}.")
    return Extension(
        model=model,
        lookup=lookup,
        rope=rope,
        request=_recordable(model, carried, rope, request),
        carried=carried,
        max_context=max_context,
        dtype=_dtype(model),
        graph=graph,
        data=data,
        beside=beside,
        notes=tuple(notes),
    )


def _old_record(model: OnnxModel) -> dict[str, Any]:
    """What is recorded of the source; nothing where that cannot be read."""
    try:
        return read_record(model.metadata(RECORD) or "")
    except BadInput:
        return {}


def _dtype(model: OnnxModel) -> str:
    graph = _old_record(model).get("graph")
    stated = graph.get("dtype") if isinstance(graph, dict) else None
    if isinstance(stated, str) and stated in DTYPES:
        return stated
    packed = {attributes(n).get("bits") for n in model.proto.graph.node if n.op_type == "MatMulNBits"}
    if packed:
        return " and ".join(sorted(f"int{bits}" for bits in packed))
    return TYPE_NAMES.get(model.cache.element, "unknown") if model.cache is not None else "unknown"


def default_name(job: Extension) -> str:
    """A directory name that says what it holds, in place of what the source's says."""
    name, old = model_name(job.model.directory), _suffix(job)
    return name.replace(old, job.rope.suffix) if old and old in name else name + job.rope.suffix


def _suffix(job: Extension) -> str:
    own = _plan(job.model, job.lookup, job.carried, RopeRequest())
    return own.suffix


# the files


def _record(job: Extension) -> dict[str, Any]:
    """How it was made. The digest of the data is the source's: the data is."""
    layout = lay_out_tables(job.rope.main_group, job.rope.original_context, job.max_context)
    graph: dict[str, Any] = {"max_context": job.max_context, "bucket_contexts": list(layout.positions)}
    if job.lookup.rows is not None:
        attends = {node.op_type for node in job.model.proto.graph.node}
        form = {
            "dtype": job.dtype,
            "kv": "in-place" if job.model.in_place else "concat",
            "dialect": "ort-cuda" if "GroupQueryAttention" in attends else "standard",
        }
        graph = {**form, **graph}
    record = {**provenance(job.request, job.rope), "graph": graph}
    if job.carried.config is not None:
        record["config"] = dict(job.carried.config)
    digest = _old_record(job.model).get("data_digest")
    kept = isinstance(digest, str) and DATA_FILE in {path.name for path in job.data}
    return {**record, "data_digest": digest} if kept else record


def _client_config(job: Extension) -> str | None:
    """genai_config.json with the new context, what else it says as it was; None where there is none."""
    path = job.model.directory / CONFIG_FILE
    if not path.exists():
        return None
    config = read_json_object(path)
    search = config.setdefault("search", {})
    if not isinstance(search, dict):
        raise BadInput("search is no object", where=CONFIG_FILE, fix="Correct it, or take the file away.")
    config["model"]["context_length"] = job.max_context
    # as in `genai`: a client gets the original context unless it asks for more
    search["max_length"] = min(job.rope.original_context, job.max_context)
    return json.dumps(config, indent=2) + "\n"


def _card(job: Extension) -> str:
    return extended_card(
        job.model,
        job.lookup,
        job.rope,
        family=job.carried.model.family if job.carried.model is not None else None,
        dtype=job.dtype,
        max_context=job.max_context,
        request=job.request,
    )


def _link(source: Path, destination: Path) -> bool:
    """A hard link to a file, or a copy where there can be none. Whether it is a link."""
    try:
        os.link(source.resolve(), destination)
    except OSError:
        shutil.copyfile(source, destination)
        return False
    return True


def _check_place(job: Extension, destination: Path, options: ExtensionOptions) -> None:
    own = {job.model.path.resolve().parent, job.model.directory.resolve()}
    keeps = [(job.model.directory, "the model itself"), (job.model.path, "the model itself")]
    keeps += [(path, "the model's weights") for path in job.data]
    check_destination(destination, keeps, replace=options.replace)
    if any(destination.resolve().is_relative_to(directory) for directory in own):
        what = "the destination lies inside the model's own directory"
        raise BadInput(what, where=str(destination), fix="Give another -o.")
    device = destination.parent.stat().st_dev if destination.parent.is_dir() else None
    copied = [path for path in job.data if path.stat().st_dev != device]
    needed = job.nbytes + HEADROOM_BYTES + job.graph.proto.ByteSize()
    needed += sum(path.stat().st_size for path in (*copied, *job.beside))
    check_free_space(destination, needed, "Free some space, or write elsewhere with -o.")


def emit(
    job: Extension, destination: Path, options: ExtensionOptions, advance: Advance
) -> tuple[list[Path], tuple[str, ...]]:
    """Write the directory; it appears whole or not at all. Returns its files, the one to open first, and what
    to know of them.
    """
    from onnx import helper

    _check_place(job, destination, options)
    config = _client_config(job)
    proto = job.graph.proto
    others = {p.key: p.value for p in proto.metadata_props if p.key != RECORD}
    record = json.dumps(_record(job), separators=(",", ":"))
    helper.set_model_props(proto, {**others, RECORD: record})
    texts = {CARD_FILE: _card(job)}
    if config is not None:
        texts[CONFIG_FILE] = config
    with staged_directory(destination, replace=options.replace) as directory:
        linked = [_link(path, directory / path.name) for path in job.data]
        tables = directory / TABLES_FILE
        write_pieces(tables, job.nbytes, pieces(job.graph.tables), advance, options.workers)
        (directory / job.model.path.name).write_bytes(proto.SerializeToString(deterministic=True))
        for name, text in texts.items():
            (directory / name).write_text(text, encoding="utf-8")
        for path in job.beside:
            shutil.copyfile(path, directory / path.name)
        runner = copy_runner("onnx", directory) if job.lookup.rows is not None else []
    names = [job.model.path.name, *(path.name for path in job.data), TABLES_FILE, *texts]
    names += [path.name for path in (*job.beside, *runner)]
    return [destination / name for name in names], LINKED if any(linked) else COPIED if linked else ()
