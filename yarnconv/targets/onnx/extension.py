"""The extension of an ONNX model that is there already: its tables are exchanged, its weights stay."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from yarnconv.checkpoint.hub import model_name
from yarnconv.checkpoint.json_files import read_json_object
from yarnconv.errors import BadInput
from yarnconv.rope.request import RopeRequest
from yarnconv.rope.resolve import request_of
from yarnconv.rope.scaling import Unscaled, method_name
from yarnconv.rope_plan import RopePlan, plan_artefact, plan_rope
from yarnconv.targets.onnx.cache_reading import Carried, read_carried
from yarnconv.targets.onnx.extended_graph import ExtendedGraph, extend_graph
from yarnconv.targets.onnx.external_data import data_bytes
from yarnconv.targets.onnx.files import CONFIG_FILE
from yarnconv.targets.onnx.files_beside import check_alone, data_files, files_beside
from yarnconv.targets.onnx.lookup import Lookup, attributes, find_lookup, refusal
from yarnconv.targets.onnx.options import DTYPES
from yarnconv.targets.onnx.reader import OnnxModel
from yarnconv.targets.onnx.weights import FLOAT_TYPES
from yarnconv.targets.record import RECORD_KEY, read_record

# that ONNX Runtime knows under the standard's name and ONNX does not
RUNTIME_OPERATORS = frozenset({"SimplifiedLayerNormalization"})
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
    def table_bytes(self) -> int:
        """Bytes of the new tables."""
        return data_bytes(self.graph.tables)

    @property
    def nbytes(self) -> int:
        """Bytes of the new tables, and of the weights that are linked or copied."""
        return self.table_bytes + sum(path.stat().st_size for path in self.data)


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


def _known(carried: Carried) -> str:
    scaling, factor = carried.scaling, carried.layout.buckets[-1].factor
    held = "plain RoPE" if isinstance(scaling, Unscaled) else f"{method_name(scaling)} x{factor:g}"
    return f"The model carries {held}, theta {scaling.theta!r}: by {carried.source}, and every row agrees."


def prepare(model: OnnxModel, request: RopeRequest, options: ExtensionOptions) -> Extension:
    """Read, plan, and build the graph. Raises BadInput and Inexpressible; writes nothing."""
    if not request.asks_for_something and options.max_context is None:
        fix = "Give --factor or --target-context."
        raise BadInput("nothing is asked of a model that is there already", where=str(model.path), fix=fix)
    check_alone(model)
    lookup = find_lookup(model)
    carried, disbelieved = read_carried(model, lookup)
    rope = _plan(model, lookup, carried, request)
    rope = replace(rope, warnings=(*rope.warnings, *_windows(lookup, rope)))
    before = carried.layout.buckets[-1].softmax_multiplier
    if rope.main_group.buckets[-1].softmax_multiplier != before:
        raise refusal("the plan changes the scale of the scores too, which stands in its nodes", model)
    max_context = _check_context(options.max_context, rope)
    graph = extend_graph(model, lookup, rope, max_context)
    data = data_files(model, graph)
    beside, left = files_beside(model, data)
    notes = [_known(carried)]
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


def old_record(model: OnnxModel) -> dict[str, Any]:
    """What is recorded of the source; nothing where that cannot be read."""
    try:
        return read_record(model.metadata(RECORD_KEY) or "")
    except BadInput:
        return {}


def _dtype(model: OnnxModel) -> str:
    graph = old_record(model).get("graph")
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
