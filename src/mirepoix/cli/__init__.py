"""The command line: one file per verb. Nothing heavy is imported before a verb needs it."""

from mirepoix.cli._app import app, main

__all__ = ["app", "main"]
