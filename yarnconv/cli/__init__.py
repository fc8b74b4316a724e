"""The command line. Heavy imports happen inside the commands."""

from yarnconv.cli.app import app, main

__all__ = ["app", "main"]
