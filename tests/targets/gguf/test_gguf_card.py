"""What the card beside a GGUF says."""

import shlex
import shutil

import pytest
from markdown_it import MarkdownIt

from tests.support.markdown import assert_tidy
from tests.support.models import edit_config
from yarnconv.targets.gguf.launch import KEY_SHIFT_WARNING

DYNAMIC = ("--method", "dynamic-yarn", "--factor", "3.5", "--attention-factor", "1.3")


@pytest.fixture
def card(checkpoints, yarnconv, tmp_path):
    """(options, what else is emitted) -> the card."""

    def make(*options, emit="card", name="model.gguf", model=None, family="llama"):
        arguments = ("gguf", model or checkpoints(family), *options, "--emit", emit)
        code, _, stderr = yarnconv(*arguments, "-o", tmp_path / name)
        assert code == 0, stderr
        return (tmp_path / f"{name.removesuffix('.gguf')}.md").read_text()

    return make


def rows(text):
    """Every row of the card's tables by its first cell."""
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if "|" in line]
    return {row[0]: row[1:] for row in cells}


def commands(text):
    """The lines of its code blocks, by a parser of Markdown."""
    blocks = [token.content for token in MarkdownIt().parse(text) if token.type == "code_block"]
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line]


def test_a_static_plan(card, checkpoints):
    text = card("--factor", "4", "--beta-fast", "20", emit="all")
    assert f"# {checkpoints('llama').name} for llama.cpp\n" in text
    found = rows(text)
    assert found["method"] == ["yarn, factor 4"]
    assert found["context"] == ["256 positions in training, 1024 planned"]
    assert "`rope_freqs.weight`" in found["carried by"][0]
    assert KEY_SHIFT_WARNING.split(":")[0] in text
    assert "> Not fine-tuned" in text
    assert "tables" not in text
    run = commands(text)
    assert ["llama-server", "-m", "model.gguf", "-c", "1024", "--no-context-shift"] in run
    assert ["sh", "model.llama-server.sh"] in run
    assert ["ollama", "create", "model", "-f", "model.Modelfile"] in run
    check = ["yarnconv", "check", "model.gguf", "--reference", "MODEL", "--factor", "4.0"]
    assert [*check, "--beta-fast", "20.0"] in run


def test_what_was_not_emitted_is_not_named(card):
    text = card("--method", "linear", "--factor", "4")
    assert "type linear" in rows(text)["carried by"][0]
    assert "Modelfile" not in text
    assert ".sh" not in text
    assert "--cache-reuse" not in text


def test_a_dynamic_plan(card, checkpoints):
    text = card(*DYNAMIC, emit="llama-server,card")
    found = rows(text)
    assert found["carried by"] == ["the presets beside it"]
    assert found["896"][:3] == ["3.5", "1.3", f"`{checkpoints('llama').name}-896`"]
    assert "attn_factor=float:" in found["896"][3]
    assert ["yarnconv", "check", "model.gguf", "--reference", "MODEL", "--method", "none"] in commands(text)
    assert ["sh", "model.llama-server.sh"] in commands(text)


def test_its_commands_check_the_file(card, yarnconv, checkpoints, tmp_path):
    text = card("--factor", "4", "--attention-factor", "1.2")
    (command,) = [words for words in commands(text) if words[:2] == ["yarnconv", "check"]]
    named = {"MODEL": checkpoints("llama"), "model.gguf": tmp_path / "model.gguf"}
    code, _, stderr = yarnconv(*[named.get(word, word) for word in command[1:]])
    assert code == 0, stderr


@pytest.mark.parametrize(
    "options",
    [(), ("--factor", "4"), ("--method", "ntk", "--factor", "4"), DYNAMIC],
    ids=" ".join,
)
@pytest.mark.parametrize("rest", ["", ",ci"])
def test_a_card_of_every_kind_is_tidy(options, rest, card):
    emit = "llama-server,card" if options is DYNAMIC else "all"
    assert_tidy(card(*options, emit=emit + rest if emit != "all" else emit))


def test_hostile_names(card, checkpoints, tmp_path):
    name = "evil\n# Owned {{ 7 * 7 }} <img src=x> [a](b) `rm` | c\x1b[2J"
    model = shutil.copytree(checkpoints("llama"), tmp_path / name)
    edit_config(model)
    file = 'it\'s `rm` $(rm) {{ 7 }} <b> | "x"'
    text = card("--factor", "4", name=f"{file}.gguf", model=model, emit="all")
    assert_tidy(text)
    heading = [line for line in text.splitlines() if line.startswith("# ")]
    assert len(heading) == 1
    assert heading[0].startswith("# evil \\# Owned {{ 7 \\* 7 }} \\<img")
    assert "\x1b" not in text
    run = commands(text)
    assert f"{file}.gguf" in next(words for words in run if words[0] == "llama-cli")
    kinds = {token.type for token in MarkdownIt().parse(text)}
    assert "html_inline" not in kinds
