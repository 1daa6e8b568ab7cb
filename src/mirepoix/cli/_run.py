"""``mirepoix run``: members, soups, ensembles and the report."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mirepoix.types import InputError

if TYPE_CHECKING:
    from mirepoix.comparison import Comparison
    from mirepoix.fronts import FrontRecipe
    from mirepoix.recipe import Recipe

__all__ = ["run"]


def run(
    recipe: Annotated[
        str | None,
        typer.Argument(help="A recipe file, or the name of one that comes with mirepoix. [default: digits]"),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of the images: one sub-folder per domain, in it one per class."),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Domain to leave out for testing, or 'all' for each in turn.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results. [default: mirepoix-<recipe>]")
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(help="Folder of finished trainings, to share between jobs. [default: OUT/store]"),
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe.")
    ] = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave unreadable images out, and say so in the report.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON on standard output.")
    ] = False,
) -> None:
    """Train members from one start, combine them, and report which combination is best and why.

    A recipe with [[systems]] compares ensembles: each is trained in several trials, and the report is a table. A
    recipe with [front] trains one expert per reward, and the report is the front of their soups.

    Without a recipe, the built-in task runs: handwritten digits, rotated into six domains. With --data and no
    recipe, the recipe is 'folder'. A job that was stopped, however it was stopped, continues when the same
    command runs again.
    """
    from mirepoix.recipe import load_recipe, read_values

    settings = list(changes or [])
    if target is not None:
        settings.append(
            "data.targets=" + json.dumps("all" if target == "all" else [target], ensure_ascii=False)
        )
    if skip_unreadable:
        settings.append("data.skip_unreadable=true")
    if recipe is None and data is not None:
        recipe = "folder"
    parsed: Recipe | Comparison | FrontRecipe
    values = read_values(recipe, settings)[0]
    if "front" in values and recipe is not None:
        from mirepoix.fronts import load_front_recipe

        parsed, path = load_front_recipe(recipe, settings)
    elif "systems" in values:
        from mirepoix.comparison import load_comparison

        if recipe is None:
            raise InputError(
                "systems: the recipe that runs without a name compares no ensembles; write one with [[systems]], and "
                "name its file."
            )
        parsed, path = load_comparison(recipe, settings)
    else:
        parsed, path = load_recipe(recipe, settings)
    folder = out or Path(f"mirepoix-{parsed.name}")
    words = ["mirepoix", "run", *([recipe] if recipe else []), *(["--data", str(data)] if data else [])]
    words += [word for setting in settings for word in ("--set", setting)]
    content = _work(parsed, path, folder, data, store, shlex.join(words))
    if as_json:
        typer.echo(json.dumps(content, ensure_ascii=False))
        return
    from rich.console import Console

    from mirepoix.cli._front import tell_choice
    from mirepoix.report import terminal_table

    Console().print(terminal_table(content))
    typer.echo(f"\n{content['verdict']}")
    tell_choice(content, folder)
    typer.echo(f"\nReport: {folder / 'report.html'}")


def _work(
    recipe: Recipe | Comparison | FrontRecipe,
    path: Path,
    folder: Path,
    data: Path | None,
    store: Path | None,
    command: str,
) -> dict[str, object]:
    """Run the recipe with a progress bar on standard error."""
    from mirepoix.cli._progress import Bar
    from mirepoix.fronts import FrontRecipe
    from mirepoix.recipe import Recipe

    with Bar() as bar:
        bar.stage("loading torch")
        from mirepoix.report import write_report

        options: Any = {
            "recipe_path": path,
            "out": folder,
            "data": data,
            "store": store,
            "progress": bar,
            "command": command,
        }
        if isinstance(recipe, Recipe):
            from mirepoix.experiment import run_recipe

            content = run_recipe(recipe, **options)
        elif isinstance(recipe, FrontRecipe):
            from mirepoix.fronts import run_front

            content = run_front(recipe, **options)
        else:
            from mirepoix.comparison import run_comparison

            content = run_comparison(recipe, **options)
        bar.stage("writing the report")
        write_report(content, folder)
    return content
