"""What is written beside an existing GGUF that is extended: what stands beside a converted one, too."""

import json
import shutil

import pytest

from tests.support.gguf_editing import load
from tests.targets.gguf.test_modelfile import BOS, BRACKETS, CHATML, EOS, EOT, HEADERS, HOSTILE, values

FACTOR = ("--factor", "4")
EMITTED = ("model.Modelfile", "model.llama-server.sh", "model.check.yml", "model.md")


@pytest.fixture
def checkpoint(checkpoints, tmp_path):
    """(template, changes of tokenizer_config.json) -> a checkpoint with that chat template."""

    def make(template=CHATML, **changes):
        model = shutil.copytree(checkpoints("llama"), tmp_path / "checkpoint", dirs_exist_ok=True)
        config = json.loads((model / "tokenizer_config.json").read_text())
        config |= {"chat_template": template, **changes}
        config = {key: value for key, value in config.items() if value is not None}
        (model / "tokenizer_config.json").write_text(json.dumps(config))
        return model

    return make


@pytest.fixture
def written(yarnconv, tmp_path):
    """(MODEL, options, directory, file name) -> the directory and what `--json` said."""

    def write(model, *options, directory="out", name="model.gguf", emit="all"):
        out = tmp_path / directory
        out.mkdir(exist_ok=True)
        emitted = () if emit is None else ("--emit", emit)
        code, stdout, stderr = yarnconv("gguf", model, *options, *emitted, "--json", "-o", out / name)
        assert code == 0, stderr
        return out, json.loads(stdout)

    return write


@pytest.fixture
def edited(artefacts, tmp_path):
    """(change of the editable file) -> a plain GGUF with it."""

    def write(change, family="llama"):
        file = load(artefacts(family, "f32"))
        change(file)
        return file.write(tmp_path / "source.gguf")

    return write


def nothing_but(directory, *names):
    assert sorted(path.name for path in directory.iterdir()) == sorted(names)


def byte_level_only(tokenizer):
    tokenizer["post_processor"] = tokenizer["post_processor"]["processors"][0]


@pytest.mark.parametrize("template", [CHATML, HEADERS, BRACKETS, HOSTILE, None], ids=range(5))
@pytest.mark.parametrize("adds", [True, False])
def test_the_same_as_beside_a_conversion(template, adds, checkpoint, written):
    """Modelfile and script byte for byte, from a tokenizer's files or from the keys that they became."""
    model = checkpoint(template)
    if not adds:
        document = json.loads((model / "tokenizer.json").read_text())
        byte_level_only(document)
        (model / "tokenizer.json").write_text(json.dumps(document))
    converted, said = written(model, *FACTOR, directory="converted")
    plain, _ = written(model, directory="plain", name="plain.gguf", emit=None)
    extended, said_here = written(plain / "plain.gguf", *FACTOR)
    for name in EMITTED[:2]:
        assert (extended / name).read_text() == (converted / name).read_text()
        assert ((extended / name).stat().st_mode & 0o111) == ((converted / name).stat().st_mode & 0o111)
    text = (extended / "model.Modelfile").read_text()
    assert values(text, "num_ctx") == ["1024"]
    assert values(text, "stop") == [EOS, EOT]
    assert (values(text, "TEMPLATE") == []) == (template is None)
    if template is HEADERS:
        assert (BOS in values(text, "TEMPLATE")[0]) == (not adds)
    unknown = [note for note in said_here["notes"] if "is not known here" in note]
    assert [note for note in said_here["notes"] if note not in unknown] == said["notes"]
    assert len(unknown) == 1
    assert [entry["path"].rpartition("/")[2] for entry in said_here["files"]] == [
        "model.gguf",
        *("model.llama-server.sh", "model.Modelfile", "model.md", "model.check.yml"),
    ]
    nothing_but(extended, "model.gguf", *EMITTED)
