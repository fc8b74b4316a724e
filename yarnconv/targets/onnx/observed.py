"""What RoPE an ONNX model carries, whoever made it: by its bytes and its graph, by no name that it gives."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_

from yarnconv.checkpoint.json_files import read_json_object
from yarnconv.targets.inspection.observed_table import ObservedTable
from yarnconv.targets.onnx.cache_reading import MODEL_CONFIG, client_context
from yarnconv.targets.onnx.constant_folding import Folding
from yarnconv.targets.onnx.observed_frequencies import Computed, Pairing, find_computed
from yarnconv.targets.onnx.observed_tables import Stored, find_rotated, find_unattached
from yarnconv.targets.onnx.reader import OnnxModel
from yarnconv.targets.onnx.value_flow import Value, ValueFlow
from yarnconv.targets.record import RECORD_KEY

_PRESENT = re.compile(r"present\D{0,16}(\d{1,5})\D{0,16}key")
_PAST = re.compile(r"past_key_values\.(\d{1,5})\.key")
# A key's way from its projection; what lies before that belongs to the layers before.
BEFORE_ROTATION = frozenset(
    {"MatMul", "Gemm", "MatMulNBits", "MatMulInteger", "MatMulInteger16", "QMoE"}
    | {"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"}
    | {"SkipLayerNormalization", "SkipSimplifiedLayerNormalization"}
)
MOST_NAMES = 4  # of tensors that are named
MOST_SOURCES = 256  # whose layers are told apart


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedRope:
    """One source of rotations. layers: those whose keys turn by it, None where the graph does not show them.
    source: the names of its tensors. element: the ONNX type that they are stored in. buckets: each set of
    frequencies; none where angles are made in a way that is not read. pairing: which dimensions turn
    together, None where nothing says it. notes: what else is to be said, for people.
    """

    layers: tuple[int, ...] | None
    source: str
    element: str
    buckets: tuple[ObservedTable, ...]
    pairing: Pairing | None
    notes: tuple[str, ...] = ()


def _sources_behind(flow: ValueFlow, outputs: Iterable[str], sources: Mapping[str, int]) -> dict[str, int]:
    """Name -> the sources that its value turns by, a bit for each: of the outputs and all before them. Each
    value is looked at once, whatever the number of outputs.
    """
    found: dict[str, int] = {}
    inputs: dict[str, tuple[str, ...]] = {}
    stack = list(outputs)
    while stack:
        name = stack[-1]
        if name in found or name in sources:
            found.setdefault(name, 1 << sources[name] if name in sources else 0)
            stack.pop()
        elif name in inputs:  # all that it is made of is known
            stack.pop()
            found[name] = reduce(or_, (found.get(before, 0) for before in inputs[name]), 0)
        else:
            made = flow.maker(Value(scope=flow.root, name=name))
            walked = made is not None and made.node.op_type not in BEFORE_ROTATION
            inputs[name] = tuple({v.name for v in made.inputs}) if made is not None and walked else ()
            stack += [before for before in inputs[name] if before not in inputs]
    return found


def _layers(flow: ValueFlow, model: OnnxModel, sources: Mapping[str, int]) -> dict[int, set[int]]:
    """Source -> the layers whose keys turn by it; nothing where there are more sources than a model has.
    sources: by the names of their cos and sin in the graph.
    """
    if len(set(sources.values())) > MOST_SOURCES:
        return {}
    keys = {output.name: m for output in model.proto.graph.output if (m := _PRESENT.search(output.name))}
    behind = _sources_behind(flow, keys, sources)
    found: dict[int, set[int]] = {}
    for name, match in keys.items():
        bits = behind[name]
        while bits:
            lowest = bits & -bits
            found.setdefault(lowest.bit_length() - 1, set()).add(int(match[1]))
            bits ^= lowest
    return found


def _named(names: Iterable[str]) -> str:
    every = list(dict.fromkeys(names))
    more = f" and {len(every) - MOST_NAMES} more" if len(every) > MOST_NAMES else ""
    return ", ".join(every[:MOST_NAMES]) + more


def _computed_key(one: Computed) -> tuple[object, ...]:
    """The same for rotations that are computed alike."""
    tables = [(t.observation.inv_freq.tobytes(), t.observation.attention_factor) for t in one.buckets]
    return (*tables, one.pairing, one.notes, one.element)


def observe(model: OnnxModel) -> tuple[ObservedRope, ...]:
    """Every distinct source of rotations in the model. Raises BadInput for a graph that cannot be walked."""
    flow = ValueFlow(model)
    rotated = list(find_rotated(flow))
    used = {name for one in rotated for name in one.used}
    stored = [*rotated, *find_unattached(flow, used)]
    together: dict[object, list[Stored | Computed]] = {}
    for table in stored:
        together.setdefault((table.digest, table.pairing), []).append(table)
    for computed in find_computed(Folding(flow)):
        together.setdefault(_computed_key(computed), []).append(computed)
    groups = list(together.values())
    names = {
        name: index
        for index, group in enumerate(groups)
        for one in group
        for name in (*(value.name for value in one.values), *(one.used if isinstance(one, Stored) else ()))
    }
    layers, inputs = _layers(flow, model, names), {value.name for value in model.proto.graph.input}
    found = []
    for index, group in enumerate(groups):
        first = group[0]
        own = [name for one in group for name in (one.used if isinstance(one, Stored) else [one.source])]
        given = [
            f"{name[:80]} is an input too, for which a client may give another"
            for name in own
            if name in inputs
        ]
        found.append(
            ObservedRope(
                layers=tuple(sorted(layers[index])) if index in layers else None,
                source=_named(own),
                element=first.element,
                buckets=first.buckets,
                pairing=first.pairing,
                notes=(*first.notes, *given),
            )
        )
    return tuple(replace(one, notes=tuple(dict.fromkeys(one.notes))) for one in found)


def maker(model: OnnxModel) -> str:
    """Who wrote the model, by what it says of itself: yarnconv, onnxruntime-genai, optimum (torch.onnx),
    torch.onnx or unknown.
    """
    producer = model.proto.producer_name
    if producer == "yarnconv" or model.metadata(RECORD_KEY) is not None:
        return "yarnconv"
    if producer.startswith("onnxruntime-genai"):
        return "onnxruntime-genai"
    if producer == "pytorch":
        names = {value.name for value in model.proto.graph.input}
        cached = "input_ids" in names and any(_PAST.fullmatch(name) for name in names)
        traced = any(node.name.startswith("/model/") for node in model.proto.graph.node)
        return "optimum (torch.onnx)" if cached and traced else "torch.onnx"
    return "unknown"


def claimed_context(model: OnnxModel) -> int | None:
    """The context that the files beside the model state; None where none does. Raises BadInput for a file
    that cannot be read.
    """
    stated = client_context(model)
    path = model.directory / MODEL_CONFIG
    if stated is not None or not path.exists():
        return stated
    config = read_json_object(path)
    inner = config.get("text_config")
    for said in (config, inner if isinstance(inner, dict) else {}):
        context = said.get("max_position_embeddings")
        if isinstance(context, int) and not isinstance(context, bool) and 1 < context < 2**31:
            return context
    return None
