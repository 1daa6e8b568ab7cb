import json

import pytest
import torch

pytest.importorskip("diffusers", reason="pip install 'mirepoix[diffusion]'")

from mirepoix.checkpoints import fingerprint
from mirepoix.rewards.diffusion import DigitDiffusion, diffusion_start
from mirepoix.rewards.diffusion._digits import real_digits
from mirepoix.rewards.diffusion._network import build_network, load_, noise_schedule
from mirepoix.seeds import generator
from mirepoix.store import Store
from mirepoix.types import Diverged, InputError
from tests.rewards.diffusion import small

TINY = {"steps": 4, "batch_size": 4}


def test_same_arguments_same_bits_and_what_is_global_stays():
    torch.manual_seed(99)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    found = diffusion_start(small.TASK, None, **TINY)
    assert small.same(found, diffusion_start(small.TASK, None, **TINY))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_every_argument_counts_but_the_rewards():
    def found(task=small.TASK, **options):
        return fingerprint(diffusion_start(task, None, **{**TINY, **options}))

    others = {found(seed=1), found(steps=5), found(batch_size=5), found(learning_rate=1e-3)}
    assert len({found(), *others}) == 5
    assert found(DigitDiffusion(channels=(8, 16), rewards=("symmetry",))) == found()


def test_it_learns_to_see_noise():
    images, labels = (torch.tensor(array[:256]) for array in real_digits())
    times = torch.arange(256) % 200
    noise = torch.randn(images.shape, generator=generator("a test"))
    noised = noise_schedule().add_noise(images, noise, times)

    def error(theta):
        network = build_network(small.TASK).eval()
        load_(network, theta)
        with torch.no_grad():
            return float((network(noised, times, class_labels=labels).sample - noise).square().mean())

    assert error(small.start()) < 0.6 < 0.9 < error(build_network(small.TASK).state_dict())


class Killed(Exception):
    pass


def test_a_start_is_kept_and_an_interrupted_one_continues_with_the_same_bits(tmp_path):
    store, seen = Store(tmp_path), []

    def kill(done, of, means):
        seen.append((done, of))
        assert 0 < means["loss"] < 5
        if len(seen) == 1:
            raise Killed

    with pytest.raises(Killed):
        diffusion_start(small.TASK, store, **small.START, on_progress=kill)
    assert list(tmp_path.rglob("state.bin"))
    found = diffusion_start(small.TASK, store, **small.START, on_progress=kill)
    assert seen == [(50, 60), (60, 60)]  # nothing was done twice
    assert small.same(found, small.start())
    assert not list(tmp_path.rglob("state.bin"))
    assert small.same(diffusion_start(small.TASK, store, **small.START), found)
    assert len(store.made) == 1
    (record,) = tmp_path.rglob("record.json")
    assert json.loads(record.read_text())["made_of"]["channels"] == [8, 16]
    assert [row["step"] for row in found.record["losses"]] == [50, 60]


def test_a_start_that_diverges_says_so(tmp_path):
    for store in (None, Store(tmp_path), Store(tmp_path)):
        with pytest.raises(Diverged, match=r"diverged.*(loss is|weights are) .*"):
            diffusion_start(small.TASK, store, steps=20, batch_size=4, learning_rate=1e30)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"batch_size": -1}, "batch_size: expected at least 1, got -1"),
        ({"learning_rate": 0.0}, "learning_rate: expected a positive number, got 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate: expected a positive number"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        diffusion_start(small.TASK, None, **options)
