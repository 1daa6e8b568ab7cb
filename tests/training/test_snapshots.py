import io
from collections.abc import Mapping

import pytest
import torch

from mirepoix.training import Check, Snapshots, snapshots
from mirepoix.types import InputError


def walk(collector, steps, theta=None):
    """Iterates whose weights are their step, with a check after each step that is even or the last."""
    theta = theta or {"classifier.weight": torch.empty(2), "batches": torch.tensor(0)}
    for step in steps:
        theta["classifier.weight"].fill_(step)
        theta["batches"].fill_(step + 1)
        collector.after_step(step + 1, theta)
        if step % 2 == 0:
            collector.after_check(Check(step, 0.5, 1.0, {}), theta)
    return theta


def test_snapshots_are_the_weights_at_every_check():
    collector = Snapshots()
    theta = walk(collector, range(6))
    flat = collector.weights(theta)
    assert list(flat) == [
        f"{step:06d}/{name}" for step in (0, 2, 4) for name in ("classifier.weight", "batches")
    ]
    split = snapshots(flat)
    assert list(split) == [0, 2, 4]
    for step, kept in split.items():
        assert kept["classifier.weight"].tolist() == [step, step]
        assert kept["batches"] == step + 1


def test_snapshots_of_a_real_network_load_into_it():
    network = torch.nn.Linear(3, 2).double()
    collector, expected = Snapshots(), {}
    for step in (0, 100, 1_234_567):
        with torch.no_grad():
            network.weight += 1
        collector.after_check(Check(step, 0.5, 1.0, {}), network.state_dict())
        expected[step] = network.weight.detach().clone()
    split = snapshots(collector.weights(network.state_dict()))
    assert list(split) == list(expected)
    for step, weight in expected.items():
        network.load_state_dict(split[step])
        assert torch.equal(network.weight, weight)
        assert split[step]["weight"].dtype == torch.float64


def test_a_second_check_of_a_step_replaces_the_first():
    collector = Snapshots()
    for value in (1.0, 2.0):
        collector.after_check(Check(3, 0.5, 1.0, {}), {"w": torch.tensor([value])})
    assert {name: value.tolist() for name, value in collector.weights({}).items()} == {"000003/w": [2.0]}


def test_without_a_check_there_is_nothing():
    assert Snapshots().weights({"w": torch.ones(1)}) == {}
    assert snapshots({}) == {}


@pytest.mark.parametrize("cut", range(7))
def test_snapshots_continue_from_their_state(cut):
    whole, first, second = Snapshots(), Snapshots(), Snapshots()
    theta = walk(whole, range(6))
    walk(first, range(cut))
    buffer = io.BytesIO()
    torch.save(first.state(), buffer)
    buffer.seek(0)
    second.load(torch.load(buffer, weights_only=True))
    walk(second, range(cut, 6))
    expected, got = whole.weights(theta), second.weights(theta)
    assert list(got) == list(expected)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


class Lazy(Mapping):
    """Weights that are read when they are asked for."""

    def __init__(self, names):
        self.names, self.read = names, []

    def __getitem__(self, name):
        self.read.append(name)
        return torch.tensor([float(self.names.index(name))])

    def __iter__(self):
        return iter(self.names)

    def __len__(self):
        return len(self.names)


def test_a_lazy_mapping_is_read_once_and_sorted_by_step():
    lazy = Lazy(["1000000/a/b", "000300/w", "999999/w", "000000/w", "000300/v"])
    split = snapshots(lazy)
    assert {step: list(kept) for step, kept in split.items()} == {
        0: ["w"],
        300: ["w", "v"],
        999_999: ["w"],
        1_000_000: ["a/b"],
    }
    assert list(split) == [0, 300, 999_999, 1_000_000]
    assert sorted(lazy.read) == sorted(lazy.names)


@pytest.mark.parametrize(
    "name", ["classifier.weight", "300/w", "0000300/w", "000300/", "000300", "-00300/w", "٠٠٠٣٠٠/w"]
)
def test_a_name_without_a_step_is_refused(name):
    with pytest.raises(
        InputError, match=r"such as '000300/classifier.weight', got .*the collector 'snapshots'"
    ):
        snapshots({"000000/w": torch.ones(1), name: torch.ones(1)})
