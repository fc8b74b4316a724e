"""GGUFs as strangers have them."""

import pytest

from tests.support.gguf_editing import load
from yarnconv.targets.gguf.reader import open_gguf
from yarnconv.targets.gguf.vocabulary import TokenType


@pytest.fixture
def edited(artefacts, tmp_path):
    """(change of its keys, texts by id, their type, file name) -> a plain GGUF with them."""

    def write(change=lambda keys: None, tokens=(), kind=TokenType.CONTROL, name="source.gguf"):
        file = load(artefacts("llama", "f32"))
        with open_gguf(artefacts("llama", "f32")) as artefact:
            texts, kinds = (artefact.value(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type"))
        for token, text in dict(tokens).items():
            texts[token], kinds[token] = text, int(kind)
        file.keys.strings("tokenizer.ggml.tokens", texts)
        file.keys.int32s("tokenizer.ggml.token_type", kinds)
        change(file.keys)
        return file.write(tmp_path / name)

    return write
