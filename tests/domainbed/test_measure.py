from __future__ import annotations

import dataclasses
import math
from dataclasses import replace

import pytest
import torch

from mirepoix.domainbed import HiddenLabels, Missing, by_training_domains
from mirepoix.domainbed._measure import Measured, _Cells, cells_of_seeds, cells_of_split, pair
from mirepoix.domainbed._members import Members
from mirepoix.domainbed._nodes import TaskName
from mirepoix.domainbed._rows import Row
from mirepoix.domainbed._selection import subsets_for
from mirepoix.experiment import Judge
from mirepoix.weights import interpolate
from tests.domainbed.conftest import Direct

PLACES = [("rotated_0", 0), ("rotated_75", 1)]
NAME = TaskName("digits", "rotated_0")


def near(value):
    return pytest.approx(value, abs=1e-6)


def best_by(scores):
    """The largest score, of equal ones the largest number."""
    return max(range(len(scores)), key=lambda run: (round(scores[run], 6), run))


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def averaged(thetas):
    """The arithmetic mean in double precision."""
    return {name: mean(theta[name].double() for theta in thetas).float() for name in thetas[0]}


# Every cell against its definition, from the stored weights and plain predictions


@pytest.mark.parametrize(("target", "seed"), PLACES)
@pytest.mark.parametrize(
    ("row", "family"),
    [
        ("fine_tuning", "fine_tuning"),
        ("moving_average", "moving_average"),
        ("inter_training", "inter_training"),
    ],
)
def test_training_domain_validation_reports_the_run_that_is_best_on_the_sources(
    table, target, seed, row, family
):
    direct = Direct(table.bench, target, seed)
    thetas = direct.of(family)
    run = best_by([direct.id_mean(theta) for theta in thetas])
    cell = table.cell(row, target=target, seed=seed)
    assert cell.choice["run"] == run
    assert cell.whole == near(direct.whole(thetas[run]))
    assert cell.part == near(direct.target_parts(thetas[run])[0])
    assert cell.id_accuracy == cell.choice["score"] == near(direct.id_mean(thetas[run]))
    assert cell.sources == (f"weights/{thetas[run].path.parent.name}",)
    assert (cell.members, cell.inference_cost) == (1, 1)


@pytest.mark.parametrize(("target", "seed"), PLACES)
@pytest.mark.parametrize(("row", "collect"), [("fine_tuning", "last"), ("moving_average", "moving_average")])
def test_the_oracle_compares_last_weights_on_the_twenty_percent_of_the_target(
    table, target, seed, row, collect
):
    direct = Direct(table.bench, target, seed)
    thetas = direct.of(row, collect)
    run = best_by([direct.target_parts(theta)[1] for theta in thetas])
    cell = table.cell(row, "oracle", target=target, seed=seed)
    assert (cell.choice["run"], cell.choice["step"]) == (run, 7)
    assert cell.choice["score"] == near(direct.target_parts(thetas[run])[1])
    assert cell.whole == near(direct.whole(thetas[run]))
    assert cell.part == near(direct.target_parts(thetas[run])[0])


def test_the_parts_of_the_target_are_four_fifths_and_one_fifth(table):
    split = table.bench.split(NAME)
    measured = Measured(table.bench, NAME)
    labels = measured.judge.labels("test")
    right = torch.nn.functional.one_hot(labels, 10).float()
    few = right.clone()
    validation = subsets_for(split, "target_validation", "oracle")[0].indices
    few[validation] = -right[validation]
    found = measured.on_target(few)
    assert (found.train, found.validation) == (1.0, 0.0)
    assert found.whole == near(1 - len(validation) / len(labels))
    assert len(validation) == int(len(labels) * 0.2)


@pytest.mark.parametrize(("target", "seed"), PLACES)
def test_the_mean_row_is_the_mean_of_the_accuracies(table, target, seed):
    direct = Direct(table.bench, target, seed)
    thetas = direct.of("fine_tuning")
    cell = table.cell("mean_member", target=target, seed=seed)
    assert cell.whole == near(mean(map(direct.whole, thetas)))
    assert cell.part == near(mean(direct.target_parts(theta)[0] for theta in thetas))
    assert cell.id_accuracy == near(mean(map(direct.id_mean, thetas)))
    assert len(cell.sources) == cell.members == 3


@pytest.mark.parametrize(("target", "seed"), PLACES)
@pytest.mark.parametrize(
    ("row", "family"),
    [("diwa", "fine_tuning"), ("ratatouille", "inter_training"), ("robust_ratatouille", "robust")],
)
def test_a_uniform_row_is_the_model_of_the_mean_weights(table, target, seed, row, family):
    direct = Direct(table.bench, target, seed)
    theta = averaged(direct.of(family))
    for selection in ("training-domain", "oracle"):
        cell = table.cell(row, selection, target=target, seed=seed)
        assert cell.whole == near(direct.whole(theta))
        assert cell.part == near(direct.target_parts(theta)[0])
        assert cell.id_accuracy == near(direct.id_mean(theta))
        assert cell.choice == {"selects": "nothing"}


@pytest.mark.parametrize("target", ["rotated_0", "rotated_75"])
def test_dagger_is_the_mean_of_the_members_of_all_data_seeds(table, target):
    splits = [Direct(table.bench, target, seed) for seed in (0, 1)]
    thetas = [theta for direct in splits for theta in direct.of("fine_tuning")]
    theta = averaged(thetas)
    cell = table.cell("diwa_dagger", target=target, seed=None)
    assert cell.members == len(cell.sources) == 6
    assert cell.whole == near(splits[0].whole(theta))
    assert cell.part == near(mean(direct.target_parts(theta)[0] for direct in splits))
    assert cell.id_accuracy is None  # no validation image is unseen by all
    assert not [c for c in table.sweep.cells if c.row == "diwa_dagger" and c.data_seed is not None]


@pytest.mark.parametrize(("target", "seed"), PLACES)
def test_an_ensemble_averages_logits(table, target, seed):
    direct = Direct(table.bench, target, seed)
    thetas = direct.of("fine_tuning")
    test = direct.split.test[0]
    logits = mean(direct.logits(theta, test).double() for theta in thetas)
    cell = table.cell("ensemble", target=target, seed=seed)
    assert cell.whole == near((logits.argmax(1) == torch.as_tensor(test.labels)).double().mean().item())
    assert (cell.members, cell.inference_cost) == (3, 3)


def greedy_by_hand(thetas, ranks, score):
    """Best first; one more is kept if the mean does not get worse."""
    order = sorted(range(len(thetas)), key=lambda i: (-round(ranks[i], 6), i))
    kept, best, scores = [], -1.0, []
    for i in order:
        scores.append(score(averaged([thetas[j] for j in [*kept, i]])))
        if scores[-1] >= best - 1e-9:
            kept, best = [*kept, i], scores[-1]
    return order, kept, scores


@pytest.mark.parametrize(("target", "seed"), [*PLACES, ("rotated_0", 1), ("rotated_75", 0)])
@pytest.mark.parametrize(
    ("row", "family"), [("diwa_greedy", "fine_tuning"), ("moving_average/greedy", "moving_average")]
)
@pytest.mark.parametrize("selection", ["training-domain", "oracle"])
def test_a_greedy_soup_is_that_of_the_definition(table, target, seed, row, family, selection):
    direct = Direct(table.bench, target, seed)
    thetas = direct.of(family)
    if selection == "oracle":
        score = lambda theta: direct.target_parts(theta)[1]  # noqa: E731
        ranks = [score(theta) for theta in thetas]
    else:
        score, ranks = direct.id_pooled, [direct.id_mean(theta) for theta in thetas]
    order, kept, scores = greedy_by_hand(thetas, ranks, score)
    cell = table.cell(row, selection, target=target, seed=seed)
    assert cell.choice["order"] == order
    assert cell.choice["kept"] == kept
    assert cell.choice["scores"] == near(scores)
    assert cell.members == len(cell.sources) == len(kept)
    assert cell.whole == near(direct.whole(averaged([thetas[i] for i in kept])))


def test_a_strict_greedy_soup_keeps_no_equal(table, monkeypatch):
    bench = replace(table.bench, benchmark=table.bench.benchmark.model_copy(update={"greedy_strict": True}))
    for strict, count in ((bench, 1), (table.bench, 3)):
        measured = Measured(strict, NAME)
        monkeypatch.setattr(measured, "score_for", lambda method: lambda theta: 0.5)
        assert _Cells(measured, Row.of("diwa_greedy"), "training-domain").cell().members == count


@pytest.mark.parametrize(("target", "seed"), PLACES)
@pytest.mark.parametrize("selection", ["training-domain", "oracle"])
def test_wise_takes_the_best_share_of_the_start_and_the_smallest_of_equals(table, target, seed, selection):
    direct = Direct(table.bench, target, seed)
    last = selection == "oracle"
    thetas = direct.of("fine_tuning", "last" if last else None)
    score = (lambda theta: direct.target_parts(theta)[1]) if last else direct.id_pooled
    ranks = [score(theta) if last else direct.id_mean(theta) for theta in thetas]
    run = best_by(ranks)
    start = table.bench.weights(direct.members.start(direct.name))
    candidates = [interpolate([thetas[run], start], [1 - i / 10, i / 10]) for i in range(11)]
    scores = [score(theta) for theta in candidates]
    chosen = scores.index(max(scores))
    cell = table.cell("wise", selection, target=target, seed=seed)
    assert (cell.choice["run"], cell.choice["coefficient"]) == (run, chosen / 10)
    assert cell.choice["scores"] == near(scores)
    assert cell.whole == near(direct.whole(candidates[chosen]))


def test_wise_stays_at_the_fine_tuned_weights_when_all_shares_are_equal(table, monkeypatch):
    measured = Measured(table.bench, NAME)
    monkeypatch.setattr(measured, "score_for", lambda method: lambda theta: 0.5)
    cell = _Cells(measured, Row.of("wise"), "training-domain").cell()
    assert cell.choice["coefficient"] == 0
    assert cell.whole == table.cell("fine_tuning").whole


# Leaving one out


def pair_node(direct, family, other, run):
    return direct.members.of(family, pair("digits", "rotated_0", other, 0))[run]


@pytest.mark.parametrize("row", ["fine_tuning", "moving_average"])
def test_leaving_one_out_chooses_by_runs_that_left_out_two_domains(left_one_out, row):
    bench = left_one_out.bench
    direct = Direct(bench)
    sources = [name for name in direct.split.task.domain_names if name != "rotated_0"]
    scores = []
    for run in range(2):
        each = []
        for other in sources:
            there = Direct(bench, other, 0, ("rotated_0",))
            assert {subset.name for subset in there.split.train} == set(sources) - {other}
            each.append(there.target_parts(bench.weights(pair_node(direct, row, other, run)))[0])
        scores.append(mean(each))
    run = best_by(scores)
    cell = left_one_out.cell(row, "leave-one-out")
    theta = direct.of(row)[run]
    assert cell.choice["run"] == run
    assert cell.choice["score"] == near(scores[run])
    assert cell.whole == near(direct.whole(theta))
    assert cell.part == near(direct.target_parts(theta)[0])
    best_step = theta.record["best_step"] if row == "fine_tuning" else 7
    assert cell.choice["step"] == best_step


def test_leaving_one_out_has_no_greedy_soup_and_no_wise(left_one_out):
    assert (
        "no validation set under leave-one-out" in left_one_out.cell("diwa_greedy", "leave-one-out").missing
    )
    assert "no choice of its coefficient" in left_one_out.cell("wise", "leave-one-out").missing


# The reference's protocol


def test_the_reference_chooses_among_all_checks_of_all_runs(reference):
    direct = Direct(reference.bench)
    checks = [theta.record["checks"] for theta in direct.of("fine_tuning")]
    assert [[check["step"] for check in run] for run in checks] == [[0, 2, 4], [0, 2, 4]]
    # training domains: the first maximum within a run, the largest number of equal runs
    tops = [max(run, key=lambda check: (check["score"], -check["step"])) for run in checks]
    run = best_by([top["score"] for top in tops])
    cell = reference.cell("fine_tuning")
    assert (cell.choice["run"], cell.choice["step"]) == (run, tops[run]["step"])
    assert cell.part == tops[run]["left_out"]["rotated_0"]["train"]
    theta = direct.of("fine_tuning")[run]
    assert cell.part == near(direct.target_parts(theta)[0])
    assert cell.whole == near(direct.whole(theta))
    # the oracle: last steps only
    scores = [each[-1]["left_out"]["rotated_0"]["validation"] for each in checks]
    run = best_by(scores)
    cell = reference.cell("fine_tuning", "oracle")
    assert (cell.choice["run"], cell.choice["step"], cell.choice["score"]) == (run, 4, scores[run])
    last = direct.of("fine_tuning", "last")[run]
    assert cell.part == near(direct.target_parts(last)[0])
    assert cell.whole == near(direct.whole(last))


def test_the_reference_leaves_one_out_at_every_check(reference):
    direct = Direct(reference.bench)
    checks = [theta.record["checks"] for theta in direct.of("fine_tuning")]
    sources = [name for name in direct.split.task.domain_names if name != "rotated_0"]
    best, chosen = -1.0, None
    for run in range(2):
        pairs = {
            other: reference.bench.weights(pair_node(direct, "fine_tuning", other, run)).record["checks"]
            for other in sources
        }
        top = None
        for place, check in enumerate(checks[run]):
            assert {tuple(sorted(p[place]["left_out"])) for p in pairs.values()} == {
                tuple(sorted(("rotated_0", other))) for other in sources
            }
            score = mean(pairs[other][place]["left_out"][other]["train"] for other in sources)
            if top is None or score > top[0] + 1e-12:
                top = (score, check)
        if top[0] >= best - 1e-12:
            best, chosen = top[0], (run, top[1])
    cell = reference.cell("fine_tuning", "leave-one-out")
    assert (cell.choice["run"], cell.choice["step"]) == (chosen[0], chosen[1]["step"])
    assert cell.choice["score"] == pytest.approx(best)
    assert cell.part == chosen[1]["left_out"]["rotated_0"]["train"]


def test_the_reference_watches_the_target_plain_and_validates_augmented(reference):
    (theta, _) = Direct(reference.bench).of("fine_tuning", "last")
    last = theta.record["checks"][-1]
    direct = Direct(reference.bench)
    train, validation = direct.target_parts(theta)
    assert last["left_out"] == {"rotated_0": {"train": near(train), "validation": near(validation)}}
    assert theta.record["made_of"]["run"]["augment_validation"]
    assert theta.record["made_of"]["train"]["watch_left_out"]


def test_the_corrected_protocol_does_not_watch_the_target(table):
    (theta, *_) = Direct(table.bench).of("fine_tuning")
    assert "left_out" not in theta.record["checks"][-1]
    assert not theta.record["made_of"]["run"]["augment_validation"]


def test_an_average_is_measured_alike_in_both_protocols(reference):
    direct = Direct(reference.bench)
    theta = averaged(direct.of("fine_tuning"))
    assert reference.cell("diwa").whole == near(direct.whole(theta))
    assert reference.cell("diwa").part == near(direct.target_parts(theta)[0])


# What a selection may see


def test_a_selection_that_reads_the_target_raises(table):
    measured = Measured(table.bench, NAME)
    gathered = measured.gather("fine_tuning")
    records = [measured.record(member) for member in gathered.members]
    assert records[0].left_out["rotated_0"].whole is not None
    for part in ("train", "validation", "whole"):
        with pytest.raises(HiddenLabels, match="may not read"):
            by_training_domains(records, "rotated_0", score=lambda r: getattr(r.left_out["rotated_0"], part))  # noqa: B023
    for part in ("target_validation", "target_train"):
        for method in ("training-domain", "leave-one-out"):
            with pytest.raises(HiddenLabels, match="may not read labels"):
                subsets_for(measured.split, part, method)
    with pytest.raises(HiddenLabels, match="80 %"):
        subsets_for(measured.split, "target_train", "oracle")
    with pytest.raises(HiddenLabels, match="leave-one-out validation may not read labels"):
        measured.score_for("leave-one-out")


def test_the_score_of_training_domains_needs_no_target_at_all(table):
    measured = Measured(table.bench, NAME)
    theta = measured.gather("fine_tuning").members[0].theta
    expected = measured.score_for("training-domain")(theta)
    judge = measured.judge
    measured.judge = Judge(
        judge.network, dataclasses.replace(judge.split, test=()), judge.store, judge.device
    )
    assert measured.score_for("training-domain")(theta) == expected
    with pytest.raises((RuntimeError, ValueError)):  # the oracle reads what is not there
        measured.score_for("oracle")(theta)


def test_the_score_of_the_oracle_is_of_its_twenty_percent_alone(table):
    measured, direct = Measured(table.bench, NAME), Direct(table.bench)
    for member in measured.gather("fine_tuning").members:
        assert measured.score_for("oracle")(member.theta) == near(direct.target_parts(member.theta)[1])


# What is not there


def test_a_pair_is_the_same_whichever_is_named_first():
    assert pair("d", "b", "a", 3) == pair("d", "a", "b", 3) == TaskName("d", "a", 3, ("b",))


def test_what_is_not_trained_yet_says_so(make_bench, tmp_path):
    bench = make_bench("strategies=['diwa', 'diwa_dagger', 'ratatouille']", store=tmp_path)
    rows = bench.benchmark.rows()
    nodes = Members(bench.benchmark).of("fine_tuning", NAME)

    def missing():
        cells = cells_of_split(bench, "digits", "rotated_0", 0, rows)
        cells += cells_of_seeds(bench, "digits", "rotated_0", rows)
        assert [cell.row for cell in cells] == ["diwa", "ratatouille", "diwa_dagger"]
        assert {cell.whole for cell in cells} <= {None, cells[0].whole}
        return [cell.missing for cell in cells]

    none = "3 of 3 runs are not trained yet"
    assert missing() == [none, none, f"data seed 0: {none}"]
    bench.make(nodes[0].theta)
    bench.make(nodes[1])
    assert missing()[0] == "2 of 3 runs are not trained yet"
    bench.make(nodes[0])
    bench.make(nodes[2])
    assert missing() == [None, "2 of 3 runs are not trained yet", None]


def test_leaving_one_out_names_the_pair_that_is_not_trained(left_one_out, make_bench):
    bench = left_one_out.bench
    more = bench.benchmark.model_copy(update={"runs": 3})
    bench = replace(bench, benchmark=more)
    bench.make(Members(more).of("fine_tuning", NAME)[2])
    (cell,) = cells_of_split(bench, "digits", "rotated_0", 0, [Row.of("fine_tuning")])
    assert cell.missing == "leaving out 'rotated_0' and 'rotated_15': 1 of 3 runs are not trained yet"


def test_records_without_a_number_are_missing_and_not_zero(table):
    measured = Measured(table.bench, NAME)
    record = measured.record(measured.gather("fine_tuning").members[0])
    nothing = replace(record, validation=dict.fromkeys(record.validation, math.nan))
    assert isinstance(by_training_domains([nothing], "rotated_0"), Missing)
