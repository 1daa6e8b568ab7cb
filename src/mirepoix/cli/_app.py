"""The verbs, and how errors leave the house."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer

from mirepoix import __version__
from mirepoix.cli._check import check
from mirepoix.cli._connect import connect
from mirepoix.cli._convert import convert
from mirepoix.cli._diversity import diversity
from mirepoix.cli._domainbed import domainbed
from mirepoix.cli._explain import explain
from mirepoix.cli._fast import parsed
from mirepoix.cli._front import front
from mirepoix.cli._inspect import inspect
from mirepoix.cli._landscape import landscape
from mirepoix.cli._many import taking_many
from mirepoix.cli._rebuild import rebuild
from mirepoix.cli._report import report
from mirepoix.cli._run import run
from mirepoix.cli._soup import soup
from mirepoix.types import InputError

__all__ = ["app", "main"]

app = typer.Typer(
    name="mirepoix",
    help="Train several fine-tunings from one start, average or ensemble them, and know why it worked.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for verb in (run, report, check, soup, connect, landscape, convert, inspect, rebuild):
    app.command()(verb)
app.command(cls=taking_many("--ood"))(diversity)
app.command(cls=taking_many("--id", "--ood", "--weights"))(explain)
app.command(cls=taking_many("--rewards", "--trained"))(front)
app.add_typer(domainbed, name="domainbed")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mirepoix {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the verb."""


app.info.help = "Train several fine-tunings from one start, average or ensemble them, and know why it worked."


def main() -> None:
    """Run the command line: exit code 2 and one message for what a person can mend."""
    with contextlib.suppress(ValueError):  # not in the main thread
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _end)  # so that temporary files are removed
    warnings.showwarning = _note(warnings.showwarning)
    # A job that is long remembers what it has done; the other verbs have written nothing until they end.
    continues = sys.argv[1:2] in (["run"], ["domainbed"], ["front"])
    try:
        _run()
    except InputError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _stopped(continues)
    except SystemExit as end:
        if end.code == 130:  # what typer makes of Ctrl-C, without a word
            _stopped(continues)
        raise
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            advice = "there is no room left. Free some, and run the same command again"
            if error.errno == errno.EFBIG:
                advice = "no file may be so large there. Raise the limit, choose another place or, for a soup, pass "
                advice += "--max-shard 2GB, and run the same command again"
            advice += ": it continues." if continues else "; nothing was written."
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            advice = "it may not be written or read. Choose another --out, or change its permissions."
        elif error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
            advice = "a file stands where a folder is needed, or a folder for a file. Choose another --out or --store."
        elif error.errno in (errno.ENAMETOOLONG, errno.EIO, errno.ESTALE):
            advice = "the file system refuses it. Choose an --out or --store on another one."
        else:
            raise
        _fail(f"{error.filename or 'output'}: {error.strerror}: {advice}", 2)


FAST: dict[str, Callable[..., None]] = {"check": check, "soup": soup}
"""Verbs that are done sooner than typer would have read their options."""


def _run() -> None:
    verb = sys.argv[1] if len(sys.argv) > 1 else ""
    arguments = parsed(FAST[verb], sys.argv[2:]) if verb in FAST else None
    if arguments is None:
        app()
        return
    try:
        FAST[verb](**arguments)
    except typer.Exit as end:
        sys.exit(end.exit_code)
    sys.exit(0)


def _note(show: Callable[..., None]) -> Callable[..., None]:
    """Our warnings as notes, without the line of source that raised them; others as they were."""

    def note(message: Warning | str, category: type[Warning], filename: str, *rest: Any) -> None:
        if category is UserWarning and f"{os.sep}mirepoix{os.sep}" in filename:
            typer.echo(f"note: {message}", err=True)
        else:
            show(message, category, filename, *rest)

    return note


def _end(number: int, _: object) -> None:
    sys.exit(128 + number)


def _stopped(continues: bool) -> None:
    _fail(
        f"stopped; {'the same command continues where it was' if continues else 'nothing was written'}.", 130
    )


def _fail(message: str, code: int) -> None:
    typer.echo(f"mirepoix: {message}", err=True)
    sys.exit(code)
