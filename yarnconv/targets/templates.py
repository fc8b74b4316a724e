"""What is written beside a model: Jinja templates, and files that are copied as they are."""

import re
import shlex
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2

PACKAGE, ROOM = "yarnconv", "templates"
SHARED = "shared"  # what every runtime's templates use
# what can begin markup, a link, HTML, mathematics or a table's cell within a line
_MARKUP = re.compile(r"([\\`*_\[\]<>&|~$#@]|:(?=/))")


def markdown(text: object) -> str:
    """A stranger's text as one line of Markdown that says just that."""
    line = " ".join(str(text).split())
    return _MARKUP.sub(r"\\\1", "".join(letter if letter.isprintable() else "?" for letter in line))


def yaml_text(text: str) -> str:
    """A stranger's text as a string of YAML."""

    def escaped(letter: str) -> str:
        if letter in '"\\':
            return f"\\{letter}"
        return letter if letter.isprintable() else f"\\U{ord(letter):08x}"

    return f'"{"".join(map(escaped, text))}"'


def workflow_text(text: str) -> str:
    """A stranger's text as a string of YAML in which GitHub Actions sees no expression."""
    # an expression that gives what begins one
    return yaml_text(text.replace("${{", "${{ '${{' }}"))


def kubernetes_text(text: str) -> str:
    """A stranger's text as a string of YAML, a word of a command in which Kubernetes sees no variable."""
    return yaml_text(text.replace("$", "$$"))


def plain_name(name: str) -> str:
    """A stranger's name as one that needs no quoting anywhere."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip(".-")[:80] or "model"


def _is_html(template: str | None) -> bool:
    return template is not None and template.endswith(".html.jinja")


@cache
def _environment() -> "jinja2.Environment":
    import jinja2  # here, because most commands render nothing

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(PACKAGE, ROOM),
        undefined=jinja2.StrictUndefined,
        autoescape=_is_html,  # noqa: S701 - what is no HTML says at each value how it is quoted
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["markdown"] = markdown
    environment.filters["shell"] = shlex.quote
    environment.filters["yaml"] = yaml_text
    environment.filters["workflow"] = workflow_text
    environment.filters["kubernetes"] = kubernetes_text
    return environment


def render(name: str, values: Mapping[str, Any]) -> str:
    """The template `name`.jinja with its values."""
    return _environment().get_template(f"{name}.jinja").render(values)


def verbatim(name: str) -> bytes:
    """A file that needs no values."""
    return (files(PACKAGE) / ROOM / name).read_bytes()


def _runner_files(runtime: str) -> list[str]:
    """generate.py of a runtime, first, and what it imports, as this package names them."""
    names = [
        f"{room}/{file.name}"
        for room in (runtime, SHARED)
        for file in (files(PACKAGE) / ROOM / room).iterdir()
        if file.name.endswith(".py")
    ]
    return sorted(names, key=lambda name: (name != f"{runtime}/generate.py", name))


def runner_names(runtime: str) -> list[str]:
    """What `copy_runner` writes."""
    return [name.rpartition("/")[2] for name in _runner_files(runtime)]


def copy_runner(runtime: str, directory: Path) -> list[Path]:
    """Write generate.py of a runtime, and what it imports, into a model's directory. Returns their paths,
    generate.py's first.
    """
    copied = []
    for name in _runner_files(runtime):
        path = directory / name.rpartition("/")[2]
        path.write_bytes(verbatim(name))
        copied.append(path)
    return copied
