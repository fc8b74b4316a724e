"""Artefacts that people have, each with one mistake: made of another plan than the one they should carry, by
other tools, or by hand. Of each is known what `inspect` and `check` should call it.
"""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from tests.support.faults import wrong_permutation
from tests.support.gguf_editing import load
from tests.support.models import ORIGINAL_CONTEXT, edit_config
from tests.support.onnx_faults import Editor

FACTOR = ("--factor", "4")
FULL = 1.0 + 0.1 * math.log(4.0)
OWN_BETAS = (*FACTOR, "--beta-fast", "16", "--beta-slow", "2")
OWN_FACTOR = (*FACTOR, "--attention-factor", "1.5")
DYNAMIC = (*FACTOR, "--method", "dynamic-yarn")

# right artefacts: what every target can say, and what a GGUF cannot
RIGHT = {
    "plain": ("--method", "none"),
    "linear": (*FACTOR, "--method", "linear"),
    "ntk": (*FACTOR, "--method", "ntk"),
    "ntk-by-parts": (*FACTOR, "--method", "ntk-by-parts"),
    "yarn": FACTOR,
    "temperature": (*FACTOR, "--attention-factor", "1.5"),
}
IN_TABLES = {
    "betas": OWN_BETAS,
    "not truncated": (*FACTOR, "--no-truncate"),
    "dynamic-yarn": DYNAMIC,
    "dynamic-ntk": (*FACTOR, "--method", "dynamic-ntk"),
}


def _with_factor(value: float) -> tuple[str, ...]:
    return (*FACTOR, "--attention-factor", repr(value))


@dataclass(frozen=True, kw_only=True)
class AnotherPlan:
    """made: the options it was converted with. expected: those it should have been. inspect, check: what the
    two call it. config: of the checkpoint that it was made of, where that is another's too.
    """

    made: tuple[str, ...]
    expected: tuple[str, ...]
    inspect: str
    check: str
    config: dict | None = None


PLANS = {
    "scaling dropped": AnotherPlan(
        made=("--method", "none"), expected=FACTOR, inspect="plain-rope", check="plain-rope"
    ),
    "linear for YaRN": AnotherPlan(
        made=(*FACTOR, "--method", "linear"), expected=FACTOR, inspect="linear", check="linear"
    ),
    "NTK-aware for YaRN": AnotherPlan(
        made=(*FACTOR, "--method", "ntk"), expected=FACTOR, inspect="ntk-aware", check="ntk-aware"
    ),
    "temperature missing": AnotherPlan(
        made=(*FACTOR, "--method", "ntk-by-parts"),
        expected=FACTOR,
        inspect="temperature-missing",
        check="temperature-missing",
    ),
    "temperature twice": AnotherPlan(
        made=_with_factor(FULL**2), expected=FACTOR, inspect="temperature-twice", check="temperature-twice"
    ),
    "temperature through its formula": AnotherPlan(
        made=_with_factor(1 + 0.1 * FULL * math.log(4.0)),
        expected=FACTOR,
        inspect="temperature-relogged",
        check="temperature-relogged",
    ),
    "attention_factor dropped": AnotherPlan(
        made=FACTOR,
        expected=OWN_FACTOR,
        inspect="attention-factor-dropped",
        check="attention-factor-dropped",
    ),
    "betas dropped": AnotherPlan(
        made=FACTOR, expected=OWN_BETAS, inspect="betas-ignored", check="betas-ignored"
    ),
    "truncate dropped": AnotherPlan(
        made=FACTOR,
        expected=(*FACTOR, "--no-truncate"),
        inspect="truncate-ignored",
        check="truncate-ignored",
    ),
    "original from the extended context": AnotherPlan(
        made=(*FACTOR, "--original-context", str(4 * ORIGINAL_CONTEXT)),
        expected=FACTOR,
        inspect="original-from-extended",
        check="wrong-original-context",
    ),
    "half the factor": AnotherPlan(
        made=("--factor", "2"), expected=FACTOR, inspect="wrong-factor", check="wrong-factor"
    ),
    "another theta": AnotherPlan(
        made=FACTOR,
        expected=FACTOR,
        inspect="wrong-theta",
        check="wrong-theta",
        config={"rope_theta": 500000.0},
    ),
}

# one set of frequencies where there should be three: a GGUF holds no more, and refuses the plan
FROZEN = {
    "dynamic, scaled at every length": AnotherPlan(
        made=FACTOR, expected=DYNAMIC, inspect="dynamic-frozen", check="dynamic-frozen"
    ),
    "dynamic, plain at every length": AnotherPlan(
        made=("--method", "none"), expected=DYNAMIC, inspect="plain-rope", check="plain-rope"
    ),
}


def with_theta(checkpoint: Path, theta: float, out: Path) -> Path:
    """A copy of a checkpoint with another base."""
    shutil.copytree(checkpoint, out)
    rope = json.loads((out / "config.json").read_text())["rope_parameters"]
    edit_config(out, rope_parameters={**rope, "rope_theta": theta})
    return out


@dataclass(frozen=True, kw_only=True)
class Edited:
    """A right YaRN artefact, edited by hand. inspect, check: what they call it; None where it does not show
    there.
    """

    edit: Callable
    inspect: str | None
    check: str | None


def _key(name, write, value):
    return lambda file: getattr(file.keys, write)(file.key(name), value)


GGUF_EDITS = {
    "context_length of before": Edited(
        edit=_key("context_length", "uint32", ORIGINAL_CONTEXT), inspect="static-inside", check=None
    ),
    "context_length of something else": Edited(
        edit=_key("context_length", "uint32", 2 * ORIGINAL_CONTEXT), inspect="context-length", check=None
    ),
    "original_context_length left out": Edited(
        edit=lambda file: file.drop(file.key("rope.scaling.original_context_length")),
        inspect="original-from-extended",
        check="wrong-original-context",
    ),
    "keys that are never read": Edited(
        edit=_key("rope.scaling.strange", "float32", 2.0), inspect="keys-never-read", check=None
    ),
    "betas in keys that are never read": Edited(
        edit=_key("rope.scaling.yarn_beta_fast", "float32", 8.0), inspect="betas-ignored", check=None
    ),
    "temperature in a key that is never read": Edited(
        edit=_key("rope.scaling.yarn_attn_factor", "float32", 1.3),
        inspect="attention-factor-dropped",
        check=None,
    ),
    "rows of q and k in the other order": Edited(
        edit=wrong_permutation, inspect=None, check="query-key-permutation"
    ),
}


def interleaved(editor: Editor) -> None:
    """Pairs of neighbours where halves are meant."""
    for node in editor.nodes("RotaryEmbedding"):
        kept = [attribute for attribute in node.attribute if attribute.name != "interleaved"]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute("interleaved", 1)])


def damaged_row(editor: Editor) -> None:
    """One row in the middle of nowhere."""
    editor.stored("cos_cache")[700] = np.float32(0.5)


def half_tables(editor: Editor) -> None:
    """Rounded to 16 bits and widened again."""
    for name in editor.tables:
        editor.stored(name)[:] = np.asarray(editor.stored(name)).astype(np.float16)


def longer_promise(editor: Editor) -> None:
    """Clients are told a context for which there are no rows."""
    path = editor.directory / "genai_config.json"
    config = json.loads(path.read_text())
    config["model"]["context_length"] *= 2
    path.write_text(json.dumps(config))


ONNX_EDITS = {
    "pairs in another order": Edited(edit=interleaved, inspect="wrong-pairing", check="wrong-pairing"),
    "a damaged row": Edited(edit=damaged_row, inspect="table-damaged", check=None),
    "tables of 16 bits": Edited(edit=half_tables, inspect="table-rounded", check=None),
    "tables shorter than promised": Edited(edit=longer_promise, inspect="table-short", check=None),
}


def edited_gguf(source: Path, edit: Callable, out: Path) -> Path:
    """Without its record, which another tool's file has not."""
    file = load(source)
    file.drop("yarnconv.")
    edit(file)
    return file.write(out)


def edited_onnx(source: Path, edit: Callable, out: Path) -> Path:
    """Likewise."""
    editor = Editor(source, out)
    edit(editor)
    del editor.model.metadata_props[:]
    return editor.save()
