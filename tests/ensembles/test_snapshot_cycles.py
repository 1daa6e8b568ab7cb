"""Chains of members with the real loop: where a cycle begins, what its optimizer remembers, what is frozen."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from tests.tiny import tiny_network, tiny_task

from mirepoix.checkpoints import fingerprint
from mirepoix.models import NetworkSpec, initial_weights, part_before
from mirepoix.objectives import ERM
from mirepoix.runs import Run
from mirepoix.strategies import snapshot, star
from mirepoix.training import Loop, Trainer

SPEC = NetworkSpec(name="cifar_resnet20", classes=2, channels=1, frozen_batch_norm=False)
FIRST = Run(
    seed=1,
    steps=4,
    learning_rate=0.05,
    weight_decay=1e-3,
    optimizer="sgd",
    schedule="cosine",
    batch_size=4,
    check_every=4,
    collect="last",
)


@dataclass(frozen=True)
class Begin:
    """What an update begins with: the digest of all weights, how much the optimizer remembers, and its rate."""

    weights: str
    remembered: int
    rate: float


NOTES: list[Begin] = []


class Watching(ERM):
    def step(self, model, batches, optimizer, scaler=None):
        rate = optimizer.param_groups[0]["lr"]
        NOTES.append(Begin(fingerprint(model.state_dict()), len(optimizer.state), rate))
        return super().step(model, batches, optimizer, scaler)


def chain(strategy, runs):
    """The members, and what the updates of each began with."""
    NOTES.clear()
    train = Trainer(SPEC, Watching(), keep=("last",), loop=Loop(device="cpu"))
    members = strategy(train, initial_weights(SPEC), tiny_task(size=16).split("domain_2"), runs, list)
    notes = iter(NOTES)
    return members, [[next(notes) for _ in range(run.steps)] for run in runs]


def cycles(count, **changes):
    """Later runs: shorter, faster, each with its own order of the data."""
    changes = {"steps": 3, "learning_rate": 0.1, "check_every": 3, **changes}
    return [FIRST, *(FIRST.with_(seed=seed, **changes) for seed in range(2, count + 1))]


@pytest.mark.parametrize("strategy", [snapshot, star])
def test_a_cycle_begins_at_a_member_to_the_bit_with_an_empty_memory(strategy):
    runs = cycles(3)
    members, begins = chain(strategy, runs)
    assert begins[0][0].weights == fingerprint(initial_weights(SPEC))
    for place in (1, 2):
        start = members[0 if strategy is star else place - 1]
        assert begins[place][0].weights == fingerprint(start)  # statistics of batch norm too
    for own, run in zip(begins, runs, strict=True):
        assert own[0].remembered == 0
        assert own[1].remembered > 0
        assert own[0].rate == run.learning_rate
    assert len({fingerprint(member) for member in members}) == 3


@pytest.mark.parametrize("statistics", [False, True])
def test_what_is_frozen_in_later_cycles_is_that_of_the_first_member(statistics):
    members, _ = chain(star, cycles(3, train_from="layer3", frozen_statistics=statistics))
    before = part_before(SPEC.build_empty(), SPEC, "layer3")
    frozen = {f"featurizer.{name}" for name, _ in before.named_parameters()}
    measured = {f"featurizer.{name}" for name, _ in before.named_buffers()}
    for member in members[1:]:
        for name, value in member.items():
            same = fingerprint({name: value}) == fingerprint({name: members[0][name]})
            assert same == (name in frozen or (statistics and name in measured)), name


@pytest.mark.parametrize(
    ("steps", "every", "rate", "expected"),
    [
        (25, 1, 0.05, {0: 0.05, 12: 0.0266, 24: 0.0002}),
        (24, 2, 0.1, {0: 0.1, 1: 0.1, 12: 0.05, 13: 0.05, 22: 0.0017, 23: 0.0017}),
    ],
)
def test_the_loop_uses_the_published_rates(steps, every, rate, expected):
    NOTES.clear()
    run = FIRST.with_(steps=steps, schedule_every=every, learning_rate=rate, batch_size=2, check_every=steps)
    spec = tiny_network()
    trainer = Trainer(spec, Watching(), keep=("last",), loop=Loop(device="cpu"))
    trainer(initial_weights(spec), tiny_task().split("domain_2"), run)
    assert {step: round(NOTES[step].rate, 4) for step in expected} == expected
