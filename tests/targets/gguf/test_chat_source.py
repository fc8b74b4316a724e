"""Where an answer ends, and who puts the first token before a text: in a GGUF's keys, and in llama.cpp."""

import pytest

from tests.support.gguf_editing import load
from tests.support.llama_vocabulary import read_vocabularies
from tests.support.models import edit_config, make_checkpoint
from tests.support.tokenizer_files import write_sentencepiece
from tests.targets.gguf.test_modelfile import BOS, EOS, EOT
from yarnconv.targets.gguf.deployment.chat_source import ENDS
from yarnconv.targets.gguf.deployment.from_gguf import chat_source
from yarnconv.targets.gguf.reader import open_gguf
from yarnconv.targets.gguf.vocabulary import TokenType

FIM_PAD, FIM_REP, FIM_SEP = "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"
VOCABULARIES = {
    "of its own": (),
    "every end": tuple(sorted(ENDS - {"<|end_of_text|>", "<|eot_id|>", "<|tool_response>", "<|call|>"})),
    "messages": ("<|end|>", "<|return|>", "<|call|>"),
    "messages of another kind": ("<|end|>", "<|calls|>", "<|flush|>"),
    "no such messages": ("<|end|>", "<|return|>"),
    "a text and an end": ("</s>", "<|tool_response>"),
    "filling in the middle": (FIM_PAD, FIM_REP, FIM_SEP, "<|im_end|>"),
}


def source_of(path):
    with open_gguf(path) as artefact:
        return chat_source(artefact)


@pytest.mark.parametrize("kind", [TokenType.CONTROL, TokenType.NORMAL])
def test_llama_cpp_ends_where_the_stops_are(kind, edited):
    """At every text that it knows of, whatever the type; but for filling in the middle."""
    placed = {case: dict(enumerate(texts, 300)) for case, texts in VOCABULARIES.items()}
    paths = [edited(tokens=texts, kind=kind, name=f"{n}.gguf") for n, texts in enumerate(placed.values())]
    for path, (case, texts), found in zip(paths, placed.items(), read_vocabularies(paths), strict=True):
        texts |= {263: EOS, 264: EOT}
        wanted = [texts[token] for token in found["ends"]]
        ends = source_of(path).ends
        assert list(ends) == [text for text in wanted if text not in (FIM_PAD, FIM_REP, FIM_SEP)], case
        assert len(ends) > 1


PRE = ("llama-bpe", "llama3", "falcon3", "pixtral", "lfm2", "tekken", "chameleon", "gemma4")
PRE_WITHOUT = ("qwen2", "gpt-2", "smollm", "deepseek-llm", "gpt-4o", "default", "falcon")


def test_llama_cpp_adds_the_first_token_where_the_template_leaves_it_out(edited):
    """With and without a key of its own, under pre-tokenizers that add by themselves and under others."""

    def made(pre, stated):
        def change(keys):
            keys.string("tokenizer.ggml.pre", pre)
            keys.packed.pop("tokenizer.ggml.add_bos_token")
            if stated is not None:
                keys.boolean("tokenizer.ggml.add_bos_token", stated)

        return edited(change, name=f"{pre}-{stated}.gguf")

    paths = [made(pre, stated) for pre in (*PRE, *PRE_WITHOUT) for stated in (None, True, False)]
    found = read_vocabularies(paths)
    assert [source_of(path).adds_first for path in paths] == [one["adds_first"] for one in found]
    assert {one["adds_first"] for one in found} == {True, False}
    assert {source_of(path).first for path in paths} == {BOS}


def test_a_sentencepiece_vocabulary_without_ids(yarnconv, tmp_path):
    """llama.cpp takes 1 and 2, and adds the first."""
    model = make_checkpoint(tmp_path / "model", "llama", tokenizer=False)
    write_sentencepiece(model, 512)
    edit_config(model, vocab_size=512)
    assert yarnconv("gguf", model, "-o", tmp_path / "plain.gguf")[0] == 0
    file = load(tmp_path / "plain.gguf")
    for key in ("bos_token_id", "eos_token_id", "add_bos_token"):
        file.keys.packed.pop(f"tokenizer.ggml.{key}")
    path = file.write(tmp_path / "edited.gguf")
    (found,) = read_vocabularies([path])
    source = source_of(path)
    assert (found["adds_first"], found["first"], found["ends"]) == (True, 1, [2])
    assert (source.adds_first, source.first, source.ends) == (True, "<s>", ("</s>",))
