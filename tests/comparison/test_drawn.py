"""Members that are drawn around a trained one."""

import math
import sys

import pytest
import torch

from mirepoix.comparison._members import Lost
from mirepoix.models import NetworkSpec, initial_weights
from mirepoix.seeds import seed_hash
from mirepoix.snapshots import SWAG, SimplexVolume, sample_simplex
from mirepoix.training import Trainer, snapshots
from mirepoix.types import InputError
from mirepoix.weights import average
from tests.comparison.conftest import bench_of, recipe_of
from tests.comparison.test_members import LOCAL, diverging, same

SWAG_ = {
    "name": "SWAG",
    "kind": "swag",
    "cycle": {"steps": 4, "check_every": 1, "learning_rate": 0.05},
    "sampling": {"rank": 2, "scale": 0.25},
}
SPRO = {"name": "SPRO", "kind": "simplex", "sampling": {"alpha": 1e-4, "vertices": 3, "points": 2}}


def members(tmp_path, split, system):
    bench = bench_of(recipe_of(LOCAL, system), tmp_path)
    ensemble, drawn = (bench.members_of(each, split) for each in bench.recipe.systems)
    return bench, ensemble.made, drawn


def test_swag_goes_on_from_the_first_member_and_draws_the_others(tmp_path, split):
    bench, ensemble, found = members(tmp_path, split, SWAG_)
    system = bench.recipe.systems[1]
    assert found.made[0].key == ensemble[0].key
    assert [made.number for made in found.made] == [1, 2, 3]
    assert [training.run.steps for training in found.trainings] == [3, 4]
    run = bench.runs_of(system, 0)[1]
    assert run.collect == "snapshots"
    along = Trainer(bench.start.network, keep=("last",))(ensemble[0].theta, split, run)
    kept = found.trainings[1].theta
    assert same(along, kept)
    gaussian = SWAG(snapshots(kept).values(), rank=2)
    assert gaussian.count == 4
    for place, made in enumerate(found.made[1:]):
        expected = gaussian.sample(seed_hash("drawn", "swag", place, 0), 0.25)
        assert same(made.theta, expected)
        assert made.run is None


def test_a_simplex_has_a_vertex_of_each_training(tmp_path, split):
    bench, ensemble, found = members(tmp_path, split, SPRO)
    vertices = [training.theta for training in found.trainings]
    assert len(vertices) == 3
    assert found.trainings[0].key == ensemble[0].key
    runs = bench.runs_of(bench.recipe.systems[1], 0)
    criterion = SimplexVolume(bench.start.network, vertices[:2], alpha=1e-4, points=2)
    again = Trainer(bench.start.network, criterion, keep=("last",))(average(vertices[:2]), split, runs[2])
    assert same(vertices[2], again)
    for place, made in enumerate(found.made[1:]):
        assert same(made.theta, sample_simplex(vertices, seed_hash("drawn", "simplex", place, 0)))


@pytest.mark.parametrize("system", [SWAG_, SPRO])
def test_nothing_is_drawn_twice(tmp_path, split, system):
    bench, _, found = members(tmp_path, split, system)
    assert bench.planned_steps([0]) == sum(steps for _, steps in bench.progress.stages)
    again, _, same_found = members(tmp_path, split, system)
    assert not again.store.made
    for one, other in zip(found.made, same_found.made, strict=True):
        assert same(one.theta, other.theta)
        assert one.theta.path == other.theta.path


def test_other_trials_draw_others(tmp_path, split):
    bench, _, found = members(tmp_path, split, SWAG_)
    other = bench.task.split("domain_0", data_seed=1)
    second = bench.members_of(bench.recipe.systems[1], other)
    assert not same(found.made[1].theta, second.made[1].theta)
    assert not same(found.made[1].theta, found.made[2].theta)


@pytest.mark.parametrize("system", [SWAG_, SPRO])
def test_where_a_training_diverges_nothing_is_drawn(tmp_path, split, monkeypatch, system):
    bench = bench_of(recipe_of(system), tmp_path)
    runs = bench.runs_of(bench.recipe.systems[0], 0)
    diverging(monkeypatch, {runs[1].seed})
    found = bench.members_of(bench.recipe.systems[0], split)
    assert found.made == ()  # one network alone is not this system
    assert found.lost[0] == Lost(2, "the loss was nan")


def test_batch_norm_is_measured_again_for_members_that_are_drawn(tmp_path, split):
    recipe = recipe_of(SWAG_, network={"name": "cifar_resnet20", "frozen_batch_norm": False}, members=2)
    bench = bench_of(recipe, tmp_path)
    network = NetworkSpec(name="cifar_resnet20", classes=2, channels=1, frozen_batch_norm=False)
    theta = initial_weights(network)
    bench.start = type(bench.start)(network, theta, "tiny", "x")
    found = bench.members_of(recipe.systems[0], split)
    drawn, along = found.made[1].theta, snapshots(found.trainings[1].theta)
    mean = SWAG(along.values(), rank=2).mean()
    name = "featurizer.bn1.running_mean"
    assert name in drawn
    assert not torch.equal(drawn[name], mean[name])
    fresh = bench.judge(split).refresh(dict(drawn))
    torch.testing.assert_close(fresh[name], drawn[name])


def test_laplace_needs_its_library_before_anything_is_trained(tmp_path, split, monkeypatch):
    monkeypatch.setitem(sys.modules, "laplace", None)
    bench = bench_of(recipe_of({"name": "L", "kind": "laplace"}), tmp_path)
    with pytest.raises(InputError, match=r"systems.L: laplace_samples needs laplace-torch"):
        bench.rehearse(bench.recipe.systems[0], split)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # the library still uses torch.jit
def test_laplace_draws_around_the_first_member(tmp_path, split):
    pytest.importorskip("laplace", reason="laplace-torch is not installed")
    _, ensemble, found = members(
        tmp_path, split, {"name": "L", "kind": "laplace", "sampling": {"scale": 0.1, "layers": "last"}}
    )
    assert found.made[0].key == ensemble[0].key
    assert len(found.made) == 3
    first, second = found.made[0].theta, found.made[1].theta
    changed = {name for name in first if not torch.equal(first[name], second[name])}
    assert changed == {"classifier.weight", "classifier.bias"}
    assert all(math.isfinite(float(second[name].double().sum())) for name in changed)


def test_draws_that_are_no_numbers_are_left_out_and_told(tmp_path, split):
    _, _, found = members(tmp_path, split, {**SWAG_, "sampling": {"scale": 1e300}})
    assert found.made == ()
    assert "weights that are not finite; lower its scale" in found.lost[0].message
