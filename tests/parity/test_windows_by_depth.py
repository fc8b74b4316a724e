"""EXAONE 4 in llama.cpp, which knows by the number of layers whether any of them has a window: of 64 every
fourth has none and does not turn, whatever the file says of its size; of any other number all see everything.
"""

import gguf
import pytest

from tests.parity.test_dense_gguf import METHODS
from tests.parity.test_llama_cpp import F32_TOLERANCE
from tests.support.gguf_editing import load
from tests.support.models import (
    ORIGINAL_CONTEXT,
    make_checkpoint,
    reference_logits,
    relative_error,
    sample_tokens,
)
from yarnconv.cli import app

WINDOWED_DEPTH = 64
WINDOW = 48
KINDS = ["sliding_attention"] * 3 + ["full_attention"]
TINY = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "deviation": 0.02,  # so many sharp layers make much of float32's rounding
    "sharpness": 20.0,  # of what is left to see of the attention
}
TOKENS = sample_tokens(512, 500)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """(layers, window or None) -> a tiny checkpoint, made once."""
    root, made = tmp_path_factory.mktemp("exaone"), {}

    def get(layers, window):
        if (layers, window) not in made:
            kinds = [KINDS[i % 4] for i in range(layers)] if window else ["full_attention"] * layers
            made[layers, window] = make_checkpoint(
                root / f"{layers}-{window}",
                "exaone4",
                num_hidden_layers=layers,
                sliding_window=window,
                layer_types=kinds,
                **TINY,
            )
        return made[layers, window]

    return get


@pytest.fixture(scope="module")
def converted(models, tmp_path_factory):
    """method -> the GGUF of 64 layers with windows."""
    from typer.testing import CliRunner

    root, made = tmp_path_factory.mktemp("converted"), {}

    def get(method):
        if method not in made:
            made[method] = root / f"{method}.gguf"
            directory = models(WINDOWED_DEPTH, WINDOW)
            arguments = ["gguf", str(directory), *METHODS[method][0], "-o", str(made[method])]
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, result.output
        return made[method]

    return get


def error(llama_cpp, path, directory, method):
    found = llama_cpp.run(path, TOKENS, first=ORIGINAL_CONTEXT)
    beyond = slice(ORIGINAL_CONTEXT, None)
    return relative_error(found, reference_logits(directory, TOKENS, METHODS[method][1], select=beyond))


@pytest.mark.parametrize("method", ["none", "linear"])
def test_of_64_layers_those_with_a_window_turn_and_no_others(method, converted, models, llama_cpp, tmp_path):
    directory, path = models(WINDOWED_DEPTH, WINDOW), converted(method)
    fields = gguf.GGUFReader(path).fields
    assert fields["exaone4.attention.sliding_window"].contents() == WINDOW
    assert error(llama_cpp, path, directory, method) <= F32_TOLERANCE
    wide = load(path)
    wide.keys.uint32("exaone4.attention.sliding_window", 4096)
    assert error(llama_cpp, wide.write(tmp_path / "wide.gguf"), directory, method) > 100 * F32_TOLERANCE
    turning = load(path)
    turning.keys.booleans("exaone4.attention.sliding_window_pattern", [True] * WINDOWED_DEPTH)
    found = error(llama_cpp, turning.write(tmp_path / "turning.gguf"), directory, method)
    assert found > 100 * F32_TOLERANCE


def test_a_copy_of_fewer_layers_is_not_judged(converted, models, check):
    path, directory = converted("linear"), models(WINDOWED_DEPTH, WINDOW)
    options = METHODS["linear"][0]
    code, report, stderr = check(path, directory, *options)
    assert report["verdicts"]["structure"] == "not_judged", stderr
    assert "--layers all" in str(report)
    code, report, stderr = check(path, directory, *options, "--layers", "all")
    assert (code, set(report["verdicts"].values())) == (0, {"holds"}), stderr


@pytest.mark.parametrize(
    ("layers", "window", "why"),
    [
        (WINDOWED_DEPTH, None, "wants a window in a model of 64 layers, and no layer has one"),
        (8, WINDOW, "reads no window in a model of 8 layers, only in one of 64"),
    ],
)
def test_other_windows_than_the_depths_are_refused(layers, window, why, models, yarnconv, tmp_path):
    code, stdout, stderr = yarnconv("gguf", models(layers, window), "-o", tmp_path)
    assert (code, stdout, list(tmp_path.iterdir())) == (3, "", []), stderr
    assert why in " ".join(stderr.split())
