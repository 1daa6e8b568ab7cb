"""Members of a sweep as plain files, laid out like the folder of a job, for every verb that takes files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mirepoix import __version__
from mirepoix.checkpoints import fingerprint, write_weights
from mirepoix.domainbed._measure import Measured, Member
from mirepoix.domainbed._nodes import TaskName
from mirepoix.domainbed._rows import family_of
from mirepoix.domainbed._workbench import NotMade, Workbench
from mirepoix.predictions import Predictions
from mirepoix.training import snapshots
from mirepoix.types import InputError
from mirepoix.weights import average

__all__ = ["export"]


def export(
    bench: Workbench,
    out: Path,
    *,
    family: str = "fine_tuning",
    along: Sequence[int] = (),
    note: Callable[[str], None] = lambda text: None,
) -> list[Path]:
    """Write the members of one family, their start, their average and all predictions.

    For each split, a target with a data seed, whose name is that of the target and of the seed where there are
    several:

    - ``members/SPLIT/run-0.safetensors``, ... with the record of the training beside each; ``starts/SPLIT.safetensors``
      and ``soups/SPLIT/average.safetensors``;
    - ``predictions/SPLIT-validation.safetensors`` and ``SPLIT-test.safetensors``: of the members and of their average,
      on ID validation and on the whole target;
    - with ``along``, the weights that each run had at these steps in ``along/SPLIT/``, named ``run-0 step 75``, and
      their predictions on the target in ``predictions/SPLIT-along-test.safetensors``.

    Splits on which no member is trained are left out, and so are members that diverged; both are noted.

    Args:
        bench: The benchmark with its store.
        out: Made if it does not exist. Files of the same names are replaced, each in one step.
        family: Of members, such as ``fine_tuning`` or ``inter_training``.
        along: Steps of the runs at which they were checked; needs ``snapshots`` in the recipe's ``keep``.
        note: Told what was done and what was left out.

    Returns:
        The files, without the records.

    Raises:
        InputError: For an unknown family or a step at which runs were not checked; when nothing is trained.
    """
    family_of(family)  # an unknown one is told
    if along and "snapshots" not in bench.benchmark.collected():
        raise InputError(
            'along: the runs kept no weights on their way. Add "snapshots" to `keep` in the recipe.'
        )
    written: list[Path] = []
    datasets = bench.benchmark.datasets
    for table in datasets:
        for target in bench.targets(table.label):
            for seed in table.seeds:
                parts = (
                    [table.label] * (len(datasets) > 1) + [target] + [f"seed-{seed}"] * (len(table.seeds) > 1)
                )
                split = quote("-".join(parts), safe=" +,()")
                measured = Measured(bench, TaskName(table.label, target, seed))
                written += _split(measured, out, split, family, along, note)
                bench.forget()
    if not written:
        raise InputError(
            f"export: no member of {family} is trained. Run the sweep first, with the same recipe, --set and store."
        )
    return written


def _split(
    measured: Measured, out: Path, split: str, family: str, along: Sequence[int], note: Callable[[str], None]
) -> list[Path]:
    found = measured.gather(family)
    if found.missing:
        note(f"{split}: left out, for {found.missing}")
        return []
    if found.diverged:
        note(f"{split}: left out, for they diverged: runs {', '.join(map(str, found.diverged))}")
    bench, judge, name = measured.bench, measured.judge, measured.name
    origin = {
        "dataset": name.dataset,
        "target": name.target,
        "data_seed": name.data_seed,
        "mirepoix": __version__,
    }
    how = {"network": judge.network.to_dict(), "classes": list(judge.split.task.classes)}
    written = []

    def keep(path: Path, theta: Any, record: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_weights(path, theta, record={**origin, **how, **record, "fingerprint": fingerprint(theta)})
        written.append(path)

    for member in found.members:
        path = out / "members" / split / f"run-{member.run}.safetensors"
        keep(
            path,
            member.theta,
            {**member.record, "equation": family_of(family).label, "source": member.source},
        )
    start = bench.weights(found.members[0].node.theta)
    keep(out / "starts" / f"{split}.safetensors", start, {"equation": "theta_pt with the head of run 0"})
    uniform = judge.refresh(average(member.theta for member in found.members))
    ingredients = [{"run": m.run, "fingerprint": fingerprint(m.theta)} for m in found.members]
    equation = f"1/{len(ingredients)} sum_i theta_i"
    keep(
        out / "soups" / split / "average.safetensors", uniform, {"equation": equation, "members": ingredients}
    )

    models = [(f"run-{member.run}", member.theta) for member in found.members]
    folder = out / "predictions"
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("validation", "test"):
        predictions: Predictions = judge.predictions([*models, ("average", uniform)], part)
        predictions.save(folder / f"{split}-{part}.safetensors")
        written.append(folder / f"{split}-{part}.safetensors")
    if along:
        way = []
        for member in found.members:
            for step, theta in _along(bench, member, along):
                way.append((f"run-{member.run} step {step}", theta))
                path = out / "along" / split / f"{way[-1][0]}.safetensors"
                keep(
                    path, theta, {"equation": f"theta_{step} along run {member.run}", "source": member.source}
                )
        judge.predictions(way, "test").save(folder / f"{split}-along-test.safetensors")
        written.append(folder / f"{split}-along-test.safetensors")
    note(f"{split}: {len(found.members)} members")
    return written


def _along(bench: Workbench, member: Member, steps: Sequence[int]) -> list[tuple[int, Any]]:
    """The weights of one run at some of its checks."""
    try:
        kept = snapshots(bench.weights(replace(member.node, run=member.node.run.with_(collect="snapshots"))))
    except NotMade:
        raise InputError(f"along: run {member.run} kept no weights on its way.") from None
    unknown = [step for step in steps if step not in kept]
    if unknown:
        raise InputError(
            f"along: run {member.run} was checked at steps {', '.join(map(str, kept))}, not at {unknown[0]}."
        )
    return [(step, kept[step]) for step in steps]
