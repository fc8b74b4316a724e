"""Which of llama.cpp's pre-tokenizers a tokenizer.json asks for, recognised from its own rules.

llama.cpp hard-codes the splitting rules and selects them by the name in `tokenizer.ggml.pre`. A wrong
name splits text differently from the original tokenizer and says nothing, so rules that are not in
`pretokenizers.toml` are an error.
"""

import hashlib
import json
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from yarnconv.errors import BadInput

Rules = tuple[tuple[str, str], ...]
# Normalizers that llama.cpp's byte-level BPE leaves out and that change no token of the text people
# write: its converter accepts them as well.
_HARMLESS_NORMALIZERS = ("NFC",)


@cache
def _known() -> Mapping[tuple[Rules, bool], str]:
    data = resources.files("yarnconv.targets.gguf").joinpath("pretokenizers.toml")
    table = tomllib.loads(data.read_text(encoding="utf-8"))
    return {
        (tuple((kind, argument) for kind, argument in entry["rules"]), entry["ignore_merges"]): name
        for name, entry in table.items()
    }


def known_names() -> tuple[str, ...]:
    """The names that can be recognised."""
    return tuple(_known().values())


def _split_rule(step: Mapping[str, Any]) -> tuple[str, str]:
    pattern = step.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, Mapping) else None
    # Removed and inverted keeps exactly the matches, which is the same where the pattern leaves no
    # text unmatched, and those that are known leave none.
    form = [step.get("behavior"), step.get("invert", False)]
    if not isinstance(regex, str) or form not in (["Isolated", False], ["Removed", True]):
        return "unknown", json.dumps(step, sort_keys=True)
    digest = "sha256:" + hashlib.sha256(regex.encode("utf-8", "surrogatepass")).hexdigest()
    quoted = {argument for (rules, _) in _known() for _, argument in rules}
    return "split", digest if digest in quoted else regex


def _rules(step: Any) -> Rules:
    """The rules of a tokenizer.json's `pre_tokenizer`, spelled as in the table."""
    if not isinstance(step, Mapping):
        return () if step is None else (("unknown", repr(step)),)
    kind = step.get("type")
    if kind == "Sequence":
        steps = step.get("pretokenizers")
        return tuple(r for inner in steps for r in _rules(inner)) if isinstance(steps, list) else ()
    if kind == "Split":
        return (_split_rule(step),)
    if kind == "Digits":
        return (("digits", "single" if step.get("individual_digits") else "runs"),)
    if kind == "ByteLevel" and not step.get("add_prefix_space", True):
        return (("bytes", "words" if step.get("use_regex", True) else ""),)
    return (("unknown", json.dumps(step, sort_keys=True)),)


def _normalizer_is_harmless(normalizer: Any) -> bool:
    if normalizer is None:
        return True
    if not isinstance(normalizer, Mapping):
        return False
    if normalizer.get("type") == "Sequence":
        return all(map(_normalizer_is_harmless, normalizer.get("normalizers") or []))
    return normalizer.get("type") in _HARMLESS_NORMALIZERS


def recognise_pretokenizer(tokenizer: Mapping[str, Any]) -> str:
    """llama.cpp's name for the pre-tokenizer of a byte-level BPE tokenizer.json."""
    model = tokenizer.get("model")
    ignore_merges = isinstance(model, Mapping) and bool(model.get("ignore_merges"))
    rules = _rules(tokenizer.get("pre_tokenizer"))
    name = _known().get((rules, ignore_merges))
    if name is not None and _normalizer_is_harmless(tokenizer.get("normalizer")):
        return name
    what = "the normalizer" if name is not None else "the pre-tokenizer"
    raise BadInput(
        f"{what} is none that is known of llama.cpp",
        where="tokenizer.json: pre_tokenizer, normalizer",
        fix=f"If you know which of llama.cpp's pre-tokenizers it is, give --pre NAME "
        f"(recognised: {', '.join(known_names())}). A wrong one splits text wrongly without a word.",
    )
