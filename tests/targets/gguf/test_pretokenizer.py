"""llama.cpp's pre-tokenizers recognised from a tokenizer's own rules, and the tokens they then give."""

import copy
import json

import pytest

from tests.support.tokenizer_files import (
    byte_level,
    pre_tokenizer,
    rebuild_tokenizer,
    sentencepiece_as_json,
    vocabulary_only_gguf,
    write_byte_level,
    write_sentencepiece,
)
from yarnconv.checkpoint.tokenizer import read_tokenizer
from yarnconv.errors import BadInput
from yarnconv.targets.gguf.pretokenizer import known_names, recognise_pretokenizer
from yarnconv.targets.gguf.vocabulary import TokenType, build_vocabulary

TEXTS = (
    "Hello, world! It's 12345 o'clock; they'RE late.",
    "  leading and   inner   spaces \n\n new\r\nlines\t tabs",
    "naïve café, Grüße, Ελληνικά, русский текст, 我想在apple工作1314151天, かな, 한국어",
    "x = y**2 // 3  # 🚀 (normal) ✅ 🦙🦙 3 33 333 3333",
)


def document(name, **changes):
    rules, ignore_merges = pre_tokenizer(name)
    return {"pre_tokenizer": rules, "model": {"ignore_merges": ignore_merges}, **changes}


@pytest.mark.parametrize("name", [n for n in known_names() if n != "deepseek-llm"])
def test_each_is_recognised(name):
    assert recognise_pretokenizer(document(name)) == name
    assert recognise_pretokenizer(document(name, normalizer={"type": "NFC"})) == name
    assert recognise_pretokenizer(document(name, normalizer={"type": "Sequence", "normalizers": []}))


def test_a_pattern_that_removes_what_it_does_not_match_is_the_same():
    spelled = document("qwen2")
    spelled["pre_tokenizer"]["pretokenizers"][0] |= {"behavior": "Removed", "invert": True}
    assert recognise_pretokenizer(spelled) == "qwen2"


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\p{L}+"),
        lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(behavior="MergedWithNext"),
        lambda d: d["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
        lambda d: d["pre_tokenizer"]["pretokenizers"].insert(0, {"type": "Whitespace"}),
        lambda d: d.update(normalizer={"type": "Lowercase"}),
        lambda d: d.update(pre_tokenizer=None),
        lambda d: d.update(pre_tokenizer="ByteLevel"),
        lambda d: d["pre_tokenizer"].update(pretokenizers=None),
    ],
)
def test_anything_else_names_the_override(change):
    spelled = copy.deepcopy(document("llama-bpe"))
    change(spelled)
    with pytest.raises(BadInput, match="--pre NAME"):
        recognise_pretokenizer(spelled)


def test_whether_words_are_merged_tells_two_apart():
    merged = document("llama-bpe", model={"ignore_merges": False})
    assert recognise_pretokenizer(merged) == "dbrx"
    with pytest.raises(BadInput, match="--pre NAME"):
        recognise_pretokenizer(document("tekken", model={"ignore_merges": False}))


def deepseek_letters(source):
    """deepseek-llm's pattern of letters, which the table keeps as a digest, from llama.cpp's source."""
    import hashlib

    for line in (source / "src" / "llama-vocab.cpp").read_text(encoding="utf-8").splitlines():
        pattern = line.strip().strip('",').replace("\\\\", "\\")
        if pattern.startswith(r"\s?[A-Za-zµ"):
            return {"sha256:" + hashlib.sha256(pattern.encode()).hexdigest(): pattern}
    raise AssertionError("llama.cpp no longer quotes the pattern")


@pytest.mark.parametrize("name", ["llama-bpe", "qwen2", "deepseek-llm", "deepseek-coder"])
def test_real_vocabularies_tokenise_as_the_original(name, llama_cpp_source, llama_cpp, tmp_path):
    """llama.cpp with what we wrote gives the tokens that the tokenizers library gives."""
    from tokenizers import Tokenizer

    patterns = deepseek_letters(llama_cpp_source) if name == "deepseek-llm" else None
    size = rebuild_tokenizer(
        llama_cpp_source / "models" / f"ggml-vocab-{name}.gguf",
        tmp_path,
        pre=name,
        patterns=patterns,
    )
    path = vocabulary_only_gguf(tmp_path, size)
    original = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert build_vocabulary(read_tokenizer(tmp_path), size, None).pre == name
    for text in TEXTS:
        wanted = original.encode(text, add_special_tokens=False).ids
        assert llama_cpp.tokenize(path, text) == wanted, text


def test_override(tmp_path, yarnconv, checkpoints):
    import shutil

    import gguf

    directory = shutil.copytree(checkpoints("llama"), tmp_path / "model")
    spelled = json.loads((directory / "tokenizer.json").read_text())
    spelled["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [byte_level(use_regex=False)]}
    (directory / "tokenizer.json").write_text(json.dumps(spelled))
    path = tmp_path / "model.gguf"
    code, _, stderr = yarnconv("gguf", directory, "-o", path)
    assert code == 2
    assert "--pre NAME" in stderr
    assert yarnconv("gguf", directory, "--pre", "qwen2", "-o", path)[0] == 0
    assert gguf.GGUFReader(path).fields["tokenizer.ggml.pre"].contents() == "qwen2"


def test_sentencepiece_that_only_json_holds_merges_in_the_right_order(tmp_path, llama_cpp):
    """Scores made from merge ranks give llama.cpp the merges that the JSON tokenizer does."""
    from tokenizers import Tokenizer

    write_sentencepiece(tmp_path, 400)
    size = sentencepiece_as_json(tmp_path / "tokenizer.model", tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    vocabulary = build_vocabulary(read_tokenizer(tmp_path), size, None)
    assert vocabulary.model == "llama"
    assert vocabulary.types.count(TokenType.BYTE) == 256
    path = vocabulary_only_gguf(tmp_path, size)
    original = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in (
        "the quick brown fox 17 jumps over 119 lazy dogs, isn't it?",
        "brown böx 🦊 quicker",
    ):
        wanted = original.encode(text, add_special_tokens=False).ids
        assert llama_cpp.tokenize(path, text) == wanted


def test_special_tokens_and_padding(tmp_path):
    write_byte_level(tmp_path, 300)
    vocabulary = build_vocabulary(read_tokenizer(tmp_path), 300, None)
    assert len(vocabulary.tokens) == 300
    assert vocabulary.tokens[262] == "<|begin_of_text|>"
    assert vocabulary.types[262] == TokenType.CONTROL
    assert vocabulary.types[265] == TokenType.USER_DEFINED
    assert vocabulary.types[266:] == [TokenType.UNUSED] * 34
    assert vocabulary.tokens[299] == "[PAD299]"
