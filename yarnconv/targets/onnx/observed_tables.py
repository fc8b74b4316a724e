"""Tables of cos and sin in a graph, by the nodes that rotate by them, or by nothing but their content."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from yarnconv.checkpoint.floats import NUMPY_DTYPES, to_float32
from yarnconv.rope.tables import Float32Array
from yarnconv.targets.inspection.observed_table import (
    LEAST_FACTOR,
    MOST_FACTOR,
    ObservedTable,
    read_table,
    unread,
)
from yarnconv.targets.onnx.lookup import MICROSOFT
from yarnconv.targets.onnx.observed_frequencies import PRODUCTS, Pairing, rotation_pairing
from yarnconv.targets.onnx.reader import FLOAT_DTYPES, StoredTensor
from yarnconv.targets.onnx.rope_comparison import TABLE_VALUES
from yarnconv.targets.onnx.value_flow import Made, Value, ValueFlow

MOST_VISITED = 256  # nodes between a table and what rotates by it
MOST_WIDTH = 2**14  # of a table: rows are read whole
MOST_TABLES = 1024  # pairs of tables that are read
MOST_LOOKED = 2**14  # tensors that begin as tables do
MOST_COMPARED = 2**14  # pairs of tensors that are tried, of the whole model
COMPUTED = frozenset({"Cos", "Sin", "Div"}) | PRODUCTS  # and what scales them
PASSED = frozenset(
    {
        "Identity",
        "Cast",
        "Gather",
        "Unsqueeze",
        "Squeeze",
        "Reshape",
        "Slice",
        "Expand",
        "Transpose",
        "Concat",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableView:
    """Columns of a tensor as [rows, pairs]; its other dimensions hold one value each."""

    tensor: StoredTensor
    rows: int
    width: int
    columns: slice

    @property
    def element(self) -> str:
        """Its ONNX type's name."""
        return self.tensor.element

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, pairs)."""
        return self.rows, len(range(self.width)[self.columns])

    def float32(self, first: int, last: int) -> Float32Array:
        """Rows first..last-1."""
        with np.errstate(invalid="ignore", over="ignore"):
            if self.element == "DOUBLE":
                doubles = np.frombuffer(self.tensor.data, "<f8").reshape(self.rows, self.width)
                return doubles[first:last, self.columns].astype(np.float32)
            dtype = FLOAT_DTYPES[self.element]
            stored = np.frombuffer(self.tensor.data, NUMPY_DTYPES[dtype]).reshape(self.rows, self.width)
            return to_float32(np.ascontiguousarray(stored[first:last, self.columns]), dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Rotations that are looked up. values: in the graph, of cos and sin. used: the names of its tensors."""

    values: tuple[Value, ...]
    used: tuple[str, ...]
    element: str
    buckets: tuple[ObservedTable, ...]
    pairing: Pairing | None
    notes: tuple[str, ...]
    digest: bytes


def _view(tensor: StoredTensor) -> TableView | None:
    """The whole of a tensor that may be a table."""
    wide = [dimension for dimension in tensor.shape[:-1] if dimension != 1]
    if tensor.element not in {*FLOAT_DTYPES, "DOUBLE"} or len(tensor.shape) < 2 or len(wide) > 1:
        return None
    rows, width = prod(wide), tensor.shape[-1]
    if rows < 2 or not 1 <= width <= MOST_WIDTH:
        return None
    return TableView(tensor=tensor, rows=rows, width=width, columns=slice(0, width))


def _columns(view: TableView) -> tuple[slice, Pairing | None]:
    """One column for each pair: of tables that have one for each dimension the values stand twice."""
    half, step = view.width // 2, max(1, TABLE_VALUES // view.width)
    if view.width % 2 or half < 2:
        return view.columns, None
    layouts: dict[Pairing, tuple[slice, slice]] = {
        "half": (slice(0, half), slice(half, view.width)),
        "interleaved": (slice(0, view.width, 2), slice(1, view.width, 2)),
    }
    for first in range(0, view.rows, step):
        values = view.float32(first, min(first + step, view.rows))
        layouts = {
            name: parts
            for name, parts in layouts.items()
            if np.array_equal(values[:, parts[0]], values[:, parts[1]], equal_nan=True)
        }
        if not layouts:
            return view.columns, None
    (name, (kept, _)), *_ = layouts.items()
    return kept, name


def _read_pair(cos: StoredTensor, sin: StoredTensor) -> tuple[tuple[ObservedTable, ...], Pairing | None]:
    views = _view(cos), _view(sin)
    if views[0] is None or views[1] is None or views[0].shape != views[1].shape:
        said = (
            f"{cos.element} {list(cos.shape)} and {sin.element} {list(sin.shape)} are no tables of one form"
        )
        return (unread(1, said),), None
    columns, pairing = _columns(views[0])
    if pairing is not None and _columns(views[1]) != (columns, pairing):
        columns, pairing = views[0].columns, None
    kept = [TableView(tensor=v.tensor, rows=v.rows, width=v.width, columns=columns) for v in views if v]
    return read_table(*kept), pairing


def _read(
    pairs: list[tuple[StoredTensor, StoredTensor]], values: tuple[Value, ...], said: Pairing | None
) -> Stored:
    """Tables among which a branch may choose. said: the pairing, by what rotates."""
    buckets, notes, pairing, digest = list[ObservedTable](), [], None, hashlib.sha256()
    for cos, sin in pairs:
        tables, laid_out = _read_pair(cos, sin)
        buckets += tables
        pairing = pairing or laid_out
        for tensor in (cos, sin):
            digest.update(f"{tensor.element} {tensor.shape}".encode())
            digest.update(tensor.data)
    if said is not None and pairing is not None and said != pairing:
        notes.append(f"its tables are laid out for pairs {pairing}, what rotates by them has pairs {said}")
    return Stored(
        values=values,
        used=tuple(dict.fromkeys(tensor.name for pair in pairs for tensor in pair)),
        element=pairs[0][0].element,
        buckets=tuple(sorted(buckets, key=lambda table: table.reach or 0))
        if len(pairs) > 1
        else tuple(buckets),
        pairing=said or pairing,
        notes=tuple(notes),
        digest=digest.digest(),
    )


# by the nodes that rotate


def rotating_inputs(made: Made) -> tuple[Value, Value] | None:
    """What a node takes for cos and sin; None where it does not rotate by them."""
    node = made.node
    if node.op_type == "RotaryEmbedding":
        place = 2 if node.domain == MICROSOFT else 1
    elif node.op_type == "GroupQueryAttention" and made.attribute("do_rotary"):
        place = 7
    else:
        return None
    cos, sin = made.input(place), made.input(place + 1)
    return None if cos is None or sin is None else (cos, sin)


def table_tensors(flow: ValueFlow, value: Value) -> tuple[list[StoredTensor], str]:
    """The tensors that a value's rows are taken from, in the order of the branches that choose, and what else
    it comes from: an operator's or an input's name, empty where there is nothing else.
    """
    found: dict[str, StoredTensor] = {}
    stack, visited, other = [value], 0, ""
    while stack and visited < MOST_VISITED:
        here = stack.pop(0)
        visited += 1
        made = flow.maker(here)
        if (tensor := flow.constant(here)) is not None:
            found.setdefault(f"{id(here.scope)} {here.name}", tensor)
        elif made is None:
            other = here.name
        elif made.node.op_type == "If":
            stack += flow.branches(made, here.name)
        elif made.node.op_type == "Where":
            stack += made.inputs[1:3]
        elif made.node.op_type in PASSED:
            stack += made.inputs[: len(made.inputs) if made.node.op_type == "Concat" else 1]
        else:
            other = made.node.op_type
    return list(found.values()), other


def _unread(made: Made, inputs: tuple[Value, Value], why: str) -> Stored:
    name = made.node.op_type
    return Stored(
        values=inputs,
        used=(),
        element="",
        buckets=(),
        pairing=rotation_pairing(made),
        notes=(f"{name} takes cos and sin from {why[:80]}, which is not read",),
        digest=why.encode(),
    )


def find_rotated(flow: ValueFlow) -> Iterator[Stored]:
    """The tables that nodes rotate by, each set of them once. Cos and sin that are computed are left out:
    they have readers of their own.
    """
    seen: set[tuple[tuple[str, ...], ...]] = set()
    known: dict[tuple[int, str], tuple[list[StoredTensor], str]] = {}
    count = 0
    for made in flow.nodes:
        inputs = rotating_inputs(made)
        if inputs is None:
            continue
        if count > MOST_TABLES or len(known) > 2 * MOST_TABLES:
            yield _unread(made, inputs, "one of more places than are looked at")
            return
        for value in inputs:
            if (place := (id(value.scope), value.name)) not in known:
                known[place] = table_tensors(flow, value)
        (cos, other), (sin, other_too) = (known[id(value.scope), value.name] for value in inputs)
        strange = {name for name in (other, other_too) if name}
        key = tuple(tuple(f"{tensor.name} {id(tensor)}" for tensor in side) for side in (cos, sin))
        if strange - COMPUTED:
            yield _unread(made, inputs, ", ".join(sorted(strange - COMPUTED)))
        elif not strange and len(cos) != len(sin):
            yield _unread(made, inputs, f"{len(cos)} and {len(sin)} tensors")
        elif not strange and key not in seen:
            seen.add(key)
            count += len(cos)
            yield _read(list(zip(cos, sin, strict=True)), inputs, rotation_pairing(made))


# by content


def _first_rows(view: TableView) -> Float32Array:
    return view.float32(0, min(view.rows, 3))


def _looks_like_cosines(view: TableView) -> bool:
    first, second = _first_rows(view)[:2]
    same = bool((first == first[0]).all()) and LEAST_FACTOR <= float(first[0]) <= MOST_FACTOR
    return same and bool((second != first).any()) and bool((np.abs(second) <= first * 1.01).all())


def _belong(cos: TableView, sin: TableView) -> bool:
    """Whether the first rows of two tables lie on one circle."""
    with np.errstate(over="ignore", invalid="ignore"):
        c, s = (_first_rows(view).astype(np.float64) for view in (cos, sin))
        return bool((s[0] == 0).all()) and bool((np.abs(np.hypot(c[1:2], s[1:2]) / c[0] - 1.0) < 0.01).all())


def _halves(view: TableView) -> tuple[TableView, TableView] | None:
    """Cos and sin that stand side by side in one tensor, in either order."""
    half = view.width // 2
    if view.width % 2 or half < 2:
        return None
    parts = [replace(view, columns=slice(first, first + half)) for first in (0, half)]
    for cos, sin in (parts, parts[::-1]):
        if _looks_like_cosines(cos) and _belong(cos, sin):
            return cos, sin
    return None


def _side_by_side(value: Value, cos: TableView, sin: TableView) -> Stored:
    digest = hashlib.sha256(f"{cos.element} {cos.tensor.shape}".encode())
    digest.update(cos.tensor.data)
    return Stored(
        values=(value,),
        used=(value.name,),
        element=cos.element,
        buckets=read_table(cos, sin),
        pairing=None,
        notes=(),
        digest=digest.digest(),
    )


def _begins_like_one(view: TableView) -> bool:
    """Whether it may be a table by its first two values, which a weight's are not."""
    first, second = replace(view, columns=slice(0, 2)).float32(0, 1)[0]
    return bool(first == second)


def _partner(
    cos: TableView, sines: list[tuple[Value, TableView]]
) -> tuple[tuple[Value, TableView] | None, int]:
    """(the first table of sin that belongs to one of cos, how many were tried)."""
    for tried, (value, view) in enumerate(sines, 1):
        if _belong(cos, view):
            return (value, view), tried
    return None, len(sines)


def _left_out(value: Value, view: TableView) -> Stored:
    """From here on nothing was looked at."""
    why = "so many tensors begin as tables of cos and sin do that not all of them were read"
    return Stored(
        values=(value,),
        used=(value.name,),
        element=view.element,
        buckets=(),
        pairing=None,
        notes=(why,),
        digest=why.encode(),
    )


def find_unattached(flow: ValueFlow, used: set[str]) -> Iterator[Stored]:
    """Pairs of tensors that are tables by what they hold, and tensors that hold both. used: names that are
    accounted for. Of more than can be compared the first that was not is said to be left out.
    """
    alike: dict[tuple[str, tuple[int, ...]], list[tuple[Value, TableView]]] = {}
    looked, count, compared, beyond = 0, 0, 0, list[Stored]()
    for scope in flow.scopes:
        for name, tensor in scope.constants.items():
            view = _view(tensor) if name not in used else None
            if view is None or view.width < 2 or not _begins_like_one(view):
                continue
            value, looked = Value(scope=scope, name=name), looked + 1
            if looked <= MOST_LOOKED:
                alike.setdefault((tensor.element, tensor.shape), []).append((value, view))
            elif not beyond:
                beyond.append(_left_out(value, view))
    yield from beyond
    for views in alike.values():
        for value, view in views:
            if (both := _halves(view)) is not None:
                count += 1
                if count > MOST_TABLES:
                    yield _left_out(value, view)
                    return
                yield _side_by_side(value, *both)
        sines = [(v, view) for v, view in views if bool((view.float32(0, 1) == 0).all())]
        for value, cos in views if sines else []:
            if not _looks_like_cosines(cos):
                continue
            if count >= MOST_TABLES or compared >= MOST_COMPARED:
                yield _left_out(value, cos)
                return
            partner, tried = _partner(cos, sines[: MOST_COMPARED - compared])
            compared += tried
            if partner is not None:
                count += 1
                yield _read([(cos.tensor, partner[1].tensor)], (value, partner[0]), None)
