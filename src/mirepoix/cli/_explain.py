"""``mirepoix explain``: what to ship, whether to trust it, and why, on one page."""

from __future__ import annotations

import glob
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from mirepoix.cli._columns import plain
from mirepoix.cli._score_options import DeviceOption, ModelOption, SizeOption, WidthOption
from mirepoix.types import InputError

__all__ = ["explain"]

AFTER = (
    "Predictions go after --id (ID validation) and --ood (OOD data), and their true classes, where they hold none, "
    "after --labels and --ood-labels: mirepoix explain --id id/*.npz --ood ood/*.npz"
)


def explain(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="FOLDER",
            help="Folder of a finished `mirepoix run`, or of `mirepoix domainbed export`.",
            show_default=False,
        ),
    ] = None,
    id_files: Annotated[
        list[Path] | None,
        typer.Option(
            "--id",
            metavar="FILES",
            help="Predictions of members on ID validation, the only data to choose by; a quoted pattern will do.",
        ),
    ] = None,
    ood: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILES", help="Predictions of the same members on OOD data."),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="True classes of --id, if no file has them.")
    ] = None,
    ood_labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="True classes of --ood, if no file has them.")
    ] = None,
    weights: Annotated[
        list[Path] | None,
        typer.Option(metavar="CKPTS", help="Weights of the members, called like them."),
    ] = None,
    start: Annotated[
        Path | None, typer.Option(metavar="CKPT", help="The weights that all members began with.")
    ] = None,
    probabilities: Annotated[
        bool | None,
        typer.Option(
            "--probabilities/--logits", help="What the scores in the files are.", show_default=False
        ),
    ] = None,
    invariance: Annotated[
        bool,
        typer.Option(
            "--invariance",
            help="Are the weights invariant across the source domains? Runs the networks on source images.",
        ),
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="With --invariance: the --data of the job; of weights of your own, a folder per source domain.",
        ),
    ] = None,
    model: ModelOption = None,
    width: WidthOption = None,
    size: SizeOption = None,
    device: DeviceOption = "auto",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the page. [default: FOLDER/explanation]"),
    ] = None,
    resamples: Annotated[int, typer.Option(help="Draws of images for the intervals.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    parquet: Annotated[
        bool, typer.Option("--parquet", help="Write the numbers of the figures as Parquet too.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the explanation as JSON.")] = False,
) -> None:
    """Say what to ship and whether to trust it, with a page that shows why."""
    files = [id_files, ood, weights]
    folder = _folder(folders or ())
    if folder is not None and any(files):
        raise InputError(f"explain: expected the folder of a job or files of your own, got both. {AFTER}")
    if folder is not None and (start or labels or ood_labels or probabilities is not None):
        raise InputError(
            "explain: --start, --labels, --ood-labels, --probabilities and --logits go with files of your own."
        )
    if not invariance and (data or model or width or size or device != "auto"):
        raise InputError("explain: --data, --model, --width, --size and --device go with --invariance.")
    if resamples < 100:
        raise InputError(f"--resamples: expected at least 100, got {resamples}.")
    from mirepoix.evidence import explain as explained
    from mirepoix.evidence import source_of_files, source_of_folder
    from mirepoix.report import write_explanation
    from mirepoix.report._figure_files import check_folder

    place = out or (folder or Path()) / "explanation"
    check_folder(place, parquet=parquet)
    if folder is not None:
        source = source_of_folder(folder)
    else:
        source = source_of_files(
            id_predictions=_expanded(id_files, "--id"),
            ood_predictions=_expanded(ood, "--ood"),
            labels=labels,
            ood_labels=ood_labels,
            weights=_expanded(weights, "--weights"),
            start=start,
            probabilities=probabilities,
        )
    found = None
    if invariance:
        from mirepoix.cli._progress import Bar
        from mirepoix.evidence import source_invariance

        with Bar() as bar:
            bar.stage("running the networks on source images")
            found = source_invariance(
                source,
                folder=folder,
                data=data,
                model=model,
                width=width,
                size=size,
                device=device,
                seed=seed,
                progress=bar.images,
            )
    content = plain(explained(source, resamples=resamples, seed=seed, invariance=found))
    page = write_explanation(content, place, parquet=parquet)
    if as_json:
        typer.echo(json.dumps(content, ensure_ascii=False))
        return
    verdict = content["verdict"]
    answer = {"high": "yes", "medium": "partly", "low": "not yet", "none": "unknown"}[verdict["trust"]]
    typer.echo(f"What to ship: {verdict['sentences'][0]}\nTrust it: {answer}. {verdict['sentences'][1]}")
    if verdict["alternative"]:
        typer.echo(verdict["alternative"]["text"])
    typer.echo("")
    for reason in verdict["reasons"]:
        target = f"{reason['target']}: " if reason["target"] else ""
        typer.echo(f"{reason['level']}: {target}{reason['text']}")
    if content["invariance"]:
        typer.echo(f"\nInvariant across the source domains? {content['invariance']['answer'][0]}")
    typer.echo(f"\nPage: {page}")


def _folder(words: Sequence[Path]) -> Path | None:
    """The only word that belongs to no option."""
    if len(words) > 1 or any(word.is_file() for word in words):
        more = f" and {len(words) - 1} more" if len(words) > 1 else ""
        raise InputError(f"explain: expected the folder of a job, got {words[0]}{more}. {AFTER}")
    return words[0] if words else None


def _expanded(paths: Sequence[Path] | None, option: str) -> list[Path]:
    """Files in the order given; a pattern stands for those it names, in the order of their names."""
    found: list[Path] = []
    for path in paths or ():
        if path.exists() or not glob.has_magic(str(path)):
            found.append(path)
            continue
        matches = sorted(glob.glob(str(path), recursive=True))
        if not matches:
            raise InputError(f"{option} {path}: expected a pattern that names files, and it names none.")
        found += map(Path, matches)
    return found
