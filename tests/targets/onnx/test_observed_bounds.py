"""Graphs that would take for ever: what is looked at has an end, and where it ends is said."""

from itertools import pairwise

import onnx
import pytest
from onnx import TensorProto, helper

from tests.support.observed import assert_agrees, read
from tests.targets.onnx.test_observed_graphs import FREQUENCIES, TWO, computed, node, save, tables
from yarnconv.targets.onnx import observed_frequencies, observed_tables
from yarnconv.targets.onnx.value_flow import ValueFlow

LEFT_OUT = "so many tensors begin as tables of cos and sin do that not all of them were read"


@pytest.fixture
def looked_up(monkeypatch):
    """Names of the values whose makers were asked for, one for each time."""
    names, maker = [], ValueFlow.maker
    monkeypatch.setattr(
        ValueFlow, "maker", lambda flow, value: names.append(value.name) or maker(flow, value)
    )
    return names


def strangers(count, frequencies):
    """Tables of cos and of sin that belong to no other of them."""
    made = {}
    for number in range(count):
        made[f"cos {number}"] = tables(3, frequencies=frequencies * 0.9)[0]
        made[f"sin {number}"] = tables(3, frequencies=frequencies * 0.3)[1]
    return made


def test_tensors_that_nearly_belong_together_have_an_end(tmp_path):
    """200 and 200 are 40,000 pairs, of a few kilobytes."""
    constants = {**strangers(200, FREQUENCIES[:2]), **dict(zip("ab", tables(), strict=True))}
    nodes = [node("Cast", ["positions"], "out", to=TensorProto.FLOAT)]
    sources = read(save(tmp_path / "m", nodes, constants))[0]
    assert [source.notes for source in sources if source.notes] == [(LEFT_OUT,)]


def test_many_tensors_that_begin_as_tables_do_have_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(observed_tables, "MOST_LOOKED", 7)
    constants = {**dict(zip("ab", tables(), strict=True)), **strangers(3, FREQUENCIES)}
    nodes = [node("Cast", ["positions"], "out", to=TensorProto.FLOAT)]
    out = save(tmp_path / "m", nodes, constants)
    beyond, found = read(out)[0]
    assert (beyond.source, beyond.notes, found.source) == ("sin 2", (LEFT_OUT,), "a, b")
    monkeypatch.setattr(observed_tables, "MOST_LOOKED", 8)
    assert [source.source for source in read(out)[0]] == ["a, b"]


def test_copies_for_each_layer_are_compared_once_each(tmp_path):
    """More pairs than are tried, if each were tried with each."""
    constants = {}
    for layer in range(150):
        constants |= dict(zip((f"cos {layer}", f"sin {layer}"), tables(16), strict=True))
    nodes = [node("Cast", ["positions"], "out", to=TensorProto.FLOAT)]
    ((source,), _, _) = read(save(tmp_path / "m", nodes, constants))
    assert (source.notes, source.buckets[0].reach) == ((), 16)


def test_nodes_that_rotate_by_ever_other_tables_have_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(observed_tables, "MOST_TABLES", 4)
    nodes, constants = [], {}
    for layer in range(9):
        constants |= dict(zip((f"cos {layer}", f"sin {layer}"), tables(factor=1 + layer / 8), strict=True))
        inputs = ["keys", f"cos {layer}", f"sin {layer}", "positions"]
        nodes.append(helper.make_node("RotaryEmbedding", inputs, [f"present.{layer}.key"]))
    outputs = [f"present.{layer}.key" for layer in range(9)]
    sources, _, _ = read(save(tmp_path / "m", nodes, constants, outputs=outputs, inputs=["keys"]))
    notes = [note for source in sources for note in source.notes]
    assert notes[0] == (
        "RotaryEmbedding takes cos and sin from one of more places than are looked at, which is not read"
    )


@pytest.mark.parametrize("backwards", [False, True], ids=["in order", "in no order"])
def test_layers_behind_each_other_are_walked_once(backwards, tmp_path, looked_up):
    """Each layer's keys come from those of the layer before: 300 walks to the first would be 45,000 steps."""
    nodes = [helper.make_node("RotaryEmbedding", ["keys", "cos", "sin", "positions"], ["present.0.key"])]
    nodes += [node("Neg", [f"present.{n}.key"], f"present.{n + 1}.key") for n in range(299)]
    outputs = [f"present.{n}.key" for n in range(300)]
    constants = dict(zip(("cos", "sin"), tables(), strict=True))
    out = save(tmp_path / "m", nodes, constants, outputs=outputs, inputs=["keys"])
    if backwards:
        proto = onnx.load(out / "model.onnx")
        turned = list(proto.graph.output)[::-1]
        del proto.graph.output[:]
        proto.graph.output.extend(turned)
        onnx.save(proto, out / "model.onnx")
    ((source,), _, _) = read(out)
    assert source.layers == tuple(range(300))
    assert len(looked_up) < 1000


LONG = 2000  # nodes behind each other, more than Python's own calls may be


def chain(first, last, length=LONG):
    names = [first, *(f"{last} after {n}" for n in range(1, length)), last]
    return [node("Identity", [before], after) for before, after in pairwise(names)]


@pytest.mark.parametrize("of", ["frequencies", "positions"])
def test_what_lies_far_behind_is_read(of, tmp_path):
    far = chain("inv_freq", "far") if of == "frequencies" else chain("column", "far")
    nodes = computed(first=far)
    angles = next(n for n in nodes if n.output[0] == "angles")
    angles.input[:] = ["column", "far"] if of == "frequencies" else ["far", "inv_freq"]
    ((source,), _, _) = read(save(tmp_path / "m", nodes, {**TWO, "inv_freq": FREQUENCIES}, inputs=["keys"]))
    assert (source.notes, source.source) == ((), "inv_freq")
    assert_agrees(source.buckets[0], FREQUENCIES.astype(float), 1.0)


@pytest.mark.parametrize("of", ["frequencies", "positions"])
def test_what_is_near_is_read_though_it_was_first_reached_from_afar(of, tmp_path):
    """Whatever the order: the shorter way is not answered by what the longer one found."""
    start = "inv_freq" if of == "frequencies" else "angles near"
    shared = [node("Neg", ["minus"], "inv_freq"), node("Mul", ["column", "inv_freq"], "angles near")]
    nodes = [*computed()[:2], *shared, *chain(start, "far")]
    if of == "frequencies":
        nodes += [node("Mul", ["column", "far"], "angles far")]
    nodes += [
        node(operator, ["angles far" if of == "frequencies" else "far"], f"{operator} far")
        for operator in ("Cos", "Sin")
    ]
    nodes += [node(operator, ["angles near"], f"{operator} near") for operator in ("Cos", "Sin")]
    turned = [f"{operator} {place}" for place in ("far", "near") for operator in ("Cos", "Sin")]
    nodes += [node("Mul", [name, "keys"], f"turned {name}") for name in turned]
    nodes.append(node("Sum", [f"turned {name}" for name in turned], "out"))
    ((source,), _, _) = read(save(tmp_path / "m", nodes, {**TWO, "minus": -FREQUENCIES}, inputs=["keys"]))
    assert source.notes == ()
    assert_agrees(source.buckets[0], FREQUENCIES.astype(float), 1.0)


def test_cosines_that_go_many_ways_have_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(observed_frequencies, "MOST_STEPS", 3)
    ways = [node("Identity", ["cos"], "way 0"), *(node("Add", ["way 0", "keys"], f"s {n}") for n in range(9))]
    nodes = [*computed(), *ways]
    ((source,), _, _) = read(save(tmp_path / "m", nodes, {**TWO, "inv_freq": FREQUENCIES}, inputs=["keys"]))
    assert source.notes == (
        "its cos and sin go so many ways that not all that they are scaled by was looked at",
    )


def test_angles_that_would_fill_the_memory_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(observed_frequencies, "MOST_REMEMBERED", 16 * 50)
    nodes = computed(first=chain("column", "far", 9))
    next(n for n in nodes if n.output[0] == "angles").input[:] = ["far", "inv_freq"]
    out = save(tmp_path / "m", nodes, {**TWO, "inv_freq": FREQUENCIES}, inputs=["keys"])
    assert len(read(out)[0][0].buckets) == 1
    monkeypatch.setattr(observed_frequencies, "MOST_REMEMBERED", 16)
    ((source,), _, _) = read(out)
    assert (source.buckets, "in a way that is not read" in source.notes[0]) == ((), True)
