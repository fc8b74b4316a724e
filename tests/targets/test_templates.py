"""What is rendered beside an artefact, also where strangers named things."""

import json
import shutil
import subprocess
import sys
import zipfile

import pytest

from tests.conftest import FIXTURES
from tests.support.markdown import assert_tidy
from tests.support.models import edit_config
from yarnconv.targets.templates import markdown, render, verbatim

ROOT = FIXTURES.parent


def convert(yarnconv, model, out, *options):
    code, _, stderr = yarnconv("onnx", model, "-o", out, *options)
    assert code == 0, stderr
    return (out / "README.md").read_text("utf-8"), json.loads((out / "genai_config.json").read_text("utf-8"))


def test_a_value_that_is_missing_is_an_error():
    import jinja2

    with pytest.raises(jinja2.UndefinedError):
        render("onnx/README.md", {})


def test_the_scripts_are_copied_as_they_are(checkpoints, yarnconv, tmp_path):
    convert(yarnconv, checkpoints("llama"), tmp_path / "out")
    assert (tmp_path / "out" / "generate.py").read_bytes() == verbatim("onnx/generate.py")
    assert (tmp_path / "out" / "generation.py").read_bytes() == verbatim("shared/generation.py")


def test_markdown_of_a_strangers_text():
    assert markdown("Llama-3.2 1B") == "Llama-3.2 1B"
    assert markdown("a\n# b\x1b[31m\u202e") == r"a \# b?\[31m?"
    assert markdown("[x](http://y) <b> `c` |d") == r"\[x\](http\://y) \<b\> \`c\` \|d"


def test_a_hostile_name(checkpoints, yarnconv, tmp_path):
    name = "evil\n# Owned {{ 7 * 7 }} <img src=x onerror=y> [a](b) `rm` | c\x1b[2J \U0001f98a"
    model = shutil.copytree(checkpoints("llama"), tmp_path / name)
    card, _ = convert(yarnconv, model, tmp_path / "out")
    title = card.splitlines()[0]
    assert title.startswith("# evil \\# Owned {{ 7 \\* 7 }} \\<img")
    assert "\U0001f98a for ONNX Runtime" in title
    assert "\x1b" not in card
    assert "Owned" not in card.replace(title, "")


def test_special_tokens(checkpoints, yarnconv, tmp_path):
    model = shutil.copytree(checkpoints("llama"), tmp_path / "model")
    cases = {
        "list": ({"bos_token_id": 1, "eos_token_id": [2, 3]}, {"bos": 1, "eos": [2, 3], "pad": 2}),
        "none": ({"bos_token_id": None, "eos_token_id": None}, {}),
        "own pad": ({"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}, {"eos": 2, "pad": 0}),
        "nonsense": ({"bos_token_id": '</s>"', "eos_token_id": [-1, True], "pad_token_id": {"a": 1}}, {}),
    }
    for name, (given, wanted) in cases.items():
        edit_config(model, remove=("pad_token_id",), **given)
        _, config = convert(yarnconv, model, tmp_path / name)
        found = {key: value for key, value in config["model"].items() if key.endswith("_token_id")}
        assert found == {f"{key}_token_id": value for key, value in wanted.items()}


def rows(card):
    """The first two cells of every row of the card's tables."""
    cells = [line.strip("|").split("|") for line in card.splitlines() if line.startswith("|")]
    return {row[0].strip(): row[1].strip() for row in cells}


def test_the_card_says_what_was_planned(checkpoints, yarnconv, tmp_path):
    options = ("--factor", "3.5", "--method", "dynamic-yarn", "--beta-fast", "40", "--no-truncate")
    card, config = convert(yarnconv, checkpoints("qwen3"), tmp_path / "a", *options, "--max-context", "700")
    found = rows(card)
    assert found["method"] == "dynamic-yarn, factor 3.5"
    assert found["context"] == "256 positions in training, 896 planned, 700 in the tables"
    assert "beta_fast 40, beta_slow 1, not truncated" in found["ramp"]
    assert (found["256"], found["512"], found["700"]) == ("1", "2", "3.5")
    assert f"--reference MODEL {' '.join(options[2:4])} --factor 3.5 --beta-fast 40.0 --no-truncate" in card
    assert "defaults to 256, so that a client gets the original model" in card
    assert config["search"]["max_length"] == 256
    assert "length of the KV buffer" in card
    assert "> Not fine-tuned" in card
    assert "rope_context" not in card
    card, _ = convert(yarnconv, checkpoints("qwen3"), tmp_path / "b", *options, "--kv", "concat")
    assert rows(card)["`rope_context`"] == "int64, a scalar"
    assert "every request gets the largest factor" in card


@pytest.mark.parametrize("kv", ["in-place", "concat"])
@pytest.mark.parametrize("dtype", ["fp32", "int4"])
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--factor", "4"),
        ("--factor", "4", "--method", "dynamic-yarn"),
        ("--factor", "4", "--method", "dynamic-ntk"),
    ],
    ids=" ".join,
)
def test_a_card_of_every_kind_is_tidy(options, dtype, kv, checkpoints, yarnconv, tmp_path):
    last = () if dtype == "fp32" else ("--last-token-only",)
    card, _ = convert(
        yarnconv, checkpoints("llama"), tmp_path / "a", "--dtype", dtype, "--kv", kv, *options, *last
    )
    assert_tidy(card)


def test_a_wheel_brings_the_templates(tmp_path):
    """Built from a copy, because building leaves its traces."""
    source = tmp_path / "source"
    kept = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "yarnconv", source / "yarnconv", ignore=kept)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    command += ["--no-index", "--disable-pip-version-check", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        brought = {name for name in wheel.namelist() if name.startswith("yarnconv/templates/")}
    assert brought == {
        f"yarnconv/templates/{name}"
        for name in (
            *("gguf/Modelfile.jinja", "gguf/README.md.jinja", "gguf/llama-server.sh.jinja"),
            *("gguf/presets.ini.jinja", "gguf/router.sh.jinja"),
            *("onnx/README.md.jinja", "onnx/extended.md.jinja"),
            *("onnx/genai_config.json.jinja", "onnx/generate.py"),
            *("ci/parity.yml.jinja", "ci/setup.yml.jinja"),
            *("cluster/kubernetes.yaml.jinja", "cluster/slurm.sh.jinja"),
            *("report/check.html.jinja", "report/rope.html.jinja", "report/style.css"),
            *("report/figure.html.jinja", "report/summary.md.jinja"),
            *("shared/generation.py", "shared/check.yml.jinja"),
            *("shared/plan.md.jinja", "shared/plan_rows.md.jinja"),
            *("tensorrt/README.md.jinja", "tensorrt/config.pbtxt.jinja"),
            *("tensorrt/engine.py", "tensorrt/generate.py", "tensorrt/sidecar.py"),
        )
    }
