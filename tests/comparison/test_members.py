"""What is trained, from where, by what, and how often."""

import pytest
import torch

from mirepoix.comparison._members import Lost, part_of
from mirepoix.ensembles import DICE, Independent
from mirepoix.models import member_weights
from mirepoix.objectives import CutMix
from mirepoix.runs import sample_runs
from mirepoix.snapshots import EWC, MSEPenalty, PredictionRepulsion
from mirepoix.training import Trainer
from mirepoix.types import Diverged, InputError
from tests.comparison.conftest import bench_of, recipe_of

LOCAL = {"name": "Local DE", "kind": "deep_ensemble"}
SSE = {"name": "SSE", "kind": "snapshot"}
STAR = {"name": "Star", "kind": "star"}
PUSHED = {"name": "Pushed", "kind": "star", "later": {"name": "prediction_repulsion", "alpha": 0.1}}
DICE_ = {"name": "DICE", "kind": "joint", "members": 2, "objective": {"name": "dice", "delta": 0.2}}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_equal_trainings_are_made_once(tmp_path, split):
    bench = bench_of(recipe_of(LOCAL, SSE, STAR, PUSHED), tmp_path)
    found = {system.name: bench.members_of(system, split).made for system in bench.recipe.systems}
    # Three of the ensemble; two more of SSE; one more of the star, whose member 2 is that of SSE; one of the pushed.
    assert len(bench.store.made) == 3 + 2 + 1 + 1
    first = {name: made[0].key for name, made in found.items()}
    assert len(set(first.values())) == 1
    assert found["SSE"][1].key == found["Star"][1].key == found["Pushed"][1].key
    assert found["SSE"][2].key != found["Star"][2].key != found["Pushed"][2].key
    assert len({made.key for members in found.values() for made in members}) == 7


def test_the_plan_counts_different_trainings(tmp_path, split):
    bench = bench_of(recipe_of(LOCAL, SSE, STAR, PUSHED, DICE_), tmp_path)
    planned = bench.planned_steps([0])
    assert planned == 3 * 3 + 2 * 2 + 2 + 2 + 3
    for system in bench.recipe.systems:
        bench.members_of(system, split)
    assert sum(steps for _, steps in bench.progress.stages) == planned
    assert bench.planned_steps([0, 1]) == 2 * planned


def test_a_probe_is_planned_and_made_once_for_each_start(tmp_path, split):
    recipe = recipe_of(LOCAL, STAR, DICE_, shared_head=False, probe={"steps": 2})
    bench = bench_of(recipe, tmp_path)
    assert bench.planned_steps([0, 1]) == 2 * (2 + 3 * 3 + 2 * 2 + 3)
    for system in recipe.systems:
        bench.members_of(system, split)
    assert sum("probe" in text for text, _ in bench.progress.stages) == 1
    (start,) = bench.starts_of(recipe.systems[0], split)
    plain = bench.start.theta
    changed = {name for name in plain if not torch.equal(start[name], plain[name])}
    assert changed == {"classifier.weight", "classifier.bias"}


def test_seeds_are_of_the_trial_and_the_member_alone(tmp_path):
    bench = bench_of(recipe_of(LOCAL, STAR, {**DICE_, "copies": 3}), tmp_path)
    for trial in (0, 7):
        expected = [run.seed for run in sample_runs({}, 3, data_seed=trial)]
        for system in bench.recipe.systems:
            assert [run.seed for run in bench.runs_of(system, trial)] == expected
    assert (
        len({run.seed for trial in range(5) for run in bench.runs_of(bench.recipe.systems[0], trial)}) == 15
    )


def test_members_of_a_star_have_two_phases(tmp_path):
    bench = bench_of(recipe_of(STAR), tmp_path)
    assert [run.steps for run in bench.runs_of(bench.recipe.systems[0], 0)] == [3, 2, 2]


def test_random_starts_differ_and_are_the_same_again(tmp_path, split):
    recipe = recipe_of({**LOCAL, "scratch": True}, {**STAR, "scratch": True}, {**DICE_, "scratch": True})
    bench = bench_of(recipe, tmp_path)
    ensemble, star, joint = (bench.starts_of(system, split) for system in recipe.systems)
    assert [len(starts) for starts in (ensemble, star, joint)] == [3, 1, 1]
    assert same(ensemble[0], star[0])
    assert not same(ensemble[0], ensemble[1])
    assert not same(member_weights(joint[0], 0), member_weights(joint[0], 1))
    again = bench_of(recipe, tmp_path / "other").starts_of(recipe.systems[0], split)
    assert all(same(one, other) for one, other in zip(ensemble, again, strict=True))


def test_joint_members_of_one_start_differ_in_their_classifiers_alone(tmp_path, split):
    bench = bench_of(recipe_of({**DICE_, "copies": 2}), tmp_path)
    first, second = bench.starts_of(bench.recipe.systems[0], split)
    members = [member_weights(theta, m) for theta in (first, second) for m in range(2)]
    for name in members[0]:
        equal = [torch.equal(members[0][name], other[name]) for other in members[1:]]
        assert not any(equal) if name == "classifier.weight" else all(equal) or name == "classifier.bias"
        if name.startswith("featurizer."):
            assert torch.equal(members[0][name], bench.start.theta[name])


def test_criteria_are_told_what_they_must_know(tmp_path, split):
    recipe = recipe_of(
        DICE_, {"name": "Ind", "kind": "joint", "members": 2}, {**LOCAL, "objective": "cutmix"}
    )
    bench = bench_of(recipe, tmp_path)
    run = bench.runs_of(recipe.systems[0], 0)[0]
    dice, plain, cutmix = (bench.objective_of(system, split, run) for system in recipe.systems)
    assert isinstance(dice, DICE)
    assert (dice.features, dice.classes, dice.members, dice.delta, dice.seed) == (16, 2, 2, 0.2, run.seed)
    assert isinstance(plain, Independent)
    assert isinstance(cutmix, CutMix)
    mixed = recipe_of({"name": "C", "kind": "joint", "inputs": 2, "objective": "cut_mixmo"})
    (system,) = mixed.systems
    assert bench_of(mixed, tmp_path).objective_of(system, split, run).total_steps == run.steps


@pytest.mark.parametrize(
    ("later", "kind", "anchors"),
    [
        ({"name": "mse", "alpha": 2.0}, MSEPenalty, [1, 1]),
        ({"name": "ewc", "alpha": 2.0, "images": 6}, EWC, [1, 1]),
        ({"name": "prediction_repulsion"}, PredictionRepulsion, [None, 1]),
    ],
)
def test_later_criteria_look_at_the_members_that_are_theirs(tmp_path, split, later, kind, anchors):
    bench = bench_of(recipe_of({**STAR, "later": later}), tmp_path)
    (system,) = bench.recipe.systems
    members = [made.theta for made in bench.members_of(system, split).made]
    for place, count in zip((1, 2), anchors, strict=True):
        made = bench.later_objective(system, split, members[:place])
        if count is None:
            assert made is None
            continue
        assert isinstance(made, kind)
        assert len(made.members) == count
        anchor = members[0] if later["name"] != "prediction_repulsion" else members[1]
        assert same(made.member(0).state_dict(), anchor)


def test_the_fisher_information_is_that_of_the_anchor_on_training_images(tmp_path, split):
    bench = bench_of(recipe_of({**STAR, "later": {"name": "ewc", "alpha": 1.0, "images": 6}}), tmp_path)
    theta, network = bench.start.theta, bench.start.network
    found = bench.fisher(network, split, theta, 6)
    model = network.build()
    model.load_state_dict(theta)
    model.eval()
    expected = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    for subset in split.train:
        part = part_of(subset, 3, "fisher", split.data_seed)
        assert len(part) == 3
        assert set(part.indices) <= set(subset.indices)
        for index, label in zip(part.indices, part.labels, strict=True):
            image = split.task.transform.plain(subset.domain.images.read([index]))
            model.zero_grad()
            model(image).logits.log_softmax(1)[0, label].backward()
            for name, value in model.named_parameters():
                expected[name] += value.grad.square() / 6
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def diverging(monkeypatch, seeds):
    """Trainings with these seeds diverge."""
    fit = Trainer.fit

    def broken(self, theta, split, run, *, workspace=None):
        if run.seed in seeds:
            raise Diverged("the loss was nan", 1)
        return fit(self, theta, split, run, workspace=workspace)

    monkeypatch.setattr(Trainer, "fit", broken)


def test_a_member_that_diverges_is_left_out_with_those_that_start_from_it(tmp_path, split, monkeypatch):
    bench = bench_of(recipe_of(LOCAL, STAR, SSE, PUSHED), tmp_path)
    seeds = [run.seed for run in bench.runs_of(bench.recipe.systems[0], 0)]
    diverging(monkeypatch, {seeds[1]})
    found = {system.name: bench.members_of(system, split) for system in bench.recipe.systems}
    for name, numbers in {"Local DE": [1, 3], "Star": [1, 3], "SSE": [1], "Pushed": [1, 3]}.items():
        assert [made.number for made in found[name].made] == numbers
    assert found["SSE"].lost[1] == Lost(3, "it starts from member 2, which diverged")
    assert found["Star"].lost == (Lost(2, "the loss was nan"),)
    assert any("SSE member 2 of 3 is left out: the loss was nan" in note for note in bench.progress.notes)
    again = bench_of(bench.recipe, tmp_path)  # what diverged is remembered
    again.members_of(bench.recipe.systems[0], split)
    assert not again.store.made


def test_where_the_first_member_diverges_a_star_has_none(tmp_path, split, monkeypatch):
    bench = bench_of(recipe_of(PUSHED), tmp_path)
    diverging(monkeypatch, {bench.runs_of(bench.recipe.systems[0], 0)[0].seed})
    found = bench.members_of(bench.recipe.systems[0], split)
    assert not found.made
    assert len(found.lost) == 3


@pytest.mark.parametrize(
    ("system", "message"),
    [
        ({**STAR, "cycle": {"train_from": "conv9"}}, r"systems.Star: .*conv9"),
        ({**DICE_, "split_at": "conv9"}, r"systems.DICE: split_at: expected the name of a module .*'conv9'"),
        ({**LOCAL, "objective": {"name": "adp"}}, None),
        ({"name": "ADP", "kind": "joint", "members": 3, "objective": "adp"}, r"systems.ADP: ADP"),
    ],
)
def test_what_cannot_be_trained_is_told_by_a_rehearsal(tmp_path, split, system, message):
    if message is None:
        with pytest.raises(InputError, match=r"systems.Local DE.objective.name: there is no objective 'adp'"):
            recipe_of(system)
        return
    bench = bench_of(recipe_of(system), tmp_path)
    with pytest.raises(InputError, match=message):
        bench.rehearse(bench.recipe.systems[0], split)
    assert not bench.store.made


HELD = {"name": "Held", "kind": "star", "later": {"name": "ewc", "alpha": 1.0}}


@pytest.mark.parametrize("system", [LOCAL, SSE, PUSHED, HELD, DICE_])
def test_a_rehearsal_leaves_nothing(tmp_path, split, system):
    bench = bench_of(recipe_of(system), tmp_path)
    bench.rehearse(bench.recipe.systems[0], split)
    assert not bench.store.made


def test_a_part_of_a_subset_is_drawn_once(split):
    subset = split.train[0]
    part = part_of(subset, 5, "x")
    assert len(part) == 5
    kept = set(part.indices)
    assert list(part.indices) == [index for index in subset.indices if index in kept]
    assert list(part_of(subset, 5, "x").indices) == list(part.indices)
    assert list(part_of(subset, 5, "y").indices) != list(part.indices)
    assert part_of(subset, len(subset), "x") is subset
