"""Three claims about averaging, and the four terms of its error, on members trained on PACS at 32 pixels.

Paper:    Ramé, Diverse and efficient ensembling of deep networks (2023), figures 4.5 to 4.8 and equation BVCL
Command:  mirepoix domainbed run recipes/pacs-strategies.toml --data DIR --store STORE --out OUT
          mirepoix domainbed export recipes/pacs-strategies.toml --data DIR --store STORE --out OUT \
            --along 75,100,125,149
          python examples/pacs_evidence.py OUT/exported --data DIR
Time:     three minutes for 16 splits on two cores; more than an hour for averages too, without --subsets 0
Expect:   docs/results.md, section "Why averaging works on PACS"

Claims: members differ more on the domain they have not seen than on their own; members of different runs differ more
than weights along one run; the more members differ, the more their average gains.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import torch

from mirepoix import NetworkSpec, Predictions, average, named_task, open_weights
from mirepoix.bootstrap import Interval, bootstrap
from mirepoix.checkpoints import read_json
from mirepoix.data import evaluation_batches
from mirepoix.diversity import disagreement, group_means, ratio_error, ratio_error_matrix
from mirepoix.ensembles import average_logits
from mirepoix.landscape import bvcl
from mirepoix.metrics import accuracy
from mirepoix.predictions import predict
from mirepoix.seeds import stream

SIZES = (2, 4, 6)


@dataclass(frozen=True)
class Split:
    """What was exported of one target and data seed."""

    folder: Path
    name: str
    target: str
    data_seed: int

    @cached_property
    def validation(self) -> Predictions:
        return self._predictions("validation")

    @cached_property
    def test(self) -> Predictions:
        return self._predictions("test")

    @cached_property
    def along(self) -> Predictions:
        return Predictions.load(self.folder / "predictions" / f"{self.name}-along-test.safetensors")

    @property
    def members(self) -> list[Path]:
        files = (self.folder / "members" / self.name).glob("run-*.safetensors")
        return sorted(files, key=lambda file: int(file.stem.removeprefix("run-")))

    def _predictions(self, part: str) -> Predictions:
        return Predictions.load(self.folder / "predictions" / f"{self.name}-{part}.safetensors")


def splits_in(folder: Path) -> list[Split]:
    found = []
    for place in sorted((folder / "members").iterdir()):
        record = read_json(place / "run-0.json")
        found.append(Split(folder, place.name, record["target"], record["data_seed"]))
    assert found, f"{folder}: expected what `mirepoix domainbed export` writes"
    return found


def of_members(predictions: Predictions) -> Predictions:
    return predictions.of([name for name in predictions.members if name.startswith("run-")])


def id_against_ood(split: Split) -> list[Interval]:
    """Ratio-error and disagreement on the target minus those on ID validation; images of both are drawn again."""
    sides = [of_members(split.validation), of_members(split.test)]
    right = [side.correct() for side in sides]
    predicted = [side.logits.argmax(-1) for side in sides]

    def differences(i: np.ndarray, j: np.ndarray) -> list[float]:
        return [
            float(measure(of[1][:, j]) - measure(of[0][:, i]))
            for measure, of in ((ratio_error, right), (disagreement, predicted))
        ]

    return bootstrap(differences, [right[0].shape[1], right[1].shape[1]], resamples=500)


def runs_against_snapshots(split: Split) -> tuple[float, float, Interval]:
    """Ratio-error on the target between weights of one run and of two; runs are drawn again."""
    runs = [name.split(" ")[0] for name in split.along.members]
    means = group_means(ratio_error_matrix(split.along.correct()), runs)
    assert means.within is not None
    assert means.across is not None
    assert means.difference is not None
    return means.within.value, means.across.value, means.difference


def gains(split: Split, subsets: int, data: Path | None) -> dict[int, dict[str, np.ndarray]]:
    """For subsets of the weights along all runs: their ratio-error, and what ensemble and average gain."""
    pool = split.along
    right, names = pool.correct(), pool.members
    pairs = ratio_error_matrix(right).double()
    alone = right.double().mean(1)
    score = target_accuracy(split, data) if subsets and data is not None else None
    found = {}
    for size in SIZES:
        random = stream("pacs_evidence", split.name, size)
        runs: dict[str, list[int]] = {}
        for place, name in enumerate(names):
            runs.setdefault(name.split(" ")[0], []).append(place)
        chosen: dict[tuple[int, ...], None] = {}
        # From one run, from two, ... from as many as there are members, in turn: pools of every diversity.
        for turn in itertools.count():
            if len(chosen) == max(subsets, 60) or turn == 3000:
                break
            count = 1 + turn % min(size, len(runs))
            some = random.choice(len(runs), size=count, replace=False)
            places = [place for k in some for place in list(runs.values())[k]]
            if len(places) >= size:
                chosen[tuple(sorted(int(p) for p in random.choice(places, size=size, replace=False)))] = None
        rows = []
        for number, subset in enumerate(chosen):
            members = list(subset)
            i, j = np.triu_indices(size, 1)
            diversity = pairs[members][:, members][i, j].mean()
            mean = alone[members].mean()
            ensemble = accuracy(average_logits(pool.logits[members]), pool.labels) - mean
            averaged = np.nan
            if score is not None and number < subsets:
                averaged = score([names[k] for k in members]) - float(mean)
            rows.append((float(diversity), float(ensemble), averaged))
        columns = np.array(rows).T
        found[size] = dict(zip(("diversity", "ensemble", "average"), columns, strict=True))
    return found


def target_accuracy(split: Split, data: Path | None):
    """The accuracy on the target of the average of some weights along the runs."""
    record = read_json(split.members[0].with_suffix(".json"))
    network = NetworkSpec(**record["network"])
    model = network.build().to(memory_format=torch.channels_last)
    task = named_task("PACS", data, size=32)
    test = task.split(split.target, data_seed=split.data_seed).test
    folder = split.folder / "along" / split.name

    def score(names: list[str]) -> float:
        model.load_state_dict(dict(average(open_weights(folder / f"{name}.safetensors") for name in names)))
        logits = torch.cat([predict(model, evaluation_batches(part, task.transform)) for part in test])
        return float(accuracy(logits, torch.cat([torch.as_tensor(part.labels) for part in test])))

    return score


def slope(x: np.ndarray, y: np.ndarray) -> float:
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    return (
        float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()) if len(x) > 2 else np.nan
    )


def over_splits(values: list[float]) -> str:
    """Mean and 95 % interval, splits drawn again."""
    found = bootstrap(lambda drawn: np.mean(np.array(values)[drawn]), len(values), resamples=2000)[0]
    return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def terms(splits: list[Split]) -> None:
    """Bias, variance, covariance and locality, with data seeds as replicates."""
    print("\n## Bias, variance, covariance and locality of the squared error, on the target\n")
    print("| target | bias² | variance | covariance | ensemble's error | average's error | rest | Δ² |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for target in dict.fromkeys(split.target for split in splits):
        seeds = [split for split in splits if split.target == target]
        if len(seeds) < 2:
            print(f"{target}: one data seed, so no covariance")
            continue
        logits = torch.stack([of_members(split.test).logits for split in seeds])
        averages = torch.stack([split.test.of(["average"]).logits[0] for split in seeds])
        thetas = [[open_weights(file) for file in split.members] for split in seeds]
        found = bvcl(
            logits,
            seeds[0].test.labels,
            thetas,
            averages=averages,
            given="logits",
            correct=True,
            resamples=500,
        )
        part = found.terms
        numbers = [part.bias_squared, part.variance, part.covariance, part.ensemble_error]
        numbers += [found.average_error, found.remainder]
        texts = [f"{x.value:.3f} [{x.low:.3f}, {x.high:.3f}]" for x in numbers]
        print(f"| {unquote(target)} | {' | '.join(texts)} | {found.locality.squared:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="what `mirepoix domainbed export --along` wrote")
    parser.add_argument("--data", type=Path, help="folder that holds PACS/, for averages")
    parser.add_argument(
        "--subsets", type=int, default=24, help="averages made for each split and number of members"
    )
    options = parser.parse_args()
    torch.set_num_threads(2)
    splits = splits_in(options.folder)

    print("## Diversity: OOD against ID\n")
    print("| target, data seed | ratio-error ID | OOD | OOD - ID | disagreement ID | OOD | OOD - ID |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    more = [id_against_ood(split) for split in splits]
    for split, differences in zip(splits, more, strict=True):
        side = of_members(split.validation)
        inside = [float(ratio_error(side.correct())), float(disagreement(side.logits.argmax(-1)))]
        cells = [
            f"{value:.3f} | {value + found.value:.3f} | {found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
            for value, found in zip(inside, differences, strict=True)
        ]
        print(f"| {split.target}, {split.data_seed} | {' | '.join(cells)} |")
    each = [over_splits([differences[k].value for differences in more]) for k in (0, 1)]
    print(f"| all | | | {each[0]} | | | {each[1]} |")

    print("\n## Ratio-error on the target: weights of two runs against weights along one\n")
    print("| target, data seed | one run | two runs | two - one |")
    print("| --- | ---: | ---: | ---: |")
    apart = []
    for split in splits:
        within, across, found = runs_against_snapshots(split)
        apart.append(found.value)
        interval = f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
        print(f"| {split.target}, {split.data_seed} | {within:.3f} | {across:.3f} | {interval} |")
    print(f"| all | | | {over_splits(apart)} |")

    terms(splits)

    print("\n## Gain in accuracy per unit of ratio-error, on the target\n")
    print("| M | ensemble | average |")
    print("| ---: | ---: | ---: |")
    found = [gains(split, options.subsets, options.data) for split in splits]
    for size in SIZES:
        texts = []
        for how in ("ensemble", "average"):
            slopes = [slope(each[size]["diversity"], each[size][how]) for each in found]
            known = [value for value in slopes if np.isfinite(value)]
            texts.append(over_splits(known) if known else "-")
        print(f"| {size} | {' | '.join(texts)} |")
    # What the docs say: weights of two runs differ more than weights along one, on every split.
    assert min(apart) > 0


if __name__ == "__main__":
    main()
