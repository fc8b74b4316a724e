"""The tokenizer files of a checkpoint, read and checked as far as every target needs them.

Nothing is executed and no tokenizer library is loaded: a vocabulary is data.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

from yarnconv.checkpoint.json_files import MEBIBYTE, read_bytes, read_json_object
from yarnconv.errors import BadInput

MAXIMUM_TOKENIZER_BYTES = 512 * MEBIBYTE
SPECIAL_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedToken:
    """A token beside the vocabulary proper; special ones are never part of a text."""

    id: int
    content: str
    special: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialTokens:
    """ids: by role (bos, eos, unk, sep, pad, cls, mask, eot). adds: which are put around a text."""

    ids: Mapping[str, int]
    adds: Mapping[str, bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFiles:
    """What stands in the directory. Any of the three sources may be missing, but not all.

    tokenizer: tokenizer.json. config: tokenizer_config.json. sentencepiece: tokenizer.model's path.
    added: tokens of added_tokens.json, which older SentencePiece checkpoints have.
    """

    directory: Path
    tokenizer: Mapping[str, Any] | None
    config: Mapping[str, Any]
    sentencepiece: Path | None
    added: Mapping[str, int] = field(default_factory=dict)
    chat_templates: Mapping[str, str] = field(default_factory=dict)


def read_tokenizer(directory: Path) -> TokenizerFiles:
    """Read the tokenizer files of a checkpoint directory."""
    tokenizer_json, model_file = directory / "tokenizer.json", directory / "tokenizer.model"
    if not tokenizer_json.exists() and not model_file.exists():
        raise BadInput(
            "there is no tokenizer.json and no tokenizer.model",
            where=str(directory),
            fix="Copy the tokenizer's files into the checkpoint's directory.",
        )
    tokenizer = read_json_object(tokenizer_json, MAXIMUM_TOKENIZER_BYTES) if tokenizer_json.exists() else None
    config_file = directory / "tokenizer_config.json"
    config = read_json_object(config_file, 64 * MEBIBYTE) if config_file.exists() else {}
    added_file = directory / "added_tokens.json"
    added = read_json_object(added_file, 64 * MEBIBYTE) if added_file.exists() else {}
    for content, token in added.items():
        if isinstance(token, bool) or not isinstance(token, int) or token < 0:
            raise BadInput(f"the id of {content!r} is {token!r}", where="added_tokens.json")
    return TokenizerFiles(
        directory=directory,
        tokenizer=tokenizer,
        config=config,
        sentencepiece=model_file if model_file.exists() else None,
        added=added,
        chat_templates=_chat_templates(directory, config),
    )


def _chat_templates(directory: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The chat templates by name, from wherever transformers 4 or 5 put them; one without is "default"."""
    template = config.get("chat_template")
    if template is None and (directory / "chat_template.jinja").exists():
        data = read_bytes(directory / "chat_template.jinja", 16 * MEBIBYTE)
        try:
            template = data.decode("utf-8")
        except UnicodeDecodeError:
            raise BadInput("not valid UTF-8", where="chat_template.jinja") from None
    elif template is None and (directory / "chat_template.json").exists():
        template = read_json_object(directory / "chat_template.json").get("chat_template")
    if template is None:
        return {}
    if isinstance(template, str):
        return {"default": template}
    named: dict[str, str] = {}
    for entry in template if isinstance(template, list) else [template]:
        name, text = (entry.get(k) if isinstance(entry, Mapping) else None for k in ("name", "template"))
        if not isinstance(name, str) or not isinstance(text, str):
            raise BadInput(
                "the chat template is neither a text nor a list of named ones", where="chat_template"
            )
        named[name] = text
    return named


def added_tokens(files: TokenizerFiles) -> list[AddedToken]:
    """The added tokens of tokenizer.json, or of tokenizer_config.json where there is none."""
    where = "tokenizer.json: added_tokens"
    if files.tokenizer is not None:
        entries = files.tokenizer.get("added_tokens") or []
        if not isinstance(entries, list):
            raise BadInput("not a list", where=where)
        pairs = [(e.get("id") if isinstance(e, Mapping) else None, e) for e in entries]
    else:
        where = "tokenizer_config.json: added_tokens_decoder"
        decoder = files.config.get("added_tokens_decoder") or {}
        if not isinstance(decoder, Mapping):
            raise BadInput("not an object", where=where)
        pairs = [(int(k) if k.isdecimal() and len(k) < 10 else None, e) for k, e in decoder.items()]
    tokens = []
    for token, entry in pairs:
        content = entry.get("content") if isinstance(entry, Mapping) else None
        if isinstance(token, bool) or not isinstance(token, int) or token < 0 or not isinstance(content, str):
            raise BadInput(f"an entry has id {token!r} and content {content!r}", where=where)
        tokens.append(AddedToken(id=token, content=content, special=bool(entry.get("special"))))
    return tokens


def token_text(config: Mapping[str, Any], role: str) -> str | None:
    """The text of a role's token, by tokenizer_config.json."""
    entry = config.get(f"{role}_token")
    if isinstance(entry, Mapping):
        entry = entry.get("content")
    return entry if isinstance(entry, str) else None


def _special_id(step: Any) -> str | None:
    special = step.get("SpecialToken") if isinstance(step, Mapping) else None
    name = special.get("id") if isinstance(special, Mapping) else None
    return name if isinstance(name, str) else None


def _post_processors(tokenizer: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    processor = (tokenizer or {}).get("post_processor")
    if not isinstance(processor, Mapping):
        return []
    steps = processor.get("processors", [processor])
    return [s for s in steps if isinstance(s, Mapping)] if isinstance(steps, list) else []


def _template_adds(processor: Mapping[str, Any], texts: dict[str, str | None], adds: dict[str, bool]) -> None:
    """What a TemplateProcessing puts around one text, and between two."""
    single, pair = (processor.get(key) or [] for key in ("single", "pair"))
    if not isinstance(single, list) or not isinstance(pair, list):
        raise BadInput("a template is not a list", where="tokenizer.json: post_processor")
    names = [_special_id(step) for step in single]
    text = names.index(None) if None in names else 0  # the one step that is no special token
    before, after = names[:text], names[text + 1 :]
    known_first = {texts["bos"], texts["cls"]} - {None}
    if len(before) > 1 or len(after) > 1 or (before and known_first and before[0] not in known_first):
        raise BadInput(
            f"puts {before} before a text and {after} after it, where runtimes know one beginning "
            f"({texts['bos']}) and one end",
            where="tokenizer.json: post_processor",
        )
    first, last = (before or [None])[0], (after or [None])[0]
    if first is not None:
        if texts["bos"] is None:
            texts["bos"] = first
        adds["bos"] = first in (texts["bos"], texts["cls"])
    if last is not None:
        if texts["eos"] is not None and texts["eos"] != last:
            texts["eot"] = texts["eos"]  # what ends a turn is not what ends a text
        texts["eos"] = last
        adds["eos"] = True
    start = 1 if first is not None and pair and _special_id(pair[0]) == first else 0
    stop = -1 if last is not None and pair and _special_id(pair[-1]) == last else None
    between = pair[start:stop][1:-1]
    if between:
        separators = (texts["sep"], texts["eos"])
        adds["sep"] = any(_special_id(step) in separators for step in between) and last is None


def special_tokens(files: TokenizerFiles, model_config: Mapping[str, Any], vocab_size: int) -> SpecialTokens:
    """Roles and ids: named in tokenizer_config.json, else given by id in config.json; and which of
    them a text gets: by the post-processor, else by tokenizer_config.json's `add_*_token`.
    """
    texts: dict[str, str | None] = {role: token_text(files.config, role) for role in SPECIAL_ROLES}
    texts["bos"] = texts["bos"] or texts["cls"]
    texts["eos"] = texts["eos"] or texts["sep"]
    adds: dict[str, bool] = {}
    for processor in _post_processors(files.tokenizer):
        if processor.get("type") == "ByteLevel":
            adds.setdefault("bos", False)
            adds.setdefault("eos", False)
        elif processor.get("type") == "TemplateProcessing":
            _template_adds(processor, texts, adds)
        elif processor.get("type") == "RobertaProcessing":
            adds |= {"bos": True, "eos": True, "sep": True}
        else:
            raise BadInput(
                f"{processor.get('type')!r} is not understood", where="tokenizer.json: post_processor"
            )
    for role in SPECIAL_ROLES:
        stated = files.config.get(f"add_{role}_token")
        if isinstance(stated, bool):
            adds.setdefault(role, stated)
    by_content: dict[str, int] = {}
    if files.tokenizer is not None:
        for token in added_tokens(files):
            by_content.setdefault(token.content, token.id)
    ids: dict[str, int] = {}
    for role in (*SPECIAL_ROLES, "eot"):
        text = texts.get(role)
        token_id = by_content.get(text) if text is not None else None
        if token_id is None:
            given = model_config.get(f"{role}_token_id")
            token_id = given if isinstance(given, int) and not isinstance(given, bool) else None
        if token_id is not None and 0 <= token_id < vocab_size:
            ids[role] = token_id
    return SpecialTokens(ids=ids, adds=adds)


def bpe_merges(model: Mapping[str, Any]) -> list[str]:
    """The merges of a BPE tokenizer.json in order of rank, each as two words with a space between.

    The newer spelling is a list of pairs, whose parts may hold spaces; byte-level BPE writes a space
    as "Ġ", and so does the result.
    """
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise BadInput("merges is not a list", where="tokenizer.json: model.merges")
    if set(map(type, merges)) - {str}:
        merges = list(map(_joined_pair, merges))
    words = list(map(str.count, merges, repeat(" ")))  # the interpreter's C code: 280,000 merges
    if set(words) - {1}:
        rank = next(rank for rank, spaces in enumerate(words) if spaces != 1)
        raise BadInput(
            f"merge {rank} is {model['merges'][rank]!r}, not two strings",
            where="tokenizer.json: model.merges",
        )
    return merges


def _joined_pair(merge: Any) -> str:
    """A merge in the older spelling; what is none becomes a string that no merge can be."""
    if isinstance(merge, list) and len(merge) == 2 and type(merge[0]) is type(merge[1]) is str:
        return f"{merge[0].replace(' ', 'Ġ')} {merge[1].replace(' ', 'Ġ')}"
    return merge if isinstance(merge, str) else ""


def bpe_vocabulary(model: Mapping[str, Any], vocab_size: int) -> Mapping[str, int]:
    """Token to id of a BPE tokenizer.json; every id lies within the model's vocabulary."""
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, Mapping) or not vocabulary:
        raise BadInput("vocab is not an object of tokens and ids", where="tokenizer.json: model.vocab")
    for token, token_id in vocabulary.items():
        if type(token_id) is not int or not 0 <= token_id < vocab_size:
            raise BadInput(
                f"the id of {token!r} is {token_id!r}, outside a vocabulary of {vocab_size}",
                where="tokenizer.json: model.vocab",
                fix="The tokenizer belongs to another model, or config.json: vocab_size is wrong.",
            )
    return vocabulary
