"""``mirepoix front``: experts into a front of soups, and the weights for a preference."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mirepoix.types import InputError

if TYPE_CHECKING:
    from mirepoix.fronts._given import Export
    from mirepoix.fronts._given_rewards import Speaking

__all__ = ["front", "tell_choice"]

_TEXT = "Language models"
_START = "What experts must share"


def front(
    experts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=]EXPERT",
            help="Files of weights, model folders, or adapter folders, two or more. The name is that of the file or "
            "folder, unless it is given.",
            show_default=False,
        ),
    ] = None,
    rewards: Annotated[
        list[str] | None,
        typer.Option(
            "--rewards",
            metavar="[NAME=]MODULE:FUNCTION",
            help="Functions of weights: one number per evaluation item, higher is better. With --prompts, functions "
            "of prompts and completions, built-in names, or folders of classifiers.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the results.", show_default=False)
    ] = None,
    points: Annotated[
        int, typer.Option(help="Soups: on the line between two experts, or of the simplex of more.")
    ] = 11,
    preference: Annotated[
        str | None,
        typer.Option(
            metavar="REWARD=WEIGHT,...", help="Choose a soup for these weights of the rewards, and write it."
        ),
    ] = None,
    dense: Annotated[
        bool, typer.Option("--dense", help="Write the chosen soup of adapters as a whole model.")
    ] = False,
    trained: Annotated[
        list[str] | None,
        typer.Option(
            metavar="EXPERT=REWARD",
            help="What experts were trained on, where they are not called like their rewards.",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Of the simplex, of sampled tokens, and of what rewards draw.")
    ] = 0,
    start: Annotated[
        Path | None,
        typer.Option(help="The weights that all experts began with: file or folder.", rich_help_panel=_START),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Allow starts that differ or are not known.", rich_help_panel=_START),
    ] = False,
    container: Annotated[
        str | None,
        typer.Option(
            help="Where the weights are in torch files: state_dict, model, ...", rich_help_panel=_START
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="A .txt file with a prompt per line; or .jsonl, .json with objects that have the key prompt.",
            rich_help_panel=_TEXT,
        ),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of a completion. [default: 32]", rich_help_panel=_TEXT)
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="0 takes the most probable tokens. [default: 0]", rich_help_panel=_TEXT),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Prompts at a time. [default: 64]", rich_help_panel=_TEXT)
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Where the network runs: auto, cpu, cuda. [default: auto]", rich_help_panel=_TEXT),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Evaluate anew what is kept in OUT/values.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Evaluate the soups of experts with your rewards: their front, and the weights for a preference.

    Experts are fine-tunings of one start, by any trainer, each for another reward. The folder gets report.html,
    front.json and, with --preference, the chosen weights. A job that was stopped, however it was stopped, continues
    when the same command runs again.
    """
    if out is None:
        raise InputError("front: expected a folder for the results, got none. Pass -o FOLDER.")
    named = _experts(experts or [])
    wanted = None if preference is None else _preference(preference)
    if dense and wanted is None:
        raise InputError("--dense: goes with --preference, and adapters.")
    speaking = _speaking(prompts, max_tokens, temperature, batch_size, device)
    content = _work(
        named,
        rewards or [],
        out,
        dense,
        start=start,
        trained=_trained(trained or []),
        speaking=speaking,
        points=points,
        preference=wanted,
        seed=seed,
        container=container,
        force=force,
        fresh=fresh,
    )
    if as_json:
        typer.echo(json.dumps(content, ensure_ascii=False))
        return
    from rich.console import Console

    from mirepoix.report import terminal_table

    Console().print(terminal_table(content))
    typer.echo(f"\n{content['verdict']}")
    tell_choice(content)
    typer.echo(f"\nReport: {out / 'report.html'}")


def tell_choice(content: dict[str, Any], folder: Path | None = None) -> None:
    """Which soup was chosen, what it earns, and where it is."""
    chosen = content.get("choice")
    if chosen is not None:
        shares = ", ".join(f"{name} {share:.3g}" for name, share in chosen["coefficients"].items() if share)
        expected = ", ".join(f"{name} {value:.4g}" for name, value in chosen["expected"].items())
        place = chosen["exported"] if folder is None else folder / chosen["exported"]
        typer.echo(f"\nChosen: {shares} ({expected}): {place}")


def _work(
    experts: dict[str, Path], rewards: Sequence[str], out: Path, dense: bool, **options: Any
) -> dict[str, Any]:
    """The job with a progress bar on standard error, the chosen weights, and the page."""
    from mirepoix.cli._progress import Bar

    with Bar() as bar:
        bar.stage("loading torch")
        from mirepoix.experiment import claimed
        from mirepoix.fronts import front_report
        from mirepoix.fronts._given import front_of_experts
        from mirepoix.report import write_report
        from mirepoix.store import environment

        with claimed(out, shares=False):
            found = front_of_experts(experts, rewards, out=out, held=True, progress=bar, **options)
            choice = found.choice
            if choice is not None and found.export is not None:
                bar.stage("writing the chosen weights")
                place, notes = _export(found.export, out, dense, options["container"])
                choice = {**choice, "exported": str(place), "notes": [*choice["notes"], *notes]}
            facts = [*found.facts, ("Chosen weights", _exported(choice))]
            content = front_report(
                [found.trial],
                name=found.trial.name,
                title=f"Rewarded soups of {', '.join(found.trial.soups.experts)}",
                facts=facts,
                protocol=found.protocol,
                choice=choice,
                samples=found.samples,
                warnings=[],  # the provenance of the front has them
                environment=environment(),
                command=shlex.join(["mirepoix", *sys.argv[1:]]),
            )
            bar.stage("writing the report")
            write_report(content, out)
    return content


def _export(export: Export, out: Path, dense: bool, container: str | None) -> tuple[Path, list[str]]:
    """The chosen soup, written as `mirepoix soup` writes it; where, and what to know of it."""
    from mirepoix.cli._carry_out import Description
    from mirepoix.cli._soup import _merge
    from mirepoix.cli._staging import check_out

    if dense and not export.adapters:
        raise InputError("--dense: goes with adapters, and the experts are whole models, as is their soup.")
    place = out / ("chosen" if export.adapters or export.folders else "chosen.safetensors")
    check_out(place, force=True)
    description = Description(
        export.members,
        "average",
        {"coefficients": list(export.coefficients)},
        export.base if dense else None,
        {},
        {"mode": "dense" if dense else "cat"} if export.adapters else None,
        container,
    )
    record = _merge(description, place, {}, [], True)
    return place, record["notes"]


def _exported(choice: dict[str, Any] | None) -> str:
    if choice is None:
        return "None: run the command again with --preference REWARD=WEIGHT,... to choose and write them."
    return f"{choice['exported']}; `mirepoix rebuild` makes them again from the record beside them."


def _experts(words: Sequence[str]) -> dict[str, Path]:
    """Paths by name, which is that of the file or folder unless it stands before an equals sign."""
    found: dict[str, Path] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or Path(word).exists():
            path = word
            resolved = Path(word).resolve()
            name = resolved.name if resolved.is_dir() else resolved.stem
        if not path:
            raise InputError(f"front: expected NAME=PATH, got {word!r}.")
        if name in found:
            raise InputError(
                f"front: two experts are called {name!r}, {found[name]} and {path}. Name them: "
                f"first={found[name]} second={path}."
            )
        found[name] = Path(path)
    return found


def _trained(words: Sequence[str]) -> dict[str, str]:
    found = {}
    for word in words:
        name, equals, reward = word.partition("=")
        if not (name and equals and reward):
            raise InputError(f"--trained: expected EXPERT=REWARD, got {word!r}.")
        if name in found:
            raise InputError(f"--trained: expert {name!r} comes twice.")
        found[name] = reward
    return found


def _preference(text: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for word in filter(None, (part.strip() for part in text.split(","))):
        name, equals, number = word.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            equals = ""
        if not (name and equals):
            raise InputError(f"--preference: expected REWARD=WEIGHT, such as a=0.7,b=0.3, got {word!r}.")
        if name in found:
            raise InputError(f"--preference: {name!r} comes twice.")
        found[name] = weight
    if not found:
        raise InputError(f"--preference: expected REWARD=WEIGHT, such as a=0.7,b=0.3, got {text!r}.")
    return found


def _speaking(
    prompts: Path | None,
    max_tokens: int | None,
    temperature: float | None,
    batch_size: int | None,
    device: str | None,
) -> Speaking | None:
    given = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "batch_size": batch_size,
        "device": device,
    }
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if prompts is None:
        if options:
            raise InputError(f"--{next(iter(options)).replace('_', '-')}: goes with --prompts.")
        return None
    for name in ("max_tokens", "batch_size"):
        if options.get(name, 1) < 1:
            raise InputError(f"--{name.replace('_', '-')}: expected at least 1, got {options[name]}.")
    if not 0 <= options.get("temperature", 0.0) < float("inf"):
        raise InputError(f"--temperature: expected 0 or a positive number, got {options['temperature']:g}.")
    from mirepoix.fronts._given_rewards import Speaking

    return Speaking(prompts=prompts, **options)
