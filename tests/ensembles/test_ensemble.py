"""The ensemble stands where an average does, and loads one member at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch

from mirepoix.ensembles import Ensemble, average_logits
from mirepoix.types import InputError, Weights
from mirepoix.weights import average

X = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def linear(theta: Weights) -> torch.Tensor:
    return X @ theta["w"]


def members(count: int = 4) -> list[dict[str, torch.Tensor]]:
    random = torch.Generator().manual_seed(0)
    return [{"w": torch.randn(3, 2, generator=random, dtype=torch.float64)} for _ in range(count)]


def test_it_averages_the_logits_of_its_members() -> None:
    thetas = members()
    ensemble = Ensemble(iter(thetas))
    expected = average_logits(torch.stack([linear(theta) for theta in thetas]))
    torch.testing.assert_close(ensemble.logits(linear), expected)
    torch.testing.assert_close(ensemble.logits(linear), linear(average(thetas)))


def test_it_combines_as_an_average_does() -> None:
    def diwa(train: Any, theta: Any, task: Any, runs: Any, combine: Any = average) -> Any:
        return combine(train(theta, task, run) for run in runs)

    def train(theta: Weights, task: None, run: int) -> Weights:
        return {"w": theta["w"] * run}

    ensemble = diwa(train, members(1)[0], None, [1, 2, 6], combine=Ensemble)
    assert isinstance(ensemble, Ensemble)
    torch.testing.assert_close(ensemble.logits(linear), 3 * linear(members(1)[0]))


def test_members_are_kept_in_order() -> None:
    thetas = members(3)
    ensemble = Ensemble(thetas)
    assert len(ensemble) == 3
    assert list(ensemble) == thetas
    assert repr(ensemble) == "Ensemble of 3 members"


def test_one_member_is_read_at_a_time_and_only_to_predict() -> None:
    log: list[str] = []

    class Lazy(Mapping[str, torch.Tensor]):
        def __init__(self, number: int) -> None:
            self.number = number

        def __getitem__(self, name: str) -> torch.Tensor:
            log.append(f"read {self.number}")
            return members()[self.number][name]

        def __iter__(self) -> Iterator[str]:
            return iter(["w"])

        def __len__(self) -> int:
            return 1

    def predict(theta: Weights) -> torch.Tensor:
        logits = linear(theta)
        log.append("predicted")
        return logits

    ensemble = Ensemble(Lazy(i) for i in range(3))
    assert log == []
    ensemble.logits(predict)
    assert log == ["read 0", "predicted", "read 1", "predicted", "read 2", "predicted"]


def test_predictions_are_untouched_and_half_precision_is_widened() -> None:
    cached = torch.ones(2, 3)
    ensemble = Ensemble([{}, {}])
    ensemble.logits(lambda _: cached)
    assert (cached == 1).all()
    alone = Ensemble([{}]).logits(lambda _: cached)
    alone += 1
    assert (cached == 1).all()
    assert ensemble.logits(lambda _: cached.bfloat16()).dtype == torch.float32


def test_errors_name_the_member() -> None:
    with pytest.raises(InputError, match="an ensemble needs at least one member"):
        Ensemble([])
    ensemble = Ensemble([{"n": 2}, {"n": 3}])
    with pytest.raises(
        InputError, match=r"member 1 predicts logits of shape \(3, 2\), not \(2, 2\), as of member 0"
    ):
        ensemble.logits(lambda theta: torch.zeros(theta["n"], 2))
    with pytest.raises(
        InputError, match=r"member 0 predicts logits of shape \(2,\), not \(samples, classes\)"
    ):
        ensemble.logits(lambda theta: torch.zeros(theta["n"]))
