"""A chat format as Ollama's TEMPLATE, which is Go's text/template over `.System` and `.Messages`."""

import unicodedata
from itertools import groupby

from yarnconv.targets.gguf.deployment.chat_format import ChatFormat


def stands_for_itself(letter: str) -> bool:
    """Whether a Modelfile keeps a letter. It drops those that Go cannot print, without a word."""
    return letter == " " or unicodedata.category(letter)[0] in "LMNPS"


def _plain(letter: str) -> bool:
    """Whether a letter means itself in a template between three quotation marks."""
    return letter == "\n" or (letter not in '{}"\\' and stands_for_itself(letter))


def go_text(text: str) -> str:
    """A text as a template that gives just that. What would mean something else is a string of Go's."""
    parts = []
    for plain, letters in groupby(text, _plain):
        run = "".join(letters)
        escaped = "".join(f"\\U{ord(letter):08x}" for letter in run)
        parts.append(run if plain else f'{{{{ "{escaped}" }}}}')
    return "".join(parts)


def go_template(chat: ChatFormat, begins_with: str) -> str:
    """The template. begins_with: the text of the token that the runtime puts first by itself, or nothing.

    Ollama joins what follows from one role, gives system texts apart, and leaves an answer open that stands
    last.
    """

    def first(text: str) -> str:
        return go_text(text.removeprefix(begins_with))

    opening = (
        f"{{{{ if $.System }}}}{first(chat.system[0])}{{{{ $.System }}}}{go_text(chat.system[1])}"
        f"{{{{ else }}}}{first(chat.opening)}{{{{ end }}}}"
    )
    user = (
        f"{{{{ $asked = true }}}}{{{{ if $first }}}}{{{{ $first = false }}}}{opening}{{{{ else }}}}"
        f"{go_text(chat.further)}{{{{ end }}}}{{{{ .Content }}}}"
    )
    assistant = f"{{{{ $asked = false }}}}{go_text(chat.answer)}{{{{ .Content }}}}"
    return (
        "{{ $first := true }}{{ $asked := false }}{{ range .Messages }}"
        f'{{{{ if eq .Role "user" }}}}{user}{{{{ else if eq .Role "assistant" }}}}{assistant}{{{{ end }}}}'
        f"{{{{ end }}}}{{{{ if $asked }}}}{go_text(chat.end)}{{{{ end }}}}"
    )
