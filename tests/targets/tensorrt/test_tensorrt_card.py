"""What the model card beside an engine says."""

import json
import re

import pytest

from tests.support.markdown import assert_tidy
from yarnconv.rope.request import RopeRequest
from yarnconv.rope_plan import plan_rope
from yarnconv.targets.tensorrt.card import model_card

pytest.importorskip("tensorrt_rtx", reason="there are wheels for Linux and Windows on x86-64 only")

DYNAMIC = ("--method", "dynamic-yarn", "--factor", "3.5")


@pytest.fixture
def card(checkpoints, engines):
    """(options, changes of the sidecar's parts) -> the card of an engine of the tiny llama."""

    def make(*options, name="tiny", **changes):
        directory, _ = engines("llama", *options, "--dtype", "fp16", "--compute-capability", "8.9")
        document = json.loads((directory / "yarnconv.json").read_text())
        for part, values in changes.items():
            document[part].update(values) if isinstance(values, dict) else document.update({part: values})
        config = json.loads((checkpoints("llama") / "config.json").read_text())
        request = RopeRequest(**document["plan"]["rope_options"])
        rope, description, _ = plan_rope(config, request)
        return model_card(rope, description, document, name=name)

    return make


def rows(text):
    """Every row of the card's tables, its cells without blanks; by the first cell."""
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line
    ]
    return {row[0]: row[1:] for row in cells}


def test_it_says_what_was_planned_built_and_not_run(card):
    text = card(*DYNAMIC, "--max-context", "700", "--max-input", "100")
    found = rows(text)
    assert text.startswith("# tiny for TensorRT-RTX\n")
    assert "**The engine has not been run.**" in text
    assert found["method"] == ["dynamic-yarn, factor 3.5"]
    assert found["context"] == ["256 positions in training, 896 planned, 700 in the tables"]
    assert (found["256"][0], found["512"][0], found["700"][0]) == ("1", "2", "3.5")
    assert found["0: prefill"] == ["1", "1, 100, 100", "0, 0, 699"]
    assert found["1: decode"] == ["1", "1, 1, 2", "0, 699, 699"]
    assert "compute capability 8.9, and for no others" in found["`model.engine`"][0]
    assert "no default in an engine" in text
    assert found["`rope_context`"][0] == "int64 [1]"
    assert "run all tokens again" in text
    options = "--method dynamic-yarn --factor 3.5 --max-context 700"
    assert f"yarnconv check . --reference MODEL {options}\n" in text
    assert re.search(r"pip install tensorrt-rtx==1\.\S+ cuda-bindings numpy tokenizers\n", text)
    assert 'pip install "yarnconv[check,onnx,trt]"' in text


def test_a_static_engine(card):
    text = card("--factor", "4", "--max-context", "500")
    assert "rope_context" not in text
    assert "bucket" not in text
    assert "tokens in all" not in text
    assert rows(text)["`logits`"] == [rows(text)["`logits`"][0], "of the last token"]
    assert "A position beyond the tables gives NaN" in text


def test_who_can_serve_it(card):
    text = card(*DYNAMIC, runtime={"name": "tensorrt", "version": "10.13"})
    assert "# tiny for TensorRT\n" in text
    assert "tritonserver --model-repository triton" in text
    assert "Triton does not" not in text
    assert 'pip install "yarnconv[check,onnx,tensorrt]"' in text
    assert rows(text)["`rope_context`"][0] == "int64 [1]"
    text = card(*DYNAMIC)
    assert "Triton does not serve this engine." in text
    assert "--runtime tensorrt" in text
    assert "tritonserver" not in text


def test_profiles_that_do_not_reach_the_end_of_the_tables(card):
    profile = {"name": "short", "batch": [1, 1, 1], "new_tokens": [1, 1, 8], "past_tokens": [0, 0, 512]}
    assert "takes 513 tokens in all, fewer than the tables" in card(*DYNAMIC, profiles=[profile])
    late = {**profile, "past_tokens": [5, 5, 512]}
    assert "takes 0 tokens in all, fewer than the tables" in card(*DYNAMIC, profiles=[late])


def test_a_hostile_name(card):
    text = card("--factor", "4", name="evil\n# Owned {{ 7 * 7 }} <img src=x> | \x1b[2J")
    assert text.startswith("# evil \\# Owned {{ 7 \\* 7 }} \\<img src=x\\> \\| ?\\[2J for TensorRT-RTX\n")


@pytest.mark.parametrize("options", [(), ("--factor", "4"), DYNAMIC], ids=" ".join)
@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])
def test_a_card_of_every_kind_is_tidy(runtime, options, card):
    assert_tidy(card(*options, runtime={"name": runtime}))
