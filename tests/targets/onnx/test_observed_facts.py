"""The RoPE of an ONNX model held against a plan by its numbers alone."""

from dataclasses import replace

import numpy as np
import pytest
from onnx import helper

from tests.support.onnx_faults import Editor, temperature_dropped
from tests.targets.onnx.test_observed import give_last_layer_its_own_tables
from yarnconv.checkpoint.checkpoint import open_checkpoint
from yarnconv.plan import plan_conversion
from yarnconv.rope.request import RopeRequest
from yarnconv.rope.tables import buckets
from yarnconv.rope_plan import RopeGroup
from yarnconv.targets.onnx.observed_facts import compare_observed
from yarnconv.targets.onnx.reader import open_onnx

YARN = ("--factor", "4", "--method", "yarn")
DYNAMIC = ("--factor", "4", "--method", "dynamic-yarn")


@pytest.fixture
def plans(checkpoints):
    """The plan of the tiny Llama under rope options, its groups of layers exchanged for others."""

    def get(method="yarn", groups=None):
        with open_checkpoint(checkpoints("llama")) as checkpoint:
            plan = plan_conversion(checkpoint, RopeRequest(method=method, factor=4.0))
        if groups is None:
            return plan
        made = tuple(
            RopeGroup(layers=layers, scaling=scaling, buckets=buckets(scaling) if scaling else ())
            for layers, scaling in groups(plan.rope.main)
        )
        return replace(plan, rope=replace(plan.rope, groups=made))

    return get


def compared(path, plan, max_context=1024):
    """(what differs by its key, the rest of what was found)."""
    with open_onnx(path) as model:
        observed = compare_observed(plan, model, max_context)
    return {fact.key: fact.found for fact in observed.facts if not fact.agrees}, observed


@pytest.mark.parametrize(("method", "options"), [("yarn", YARN), ("dynamic-yarn", DYNAMIC)])
def test_a_right_model(method, options, onnx_artefacts, plans):
    wrong, observed = compared(onnx_artefacts("llama", *options), plans(method))
    assert (wrong, observed.unread, observed.reach) == ({}, None, 1024)
    assert [fact.key for fact in observed.facts][:4] == [
        "frequencies",
        "attention factor",
        "positions",
        "pairs of dimensions",
    ]


def test_another_method_tells_nothing_of_the_temperature(onnx_artefacts, plans):
    wrong, observed = compared(onnx_artefacts("llama", *YARN), plans("linear"))
    assert wrong.keys() == {"frequencies"}
    assert wrong["frequencies"].startswith("by-parts: ")
    assert "attention factor" not in {fact.key for fact in observed.facts}


def test_a_temperature_that_is_not_there(onnx_artefacts, plans, tmp_path):
    editor = Editor(onnx_artefacts("llama", *YARN), tmp_path / "edited")
    temperature_dropped(editor)
    wrong, _ = compared(editor.save(), plans())
    assert wrong.keys() == {"attention factor"}
    assert wrong["attention factor"].startswith("temperature-missing: ")


def test_a_context_that_tables_do_not_reach(onnx_artefacts, plans):
    wrong, observed = compared(onnx_artefacts("llama", *YARN, "--max-context", "700"), plans())
    assert wrong.keys() == {"positions", "genai_config.json: model.context_length"}
    assert observed.reach == 700
    assert compared(onnx_artefacts("llama", *YARN, "--max-context", "700"), plans(), 700)[0] == {}


def test_a_layer_of_the_group_that_turns_otherwise(onnx_artefacts, plans, tmp_path):
    editor = Editor(onnx_artefacts("llama", *YARN), tmp_path / "edited")
    give_last_layer_its_own_tables(editor)
    wrong, _ = compared(editor.save(), plans())
    assert wrong.keys() == {"attention factor, layers 2"}


def test_every_group_is_held_against_the_tables_of_its_own_layers(onnx_artefacts, plans, tmp_path):
    def groups(main):
        return [((0, 1), main), ((2,), replace(main, attention_factor=1.0))]

    editor = Editor(onnx_artefacts("llama", *YARN), tmp_path / "edited")
    give_last_layer_its_own_tables(editor)
    assert compared(editor.save(), plans(groups=groups))[0] == {}
    wrong, _ = compared(onnx_artefacts("llama", *YARN), plans(groups=groups))
    assert wrong.keys() == {"attention factor, layers 2"}


def test_a_layer_that_should_not_turn(onnx_artefacts, plans):
    wrong, _ = compared(onnx_artefacts("llama", *YARN), plans(groups=lambda m: [((0, 1), m), ((2,), None)]))
    assert wrong == {"rotation, layers 2": "layers 2 turn"}


def test_a_damaged_table_ends_nowhere(onnx_artefacts, plans, tmp_path):
    """It is run as far as it should reach."""
    editor = Editor(onnx_artefacts("llama", *YARN), tmp_path / "edited")
    editor.stored("cos_cache")[17, 3] += np.float32(1e-3)
    wrong, observed = compared(editor.save(), plans())
    assert wrong.keys() == {"frequencies"}
    assert "table-damaged" in wrong["frequencies"]
    assert observed.reach is None


def test_layers_of_which_nothing_is_read_are_named(onnx_artefacts, plans, tmp_path):
    editor = Editor(onnx_artefacts("llama", *YARN), tmp_path / "edited")
    for gather in [node for node in editor.nodes("Gather") if node.input[0] in editor.tables]:
        made = f"{gather.output[0]}_looked_up"
        node = helper.make_node("Hardmax", [made], list(gather.output))  # of which no angle is left
        gather.output[0] = made
        editor.graph.node.insert(list(editor.graph.node).index(gather) + 1, node)
        editor.stored(gather.input[0])[:] *= np.float32(-1)
    wrong, observed = compared(editor.save(), plans())
    assert "0-2" in (observed.unread or ""), (wrong, observed)
