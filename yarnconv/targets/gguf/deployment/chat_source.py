"""What a Modelfile has to know of a model's chats, wherever that stands, and what ends an answer."""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

# llama.cpp ends an answer at these texts of its vocabulary whatever a file says (`llama-vocab.cpp`, October
# 2026). At the three that it knows of filling in the middle it ends too, but no answer in a chat has them.
ENDS = frozenset(
    {
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>"),
        *("<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]"),
        *("<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>"),
        *("<｜end▁of▁sentence｜>", "[e~["),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSource:
    """where: what it was read from. template: the chat template in Jinja, None where there is none.

    special: the special tokens' texts by the names that chat templates have for them, such as bos_token.
    adds_first: whether llama.cpp puts the first of them before a text by itself; None where nothing says so.
    ends: the texts of the tokens that end an answer. unknown_ends: the ids of those whose text is not known.
    """

    where: str
    template: str | None
    special: Mapping[str, str]
    adds_first: bool | None
    ends: tuple[str, ...]
    unknown_ends: tuple[int, ...]

    @property
    def first(self) -> str:
        """The text of the token that begins every other; nothing where there is none."""
        return self.special.get("bos_token", "")


def _no_ends(found: Set[str]) -> frozenset[str]:
    """Of these ends those that are none beside the others, as llama.cpp tells it: of a message and not of the
    answer that it is a part of, and a text like any other.
    """
    none = set()
    if {"<|return|>", "<|call|>"} <= found or ("<|flush|>" in found and found & {"<|call|>", "<|calls|>"}):
        none.add("<|end|>")
    if found & {"<|tool_response>", "<|plamo:eos|>"}:
        none.add("</s>")
    return frozenset(none)


def ending_tokens(stated: Iterable[int], texts: Mapping[int, str]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """(the texts of the tokens that end an answer, the ids of those whose text is not known), by their ids.

    stated: the ids that a model's files give for it. texts: of the vocabulary, as far as they are known.
    """
    ids = frozenset(stated)
    found = {token: text for token, text in texts.items() if text and (token in ids or text in ENDS)}
    none = _no_ends(frozenset(found.values()))
    known = (found[token] for token in sorted(found) if found[token] not in none)
    return tuple(dict.fromkeys(known)), tuple(sorted(ids - found.keys()))
