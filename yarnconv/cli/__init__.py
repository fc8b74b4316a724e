"""The command line. Heavy imports happen inside the commands."""

from yarnconv.cli import app as _commands  # noqa: F401 - registers them
from yarnconv.cli import checkpoints as _checkpoints  # noqa: F401 - registers them
from yarnconv.cli import ci as _ci  # noqa: F401 - registers it
from yarnconv.cli import engines as _engines  # noqa: F401 - registers them
from yarnconv.cli import inspect as _inspect  # noqa: F401 - registers it
from yarnconv.cli.root import app, main

__all__ = ["app", "main"]
