"""What a Jinja chat template does, learned from what it renders: the texts between those of a conversation.

Rendered with marks for texts, a template shows what it puts before, between and behind them. That is a format
if it explains what the template makes of other conversations too; where it does not, there is none to be had.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from yarnconv.errors import RuntimeCrashed
from yarnconv.worker import RuntimeRefused, Worker

WORKER = Path(__file__).with_name("chat_worker.py")
LONGEST_TEMPLATE = 2**18  # characters
LONGEST_FORMAT = 2**14  # characters of all pieces

Conversation = Sequence[tuple[str, str]]  # role and text

_SYSTEM, _FIRST, _ANSWER, _SECOND = "Qsystem1Q", "Quser2Q", "Qassistant3Q", "Quser4Q"


class NotLearned(Exception):
    """Why a template's format is not known, in words of ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatFormat:
    """The texts around those of a conversation: an optional system text, then user and assistant in turn.

    opening: before a user's text that begins it. system: before and behind a system text, up to the first
    user's. answer: between a user's text and the assistant's. further: between that and the next user's. end:
    behind the last user's text, where the assistant is to go on. trims: whether the template strips blanks
    off the ends of texts, which this does not say.
    """

    opening: str
    system: tuple[str, str]
    answer: str
    further: str
    end: str
    trims: bool

    def render(self, conversation: Conversation) -> str:
        """The prompt of a conversation that ends with a user's text."""
        parts, before = [], self.opening
        for role, text in conversation:
            if role == "system":
                parts += [self.system[0], text]
                before = self.system[1]
            elif role == "user":
                parts += [before, text]
                before = self.further
            else:
                parts += [self.answer, text]
        return "".join([*parts, self.end])


_LEARNING: tuple[Conversation, ...] = (
    (("user", _FIRST),),
    (("user", _FIRST), ("assistant", _ANSWER), ("user", _SECOND)),
    (("system", _SYSTEM), ("user", _FIRST)),
)
_PROVING: tuple[Conversation, ...] = (
    (("user", "What is 7 * 7?"),),
    (("system", "Be brief.\n\nAnd kind."), ("user", "Hello, \"world\": {{ 'a' }} <b>")),
    (
        *(("user", "One.\nTwo."), ("assistant", "Three\n\n- four"), ("user", "five"), ("assistant", "6")),
        ("user", "Und dann? \u00e9\u4e2d"),
    ),
    (
        *(("system", "You answer."), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")),
        ("user", "e"),
    ),
    (("user", "a"), ("assistant", "a"), ("user", "a")),
)
_BLANKS: Conversation = (("user", " a \n"),)


def _render_all(template: str, variables: Mapping[str, str], where: str) -> list[str | None]:
    request = {
        "path": where,
        "template": template,
        "variables": dict(variables),
        "conversations": [
            [{"role": role, "content": text} for role, text in conversation]
            for conversation in (*_LEARNING, *_PROVING, _BLANKS)
        ],
    }
    with Worker("Jinja", WORKER) as worker:
        try:
            texts: list[str | None] = worker.ask(request)["texts"]
        except RuntimeRefused as refusal:
            raise NotLearned(refusal.what) from None
        except RuntimeCrashed:
            raise NotLearned("it takes too long") from None
    return texts


def _between(text: str | None, marks: Sequence[str], what: str) -> list[str]:
    """The texts before, between and behind the marks, of which each has to stand there once, in order."""
    if text is None:
        raise NotLearned(f"it refuses {what}")
    parts = []
    for mark in marks:
        if text.count(mark) != 1:
            raise NotLearned(f"it does not show each text of {what} once, in order")
        before, _, text = text.partition(mark)
        parts.append(before)
    return [*parts, text]


def learn_chat_format(template: str, variables: Mapping[str, str], where: str) -> ChatFormat:
    """The format of a chat template. variables: the special tokens that it can name. where: its file.

    Raises NotLearned where the template is none that is made of such pieces.
    """
    if len(template) > LONGEST_TEMPLATE:
        raise NotLearned(f"it is longer than {LONGEST_TEMPLATE} characters")
    texts = _render_all(template, variables, where)
    opening, end = _between(texts[0], [_FIRST], "a user's text")
    *first, answer, further, last = _between(texts[1], [_FIRST, _ANSWER, _SECOND], "an answer and a question")
    before, behind, after = _between(texts[2], [_SYSTEM, _FIRST], "a system text")
    if first != [opening] or {last, after} != {end}:
        raise NotLearned("what it puts around a text depends on the others")
    pieces = [opening, before, behind, answer, further, end]
    if sum(map(len, pieces)) > LONGEST_FORMAT:
        raise NotLearned(f"it puts more than {LONGEST_FORMAT} characters around texts")
    try:
        "".join(pieces).encode()
    except UnicodeEncodeError:
        raise NotLearned("it writes half a character") from None
    found = ChatFormat(
        opening=opening, system=(before, behind), answer=answer, further=further, end=end, trims=False
    )
    proofs = texts[len(_LEARNING) : -1]
    if any(found.render(conversation) != text for conversation, text in zip(_PROVING, proofs, strict=True)):
        raise NotLearned("what it puts around a text depends on the text, or on where it stands")
    return replace(found, trims=texts[-1] != found.render(_BLANKS))
