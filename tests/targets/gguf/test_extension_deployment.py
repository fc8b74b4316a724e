"""What is written beside an existing GGUF that is extended: what stands beside a converted one, too."""

import json
import shutil

import pytest

from tests.support.llama_server import REFUSED_EMISSIONS, LlamaServer, bash_accepts, require_server
from tests.support.markdown import assert_tidy
from tests.support.modelfile import parse_modelfile
from tests.support.models import ORIGINAL_CONTEXT
from tests.targets.gguf.test_gguf_card import commands, rows
from tests.targets.gguf.test_llama_server import DYNAMIC, TOLERANCE, YARN, largest_error, sections
from tests.targets.gguf.test_modelfile import (
    BOS,
    BRACKETS,
    CHATML,
    EOS,
    EOT,
    HEADERS,
    HOSTILE,
    LOST,
    STOPS,
    values,
)
from yarnconv.targets.gguf.deployment import from_gguf
from yarnconv.targets.gguf.launch import KEY_SHIFT_WARNING
from yarnconv.targets.gguf.reader import open_gguf

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


def modelfile(written, path):
    out, document = written(path, *FACTOR, emit="ollama")
    return (out / "model.Modelfile").read_text(), document["notes"]


def test_stop_tokens_of_a_stranger(edited, written):
    placed = dict(enumerate((*STOPS, *LOST), 266))
    for token, text in placed.items():  # a file has three of them at most
        path = edited(lambda keys, token=token: keys.uint32("tokenizer.ggml.eom_token_id", token), placed)
        found, notes = modelfile(written, path)
        assert values(found, "stop") == [EOS, EOT, *([text] if text in STOPS else [])]
        assert any("cannot be written in a Modelfile" in note for note in notes) == (text in LOST)


def test_a_hostile_template_and_name(edited, written):
    def change(keys):
        keys.string("tokenizer.chat_template", HOSTILE)
        keys.string("general.name", 'evil\n# Owned {{ 7*7 }} <img src=x> | `rm` ]\n[preset]\nmodel = "/x"')

    path = edited(change)
    text, _ = modelfile(written, path)
    assert [found[0] for found in parse_modelfile(text)].count("TEMPLATE") == 1
    out, _ = written(path, *FACTOR)
    card = (out / "model.md").read_text()
    assert_tidy(card)
    assert len([line for line in card.splitlines() if line.startswith("# ")]) == 1
    out, _ = written(path, "--method", "dynamic-yarn", *FACTOR, emit="llama-server,card", directory="dynamic")
    assert all(name.startswith("evil-Owned-") for name in sections(out / "model.presets.ini"))
    assert {entry["model"] for entry in sections(out / "model.presets.ini").values()} == {"./model.gguf"}


NOTED = {
    "no template": (lambda keys: keys.packed.pop("tokenizer.chat_template"), "there is none"),
    "a huge template": (
        lambda keys: keys.string("tokenizer.chat_template", "a" * 2**20),
        "it is longer than 262144",
    ),
    "no Jinja": (lambda keys: keys.string("tokenizer.chat_template", "{% for %}"), "is no Jinja template"),
    "an end beyond the vocabulary": (
        lambda keys: keys.uint32("tokenizer.ggml.eot_token_id", 2**32 - 1),
        "an answer (4294967295) is not known",
    ),
    "a first token beyond it": (lambda keys: keys.uint32("tokenizer.ggml.bos_token_id", 512), None),
    "no vocabulary": (
        lambda keys: [keys.packed.pop(key) for key in list(keys.packed) if key.startswith("tokenizer.")],
        "there is none",
    ),
    "half a vocabulary of types": (lambda keys: keys.int32s("tokenizer.ggml.token_type", [1]), None),
    "texts that are no Unicode": (
        lambda keys: keys.packed.update(
            {key: value.replace(EOT.encode(), b"\xff" * len(EOT)) for key, value in keys.packed.items()}
        ),
        "Ollama was not run",
    ),
}


@pytest.mark.parametrize("case", NOTED)
def test_what_is_noted(case, edited, written):
    change, note = NOTED[case]
    text, notes = modelfile(written, edited(change))
    assert note is None or note in " ".join(notes)
    assert values(text, "num_ctx") == ["1024"]


REFUSED = {
    "a template that is a number": (lambda keys: keys.uint32("tokenizer.chat_template", 7), "chat_template"),
    "a list of templates": (lambda keys: keys.strings("tokenizer.chat_template", ["a"]), "is a list"),
    "tokens that are a text": (lambda keys: keys.string("tokenizer.ggml.tokens", "a"), "is no list"),
    "tokens that are numbers": (lambda keys: keys.int32s("tokenizer.ggml.tokens", [1]), "other values"),
    "types that are texts": (lambda keys: keys.strings("tokenizer.ggml.token_type", ["a"]), "other values"),
    "an id that is a text": (lambda keys: keys.string("tokenizer.ggml.eos_token_id", "2"), "eos_token_id"),
    "an id that is a list": (lambda keys: keys.int32s("tokenizer.ggml.bos_token_id", [2]), "is a list"),
    "adding that is a number": (lambda keys: keys.uint32("tokenizer.ggml.add_bos_token", 1), "add_bos"),
    "a model that is a number": (lambda keys: keys.uint32("tokenizer.ggml.model", 1), "ggml.model"),
    "a name that is a number": (lambda keys: keys.uint32("general.name", 1), "general.name"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_keys_of_a_wrong_kind(case, edited, yarnconv, tmp_path):
    change, words = REFUSED[case]
    path = edited(change)
    (out := tmp_path / "out").mkdir()
    code, stdout, stderr = yarnconv("gguf", path, *FACTOR, "--emit", "all", "--json", "-o", out)
    assert (code, stdout) == (2, "")
    assert words in " ".join(stderr.split())
    nothing_but(out)
    assert yarnconv("gguf", path, *FACTOR, "-o", out)[0] == 0  # what is not needed is not read


def test_a_vocabulary_beyond_all_measure(edited, yarnconv, monkeypatch, tmp_path):
    monkeypatch.setattr(from_gguf, "MOST_TOKENS", 511)
    (out := tmp_path / "out").mkdir()
    code, _, stderr = yarnconv("gguf", edited(), *FACTOR, "--emit", "ollama", "-o", out)
    assert code == 2
    assert "a list of 512 values; no more than 511 are read" in " ".join(stderr.split())
    nothing_but(out)


def of_architecture(name):
    """The change that makes a llama's keys those of another architecture."""

    def change(keys):
        for key in [key for key in keys.packed if key.startswith("llama.")]:
            keys.packed[f"{name}{key.removeprefix('llama')}"] = keys.packed.pop(key)
        keys.string("general.architecture", name)
        keys.uint32(f"{name}.attention.sliding_window", 64)  # without it gemma3 and olmo2 have one RoPE

    return change


@pytest.mark.parametrize("name", ["gpt-oss", "gemma3", "olmo2", "deepseek2", "mistral3"])
@pytest.mark.parametrize("method", ["dynamic-yarn", "dynamic-ntk"])
def test_flags_that_would_not_do_what_keys_do(method, name, edited, yarnconv, tmp_path):
    """Layers with a window keep out of flags, and latent attention has a temperature of its own."""
    (out := tmp_path / "out").mkdir()
    path = edited(of_architecture(name))
    arguments = ("gguf", path, *FACTOR, "--method", method, "--emit", "llama-server", "-o", out)
    code, _, stderr = yarnconv(*arguments)
    assert code == 3, stderr
    assert f"llama.cpp's {name} architecture" in " ".join(stderr.split())
    nothing_but(out)


def test_flags_for_an_architecture_with_betas_of_its_own(edited, written):
    """It would take 8 for beta_fast where no flag says 32."""
    path = edited(of_architecture("grok"))
    out, _ = written(path, "--method", "dynamic-yarn", *FACTOR, emit="llama-server")
    entries = list(sections(out / "model.presets.ini").values())
    assert "yarn-beta-fast" not in entries[0]
    assert {(entry["yarn-beta-fast"], entry["yarn-beta-slow"]) for entry in entries[1:]} == {("32", "1")}


def test_an_architecture_that_is_a_command(edited, yarnconv, tmp_path):
    path = edited(of_architecture("x\n[evil]; rm"))
    (out := tmp_path / "out").mkdir()
    for options in (("--emit", "card"), ("--method", "dynamic-yarn", "--emit", "llama-server")):
        code, _, stderr = yarnconv("gguf", path, *FACTOR, "--trust-generic-keys", *options, "-o", out)
        assert code == 2
        assert "general.architecture" in stderr
        nothing_but(out)


@pytest.mark.parametrize("case", DYNAMIC)
def test_a_dynamic_plan_through_presets(case, artefacts, checkpoints, written):
    """A copy that is plain, and the plan in the flags: transformers' own log-probabilities in each."""
    require_server()
    options, contexts = DYNAMIC[case]
    out, document = written(artefacts("llama", "f32"), *options, emit="llama-server")
    script = out / "model.llama-server.sh"
    bash_accepts(script)
    assert (document["plan"]["method"], document["served"]["method"]) == ("none", options[1])
    with LlamaServer(script, out) as server:
        for context, spelled in contexts.items():
            model = f"{checkpoints('llama').name}-{context}"
            error = largest_error(checkpoints("llama"), server, spelled, context - 40, model=model)
            assert error <= TOLERANCE, model


@pytest.mark.parametrize("carried", [(), FACTOR, ("--method", "ntk", *FACTOR), (*FACTOR, "--no-truncate")])
def test_the_file_of_a_dynamic_plan_is_plain(carried, artefacts, checkpoints, check, written, yarnconv):
    """Whatever the existing one carries; and its presets are those of the checkpoint's own."""
    options = ("--method", "dynamic-yarn", *FACTOR, "--original-context", ORIGINAL_CONTEXT, "--truncate")
    out, document = written(artefacts("llama", "q8_0", *carried), *options, emit="llama-server,card")
    assert KEY_SHIFT_WARNING in document["notes"]
    said = "The GGUF itself is plain; model.presets.ini carries dynamic-yarn x4"
    assert said in " ".join(document["notes"])
    with open_gguf(out / "model.gguf") as made, open_gguf(artefacts("llama", "q8_0")) as plain:
        own = {key: value for key, value in made.packed.items() if not key.startswith("yarnconv.")}
        assert own == {key: value for key, value in plain.packed.items() if key in own}
        assert made.tensors.keys() == plain.tensors.keys()
        assert json.loads(made.value("yarnconv.plan"))["rope_options"] == {"method": "none"}
    code, report, _ = check(out / "model.gguf", checkpoints("llama"))
    assert (code, report["expected"]["method"]) == (0, "none")
    converted, _ = written(checkpoints("llama"), *options, emit="llama-server", directory="converted")
    for name in ("model.presets.ini", "model.llama-server.sh"):
        assert (out / name).read_text() == (converted / name).read_text()
    assert rows((out / "model.md").read_text())["carried by"] == ["the presets beside it"]


def test_a_static_plan_in_the_server(artefacts, checkpoints, written):
    require_server()
    out, _ = written(artefacts("qwen3", "f32"), *FACTOR, emit="llama-server")
    with LlamaServer(out / "model.llama-server.sh", out) as server:
        assert server.ask("/props")["default_generation_settings"]["n_ctx"] == 4 * ORIGINAL_CONTEXT
        error = largest_error(checkpoints("qwen3"), server, {**YARN, "factor": 4.0}, 700)
    assert error <= TOLERANCE


@pytest.mark.parametrize(("options", "words"), REFUSED_EMISSIONS, ids=str)
def test_refused(options, words, artefacts, yarnconv, tmp_path):
    code, _, stderr = yarnconv("gguf", artefacts("llama", "f32"), *FACTOR, *options, "-o", tmp_path)
    assert code == 3
    assert words in stderr
    nothing_but(tmp_path)


@pytest.mark.parametrize("emit", ["triton", "nonsense", "", "card,,ci"])
def test_names_that_mean_nothing(emit, artefacts, yarnconv, tmp_path):
    code, _, stderr = yarnconv("gguf", artefacts("llama", "f32"), *FACTOR, "--emit", emit, "-o", tmp_path)
    assert code == 2
    assert "Choose among ollama, llama-server, ci, card" in stderr
    nothing_but(tmp_path)


def test_what_others_wrote_stays(artefacts, written, yarnconv):
    source = artefacts("llama", "f32")
    out, _ = written(source, "--factor", "2")
    written(source, *FACTOR)
    assert "num_ctx 1024" in (out / "model.Modelfile").read_text()
    (out / "model.md").write_text("mine")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    code, _, stderr = yarnconv("gguf", source, "--factor", "2", "--emit", "all", "-o", out / "model.gguf")
    assert code == 2
    assert "yarnconv did not write it" in stderr
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    _, document = written(source, *FACTOR, emit=None)
    assert "model.Modelfile beside it belongs to an older file" in " ".join(document["notes"])


def test_a_source_that_looks_like_a_file_of_ours(edited, yarnconv, tmp_path):
    """A GGUF whose first lines hold the mark, under a name that a card would have."""

    def change(keys):
        first = {"Written by yarnconv": keys.packed["general.architecture"]}
        keys.packed = {**first, **keys.packed}

    path = edited(change, name="model.md")
    before = path.read_bytes()
    code, _, stderr = yarnconv("gguf", path, *FACTOR, "--emit", "card", "-o", tmp_path / "model.gguf")
    assert code == 2
    assert "would be written over the source" in stderr
    assert path.read_bytes() == before
    nothing_but(tmp_path, "model.md")


def test_a_split_model(checkpoints, yarnconv, written, tmp_path):
    split = ("--outtype", "f32", "--split-max-size", "1M", "-o", tmp_path / "plain.gguf")
    assert yarnconv("gguf", checkpoints("llama"), *split)[0] == 0
    first = min(tmp_path.glob("plain-00001-*.gguf"))
    (out := tmp_path / "out").mkdir()
    code, _, stderr = yarnconv("gguf", first, *FACTOR, "--emit", "ollama", "-o", out / "model.gguf")
    assert (code, list(out.iterdir())) == (2, [])
    assert "a Modelfile names one file" in stderr
    out, _ = written(first, *FACTOR, emit="llama-server")
    assert "/model-00001-of-" in (out / "model.llama-server.sh").read_text()


def test_the_card_of_an_extended_file(artefacts, checkpoints, written, yarnconv, tmp_path):
    source = shutil.copy(artefacts("llama", "q4_k_m", *FACTOR), tmp_path / "of-others.gguf")
    out, document = written(source, "--factor", "2", emit="card,ci")
    text = (out / "model.md").read_text()
    assert_tidy(text)
    assert "Extended from of-others.gguf, whose weights it keeps as they were." in text
    assert "Written straight" not in text
    assert f"A llama decoder of 3 layers in {document['outtype']}, its context extended from 256 to" in text
    assert KEY_SHIFT_WARNING in document["notes"]
    (command,) = [words for words in commands(text) if words[:2] == ["yarnconv", "check"]]
    named = {"MODEL": checkpoints("llama"), "model.gguf": out / "model.gguf"}
    code, _, stderr = yarnconv(*[named.get(word, word) for word in command[1:]])
    assert code == 0, stderr
    workflow = (out / "model.check.yml").read_text()
    assert 'REFERENCE: "MODEL"' in workflow
    assert "# the checkpoint that the artefact was made of: its Hub id" in workflow
    assert "name it in model.check.yml instead of MODEL" in " ".join(document["notes"])


@pytest.mark.parametrize(
    ("options", "warned"), [(FACTOR, True), (("--method", "linear", *FACTOR), False)], ids=str
)
def test_who_is_warned_of_a_shift(options, warned, artefacts, written, yarnconv):
    for command, path in (
        (("plan", artefacts("llama", "f32"), *options), "plan"),
        (("inspect", artefacts("llama", "f32", *options)), "inspect"),
    ):
        code, stdout, _ = yarnconv(*command)
        assert (code, "--no-context-shift" in stdout) == (0, warned), path
        document = json.loads(yarnconv(*command, "--json")[1])
        assert document["runtime_warnings"] == ({"llama.cpp": [KEY_SHIFT_WARNING]} if warned else {})
    _, document = written(artefacts("llama", "f32"), *options, emit=None)
    assert (KEY_SHIFT_WARNING in document["notes"]) == warned
