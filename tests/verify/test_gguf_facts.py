"""Facts of a GGUF's metadata that only some plans and architectures have: each must be able to fail."""

import pytest

from tests.support.gguf_editing import load
from tests.support.models import ORIGINAL_CONTEXT


def differing(report):
    return {key["key"] for key in report["metadata"] if not key["agrees"] and key["decisive"]}


@pytest.mark.parametrize("options", [("--method", "none"), ("--method", "linear", "--factor", "4")])
@pytest.mark.parametrize("value", [None, 64 * ORIGINAL_CONTEXT])
def test_the_context_in_which_queries_grow_counts_under_any_scaling(
    value, options, artefacts, checkpoints, check, tmp_path
):
    key = "mistral3.rope.scaling.original_context_length"
    path, directory = artefacts("ministral3", "f32", *options), checkpoints("ministral3")
    code, report, stderr = check(path, directory, *options)
    assert (code, differing(report)) == (0, set()), stderr
    file = load(path)
    del file.keys.packed[key]
    if value is not None:
        file.keys.uint32(key, value)
    elif options[1] == "none":  # left out, it is the stated context, which a plain plan's may be
        file.keys.uint32("mistral3.context_length", 4 * ORIGINAL_CONTEXT)
    code, report, _ = check(file.write(tmp_path / "other.gguf"), directory, *options)
    assert (code, report["verdicts"]["metadata"]) == (1, "fails")
    assert key in differing(report)


def test_a_base_of_their_own_that_gemma2s_windows_turn_by(artefacts, checkpoints, check, inspect, tmp_path):
    options = ("--factor", "4")
    file, directory = load(artefacts("gemma2", "f32", *options)), checkpoints("gemma2")
    file.keys.float32("gemma2.rope.freq_base_swa", 10000.0)  # freq_base
    same = file.write(tmp_path / "same.gguf")
    assert check(same, directory, *options)[1]["verdicts"]["metadata"] == "holds"
    assert [group["layers"] for group in inspect(same)[1]["carried"]] == ["all layers"]
    file.keys.float32("gemma2.rope.freq_base_swa", 5000.0)
    other = file.write(tmp_path / "other.gguf")
    code, report, _ = check(other, directory, *options)
    assert (code, report["verdicts"]["metadata"], report["verdicts"]["structure"]) == (1, "fails", "fails")
    assert differing(report) == {"gemma2.rope.freq_base_swa"}
    carried = inspect(other)[1]["carried"]
    assert [group["layers"] for group in carried] == [
        "layers that see the whole context",
        "layers with a sliding window",
    ]
    assert carried[1]["source"] == "gemma2.rope.freq_base_swa"
