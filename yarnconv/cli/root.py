"""What all commands share: the application, its exit codes, and what means the same in all of them."""

import io
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from yarnconv import __version__
from yarnconv.errors import BadInput, YarnconvError

EXIT_BUG = 70
EXIT_INTERRUPTED = 130
EXIT_CLOSED_PIPE = 141  # as of a program that SIGPIPE ends

app = typer.Typer(
    name="yarnconv",
    help="Extend a checkpoint's context with YaRN, write it for a runtime, prove it.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Checkpoint directory, or a Hub id.")]
Revision = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of a Hub id.")]
MaxContext = Annotated[
    int | None, typer.Option("--max-context", help="Positions of the tables (default: original x factor).")
]
Force = Annotated[
    bool, typer.Option("--force", help="Replace what is there, in one rename when the new one is whole.")
]
OutputDirectory = Annotated[Path | None, typer.Option("-o", "--output", help="Directory to make.")]
Emit = Annotated[
    str | None,
    typer.Option(
        "--emit",
        metavar="NAMES",
        help="Also write, by commas, or all: ollama, llama-server (GGUF), triton (engines), ci, card.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout and nothing else.")]


def _report(error: YarnconvError) -> None:
    from yarnconv.console.messages import print_error

    print_error(error)


def _met_an_interrupt(error: BaseException) -> bool:
    """Whether Ctrl-C broke something on its way up: a library's lock that was just being released."""
    context = error.__context__
    return context is not None and (isinstance(context, KeyboardInterrupt) or _met_an_interrupt(context))


def ends_with_exit_code(command: Callable[..., None]) -> Callable[..., None]:
    """Errors of the user's without a stack trace, bugs with one, each with its exit code."""

    @wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except YarnconvError as error:
            _report(error)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            print("interrupted; nothing was left behind", file=sys.stderr)
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            sys.stderr.close()  # whoever read our output has gone: nothing to say, nobody to tell
            raise typer.Exit(EXIT_CLOSED_PIPE) from None
        except (typer.Exit, typer.Abort):
            raise
        except OSError as error:
            _report(BadInput(error.strerror or str(error), where=str(error.filename or "") or None))
            raise typer.Exit(BadInput.exit_code) from None
        except Exception as error:
            if _met_an_interrupt(error):
                print("interrupted", file=sys.stderr)
                raise typer.Exit(EXIT_INTERRUPTED) from None
            import traceback

            traceback.print_exc()
            print(
                f"\nThis is a bug in yarnconv {__version__} ({type(error).__name__}). Please report it "
                "with the lines above.",
                file=sys.stderr,
            )
            raise typer.Exit(EXIT_BUG) from None

    return guarded


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"yarnconv {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


def parse_place(text: str | None) -> Path | None:
    """Where a file goes. What ends with a slash is a directory, and has to be there."""
    if text is not None and text.endswith("/") and not Path(text).is_dir():
        raise BadInput("no such directory", where=text, fix="Create it, or name a file.")
    return None if text is None else Path(text)


def parse_size(text: str | None, where: str) -> int | None:
    """Bytes of a size such as 5G, in powers of 1000 as llama.cpp's tools count them."""
    if text is None:
        return None
    number, unit = (text[:-1], text[-1].upper()) if text and text[-1].isalpha() else (text, "")
    scale = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}.get(unit)
    if scale is None or not number.isdecimal() or len(number) > 15 or int(number) == 0:
        raise BadInput(f"{text!r} is no size", where=where, fix="Write it as 500M or 5G.")
    return int(number) * scale


def main() -> None:
    """Entry point of the `yarnconv` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # bars on a terminal that has none are no reason to fail
            stream.reconfigure(errors="replace")
    app()
