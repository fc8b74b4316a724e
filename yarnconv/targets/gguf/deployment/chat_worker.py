"""Renders a stranger's chat template, in a process of its own that has little time and memory.

Run as a script. One request: {"path", "template", "variables", "conversations": [[{"role", "content"}]]},
answered with {"texts": [...]}: what each renders to, null where the template refuses it. {"refused": reason}
where it is no template, or one whose texts say nothing.

The environment is transformers' own for chat templates (`chat_template_utils`), as far as templates of text
see it; with fewer globals.
"""

import json
import resource
import sys
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

sys.path.append(str(Path(__file__).parents[4]))
from yarnconv.worker_side import Answer, Refused, serve

SECONDS = 5  # of computing, for all conversations
MEMORY_BYTES = 2**30
LONGEST_TEXT = 2**18  # characters that one conversation may render to


class _Namespace(jinja2.utils.Namespace):
    """What a template may keep: no name that Python gives a meaning."""

    def __init__(self, **attributes: Any) -> None:
        for name in attributes:
            self._check(name)
        super().__init__(attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        self._check(name)
        super().__setitem__(name, value)

    @staticmethod
    def _check(name: str) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a template keeps nothing as {name}")


class _Generation(Extension):
    """The tag around what an assistant says, which marks it for training and renders as what is in it."""

    tags = {"generation"}  # noqa: RUF012 - jinja's own type of it

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """The statements within."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _date(how: str) -> str:
    raise Refused("it asks for the date, and what is written today would stay")


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals = {
        "range": environment.globals["range"],
        "namespace": _Namespace,
        "raise_exception": _raise_exception,
        "strftime_now": _date,
    }
    return environment


def _rendered(template: jinja2.Template, values: dict[str, Any]) -> str | None:
    parts, length = [], 0
    try:
        for part in template.generate(values):
            parts.append(part)
            length += len(part)
            if length > LONGEST_TEXT:
                raise Refused(f"it renders to more than {LONGEST_TEXT} characters")
    except MemoryError:
        raise Refused("it takes too much memory") from None
    except Refused:
        raise
    except Exception:  # a stranger's code may raise anything: this conversation has no text
        return None
    return "".join(parts)


def _answer(request: dict[str, Any], answer: Answer) -> dict[str, Any]:
    try:
        template = _environment().from_string(request["template"])
    except MemoryError:
        raise Refused("it takes too much memory") from None
    except Exception as error:  # likewise, while it is parsed
        raise Refused(f"it is no Jinja template ({type(error).__name__})") from None
    texts = []
    for conversation in request["conversations"]:
        values = {
            **request["variables"],
            "messages": conversation,
            "add_generation_prompt": True,
            "tools": None,
            "documents": None,
        }
        texts.append(_rendered(template, values))
    return {"texts": texts}


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    serve(_answer)
