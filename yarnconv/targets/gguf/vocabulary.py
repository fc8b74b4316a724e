"""The tokenizer's part of a GGUF: tokens, scores, types, merges, special ids, chat template.

Keys and conventions as llama.cpp's own converter writes them, so that the same text gives the same
tokens.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from yarnconv.checkpoint.json_files import MEBIBYTE, read_bytes
from yarnconv.checkpoint.tokenizer import (
    TokenizerFiles,
    added_tokens,
    bpe_merges,
    bpe_vocabulary,
    special_tokens,
)
from yarnconv.errors import BadInput, Inexpressible
from yarnconv.targets.gguf.file_format import Metadata
from yarnconv.targets.gguf.pretokenizer import recognise_pretokenizer

# Keys of the special ids: llama.cpp spells three of the roles out.
_ID_KEYS = {"unk": "unknown", "sep": "seperator", "pad": "padding"}
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# The score of tokens that never come from a merge, as in llama.cpp's converter.
_ADDED_SCORE = -1000.0
_UNUSED_SCORE = -10000.0


def id_key(role: str) -> str:
    """The key of a special token's id."""
    return f"tokenizer.ggml.{_ID_KEYS.get(role, role)}_token_id"


class TokenType(IntEnum):
    """llama.cpp's kinds of token."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_NORMAL = TokenType.NORMAL.value


@dataclass(slots=True, kw_only=True)
class Vocabulary:
    """One entry per id. `model` is llama.cpp's tokenizer model, `pre` its pre-tokenizer."""

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] = field(default_factory=list)


def _looks_special(text: str) -> bool:
    """Some checkpoints forget to mark their control tokens; these shapes are never text."""
    return (
        text in {"<pad>", "<mask>", "<2mass>", "[@BOS@]"}
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<｜") and text.endswith("｜>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )


def _empty(model: str, pre: str, vocab_size: int, *, scored: bool) -> Vocabulary:
    return Vocabulary(
        model=model,
        pre=pre,
        tokens=[f"[PAD{index}]" for index in range(vocab_size)],
        types=[TokenType.UNUSED.value] * vocab_size,
        scores=[_UNUSED_SCORE] * vocab_size if scored else None,
    )


def _check_id(token_id: int, vocab_size: int, where: str) -> int:
    if token_id >= vocab_size:
        raise BadInput(
            f"token id {token_id} lies beyond the vocabulary of {vocab_size}",
            where=where,
            fix="The tokenizer belongs to another model, or config.json: vocab_size is wrong.",
        )
    return token_id


def _add_tokens(vocabulary: Vocabulary, files: TokenizerFiles, where: str) -> None:
    for token in added_tokens(files):
        index = _check_id(token.id, len(vocabulary.tokens), where)
        is_control = token.special or _looks_special(token.content)
        vocabulary.tokens[index] = token.content if is_control else token.content.replace("▁", " ")
        vocabulary.types[index] = TokenType.CONTROL if is_control else TokenType.USER_DEFINED
        if vocabulary.scores is not None:
            vocabulary.scores[index] = _ADDED_SCORE


def _byte_level(
    files: TokenizerFiles, model: Mapping[str, Any], vocab_size: int, pre: str | None
) -> Vocabulary:
    assert files.tokenizer is not None
    vocabulary = _empty("gpt2", pre or recognise_pretokenizer(files.tokenizer), vocab_size, scored=False)
    for text, token_id in bpe_vocabulary(model, vocab_size).items():
        vocabulary.tokens[token_id] = text
        vocabulary.types[token_id] = _NORMAL
    _add_tokens(vocabulary, files, "tokenizer.json: added_tokens")
    vocabulary.merges = bpe_merges(model)
    return vocabulary


def _kinds(step: Any) -> set[str]:
    """The types of a normalizer or pre-tokenizer and of the steps within it."""
    if not isinstance(step, Mapping):
        return set() if step is None else {"unknown"}
    inner = step.get("normalizers") or step.get("pretokenizers") or []
    steps = inner if isinstance(inner, list) else ["unknown"]
    return {str(step.get("type"))}.union(*map(_kinds, steps))


def _require_sentencepiece_rules(files: TokenizerFiles) -> None:
    assert files.tokenizer is not None
    rules = [files.tokenizer.get("normalizer"), files.tokenizer.get("pre_tokenizer")]
    kinds = set[str]().union(*map(_kinds, rules))
    if not kinds & {"Replace", "Metaspace"} or kinds - {"Sequence", "Prepend", "Replace", "Metaspace"}:
        raise BadInput(
            'a BPE with byte fallback whose rules are not SentencePiece\'s (spaces to "▁")',
            where="tokenizer.json: normalizer, pre_tokenizer",
            fix="llama.cpp has no tokenizer for it; add the tokenizer.model if there is one.",
        )


def _byte_fallback(files: TokenizerFiles, model: Mapping[str, Any], vocab_size: int) -> Vocabulary:
    """A SentencePiece BPE that only tokenizer.json holds. llama.cpp merges by score, highest first,
    so a token's score is the negated rank of the merge that makes it.
    """
    _require_sentencepiece_rules(files)
    vocabulary = _empty("llama", "default", vocab_size, scored=True)
    assert vocabulary.scores is not None
    merges = bpe_merges(model)
    ids = bpe_vocabulary(model, vocab_size)
    for text, index in ids.items():
        vocabulary.tokens[index] = text
        is_byte = _BYTE_TOKEN.fullmatch(text) is not None
        vocabulary.types[index] = TokenType.BYTE if is_byte else TokenType.NORMAL
        vocabulary.scores[index] = 0.0 if is_byte else -float(len(merges))
    for rank in range(len(merges) - 1, -1, -1):
        if (made := ids.get(merges[rank].replace(" ", ""))) is not None:
            vocabulary.scores[made] = -float(rank)
    _add_tokens(vocabulary, files, "tokenizer.json: added_tokens")
    unknown = model.get("unk_token")
    if isinstance(unknown, str) and unknown in ids:
        vocabulary.types[ids[unknown]] = TokenType.UNKNOWN
    return vocabulary


def _sentencepiece(files: TokenizerFiles, vocab_size: int) -> Vocabulary:
    """tokenizer.model, with the added tokens of the JSON files beside it laid over it."""
    from sentencepiece import SentencePieceProcessor

    assert files.sentencepiece is not None
    where = files.sentencepiece.name
    processor = SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(read_bytes(files.sentencepiece, 256 * MEBIBYTE))
        size = processor.GetPieceSize()
    except (RuntimeError, ValueError, TypeError):
        raise BadInput("not a SentencePiece model", where=where) from None
    vocabulary = _empty("llama", "default", vocab_size, scored=True)
    assert vocabulary.scores is not None
    _check_id(size - 1, vocab_size, where)
    for index in range(size):
        kind = TokenType.NORMAL
        if processor.IsUnknown(index):
            kind = TokenType.UNKNOWN
        elif processor.IsControl(index):
            kind = TokenType.CONTROL
        elif processor.IsUnused(index):
            kind = TokenType.UNUSED
        elif processor.IsByte(index):
            kind = TokenType.BYTE
        vocabulary.tokens[index] = processor.IdToPiece(index)
        vocabulary.scores[index] = processor.GetScore(index)
        vocabulary.types[index] = kind
    for text, token_id in files.added.items():
        index = _check_id(token_id, vocab_size, "added_tokens.json")
        vocabulary.tokens[index] = text
        vocabulary.scores[index] = _ADDED_SCORE
        vocabulary.types[index] = TokenType.USER_DEFINED
    decoder_only = TokenizerFiles(
        directory=files.directory, tokenizer=None, config=files.config, sentencepiece=None
    )
    _add_tokens(vocabulary, decoder_only, "tokenizer_config.json: added_tokens_decoder")
    return vocabulary


def build_vocabulary(files: TokenizerFiles, vocab_size: int, pre: str | None) -> Vocabulary:
    """The vocabulary of a checkpoint; `pre` overrides what is recognised of a byte-level BPE."""
    model = files.tokenizer.get("model") if files.tokenizer is not None else None
    scored = files.sentencepiece is not None or (isinstance(model, Mapping) and model.get("byte_fallback"))
    if pre is not None and scored:
        raise BadInput("a SentencePiece tokenizer has no pre-tokenizer", where="--pre", fix="Leave it out.")
    if files.sentencepiece is not None:
        return _sentencepiece(files, vocab_size)
    if not isinstance(model, Mapping) or model.get("type", "BPE") != "BPE":
        found = model.get("type") if isinstance(model, Mapping) else model
        raise BadInput(
            f"the tokenizer's model is {found!r}, not BPE",
            where="tokenizer.json: model.type",
            fix="SentencePiece models need their tokenizer.model in the checkpoint's directory.",
        )
    if model.get("byte_fallback"):
        return _byte_fallback(files, model, vocab_size)
    return _byte_level(files, model, vocab_size, pre)


def write_vocabulary(
    metadata: Metadata,
    files: TokenizerFiles,
    model_config: Mapping[str, Any],
    *,
    pre: str | None,
    space_prefix_key: bool,
) -> None:
    """Set all keys under `tokenizer.`"""
    vocab_size = int(model_config["vocab_size"])
    vocabulary = build_vocabulary(files, vocab_size, pre)
    if len(set(vocabulary.tokens)) != len(vocabulary.tokens):
        twice = Counter(vocabulary.tokens).most_common(1)[0][0]
        raise BadInput(
            f"the token {twice!r} has more than one id, which llama.cpp does not load",
            where="tokenizer.json",
        )
    if vocabulary.model == "gpt2" and not vocabulary.merges:
        raise Inexpressible(
            "llama.cpp loads no byte-level BPE without merges",
            where="tokenizer.json: model.merges",
            fix="Give it one merge, of two bytes that never meet.",
        )
    add_prefix_space = files.config.get("add_prefix_space")
    if space_prefix_key and isinstance(add_prefix_space, bool):
        metadata.boolean("tokenizer.ggml.add_space_prefix", add_prefix_space)
    metadata.string("tokenizer.ggml.model", vocabulary.model)
    metadata.string("tokenizer.ggml.pre", vocabulary.pre)
    metadata.strings("tokenizer.ggml.tokens", vocabulary.tokens)
    if vocabulary.scores is not None:
        metadata.float32s("tokenizer.ggml.scores", vocabulary.scores)
    metadata.int32s("tokenizer.ggml.token_type", vocabulary.types)
    if vocabulary.merges:
        metadata.strings("tokenizer.ggml.merges", vocabulary.merges)
    special = special_tokens(files, model_config, vocab_size)
    for role, token_id in special.ids.items():
        metadata.uint32(id_key(role), token_id)
    for role, adds in special.adds.items():
        if role in {"bos", "eos", "sep"}:
            metadata.boolean(f"tokenizer.ggml.add_{role}_token", adds)
    for name, template in files.chat_templates.items():
        key = "tokenizer.chat_template" if name == "default" else f"tokenizer.chat_template.{name}"
        metadata.string(key, template)
    if others := [name for name in files.chat_templates if name != "default"]:
        metadata.strings("tokenizer.chat_templates", others)
