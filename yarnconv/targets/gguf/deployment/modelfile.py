"""Ollama's Modelfile: the file, its context, its chat format, and where an answer ends.

Its grammar (Ollama's docs/modelfile and parser): one instruction a line; a value between three quotation
marks may run over lines and ends where three of them end a line; there are no escapes, and letters that Go
cannot print are dropped. So a value that this cannot carry is not written.
"""

from collections.abc import Iterable

from yarnconv import __version__
from yarnconv.errors import BadInput
from yarnconv.rope.scaling import Unscaled, method_name
from yarnconv.targets.beside import MARK, Beside, FileBeside
from yarnconv.targets.gguf.deployment.chat_format import NotLearned, learn_chat_format
from yarnconv.targets.gguf.deployment.chat_source import ChatSource
from yarnconv.targets.gguf.deployment.go_template import go_template, stands_for_itself
from yarnconv.targets.gguf.deployment.job import Deployment
from yarnconv.targets.gguf.deployment.names import modelfile_name
from yarnconv.targets.gguf.launch import OLLAMA_CAVEAT, key_shift_warning
from yarnconv.targets.templates import plain_name, render

MOST_STOPS = 64
TRIMS = "The model's chat template strips blanks off the ends of texts; the Modelfile's does not."


def ollama_name(stem: str) -> str:
    """What to call a model there, by its file's name without .gguf."""
    return plain_name(stem).lower()


def _stop_values(texts: Iterable[str]) -> tuple[list[str], int]:
    """Texts as values of `PARAMETER stop`, and how many cannot be one."""
    values: list[str] = []
    lost = 0
    for text in texts:
        if len(values) == MOST_STOPS or len(text) > 200 or not all(map(stands_for_itself, text)):
            lost += 1
        else:
            values.append(f'"""{text}"""' if '"' in text else f'"{text}"')
    return values, lost


def _learned(chat: ChatSource) -> tuple[str, bool]:
    """The model's chat template in Go's language, without the token that llama.cpp puts first by itself; and
    whether it strips blanks off texts, which this does not.

    Raises NotLearned.
    """
    if chat.template is None:
        raise NotLearned("there is none")
    found = learn_chat_format(chat.template, chat.special, chat.where)
    begins = found.opening.startswith(chat.first) or found.system[0].startswith(chat.first)
    if chat.first and chat.adds_first is None and begins:
        raise NotLearned("it begins with a token of which nothing says who adds it")
    return go_template(found, chat.first if chat.adds_first else ""), found.trims


def _one_line(text: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def modelfile(deployment: Deployment) -> Beside:
    """The Modelfile of a static plan, and what to say of it."""
    rope, stem = deployment.served, deployment.stem
    if deployment.parts > 1:
        fix = "Leave ollama out of --emit, or make one file of it."
        raise BadInput("a Modelfile names one file", where="--emit ollama", fix=fix)
    chat = deployment.read_chat()
    template: str | None
    extended = not isinstance(rope.main, Unscaled)
    notes = [OLLAMA_CAVEAT] if extended else []
    try:
        template, trims = _learned(chat)
        if trims:
            notes.append(TRIMS)
    except NotLearned as reason:
        why = _one_line(str(reason))
        template = None
        notes.append(f"The Modelfile has no TEMPLATE: of the model's chat template, {why}.")
    stops, lost = _stop_values(chat.ends)
    if lost:
        notes.append(f"{lost} tokens that end an answer cannot be written in a Modelfile as text.")
    if chat.unknown_ends:
        listed = ", ".join(map(str, chat.unknown_ends[:8]))
        notes.append(f"The text of tokens that end an answer ({listed}) is not known here.")
    values = {
        "mark": MARK,
        "version": __version__,
        "method": method_name(rope.main),
        "factor": rope.main_group.buckets[-1].factor,
        "extended": extended,
        "name": ollama_name(stem),
        "file": modelfile_name(stem),
        "model": deployment.model,
        "context": rope.target_context,
        "stops": stops,
        "template": template,
        "notes": notes,
        "warning": key_shift_warning(rope),
    }
    file = FileBeside(name=modelfile_name(stem), text=render("gguf/Modelfile", values))
    return Beside(files=(file,), notes=tuple(notes))
