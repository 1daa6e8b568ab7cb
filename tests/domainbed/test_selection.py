import copy
import itertools
import math
import pickle
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirepoix.data import digits_task, split_indices
from mirepoix.domainbed._selection import (
    METHODS,
    HiddenLabels,
    LeftOut,
    Missing,
    Record,
    Selected,
    by_leaving_one_out,
    by_training_domains,
    labels_for,
    left_out_part,
    oracle,
    subsets_for,
    visible,
)
from mirepoix.types import InputError

NAN = math.nan
TARGET = "sketch"


def record(run, step, validation, *, last=False, target=None, **others):
    """Accuracy `validation` on both sources; `target` is the 20 % part of the target."""
    sources = [name for name in ("art", "photo") if name not in others]
    values = validation if isinstance(validation, dict) else dict.fromkeys(sources, validation)
    left_out = {TARGET: LeftOut(0.31, target, 0.33)}
    left_out |= {name: LeftOut(train, 0.01, 0.02) for name, train in others.items()}
    return Record(run, step, last, values, left_out)


def place(found):
    assert isinstance(found, Selected), found
    return found.record.run, found.record.step


# Training-domain validation


def test_the_better_of_two_steps_is_chosen():
    found = by_training_domains([record(0, 100, 0.65), record(0, 200, 0.75)], TARGET)
    assert place(found) == (0, 200)
    assert found.score == 0.75
    assert found.method == "training-domain"


def test_the_score_is_the_plain_mean_over_training_domains():
    uneven = record(0, 1, {"art": 0.9, "photo": 0.5})
    even = record(1, 1, {"art": 0.69, "photo": 0.69})
    found = by_training_domains([uneven, even], TARGET)
    assert place(found) == (0, 1)
    assert found.score == pytest.approx(0.7)


def test_the_first_of_equal_steps_and_the_largest_of_equal_runs_win():
    records = [record(run, step, 0.5) for run in (0, 2, 1) for step in (20, 10)]
    assert place(by_training_domains(records, TARGET)) == (2, 10)


def test_a_tie_between_runs_does_not_look_at_their_steps():
    records = [record(0, 10, 0.8), record(1, 10, 0.1), record(1, 30, 0.8), record(1, 40, 0.8)]
    assert place(by_training_domains(records, TARGET)) == (1, 30)


def test_nan_is_below_every_number():
    records = [record(0, 10, NAN), record(0, 20, 0.0), record(1, 10, NAN), record(2, 10, -math.inf)]
    assert place(by_training_domains(records, TARGET)) == (0, 20)
    found = by_training_domains([record(0, 10, NAN), record(1, 10, NAN)], TARGET)
    assert found == Missing("every score of the 2 records is NaN")


def test_nothing_to_choose_from_is_missing():
    for found in (by_training_domains([], TARGET), oracle([], TARGET), by_leaving_one_out([], {}, TARGET)):
        assert found == Missing("there are no records of finished runs to choose from")


def test_what_is_selected_is_the_record_that_was_given():
    given_record = record(0, 10, 0.5, last=True, target=0.6)
    found = by_training_domains([given_record], TARGET)
    assert found.record is given_record
    assert found.record.left_out[TARGET].whole == 0.33
    assert oracle([given_record], TARGET).record is given_record


values = st.sampled_from([0.0, 0.25, 0.5, 0.75, NAN])


@given(st.dictionaries(st.tuples(st.integers(0, 3), st.integers(0, 3)), values, min_size=1), st.randoms())
def test_the_choice_is_the_definition_in_any_order(scores, random):
    records = [record(run, step, value) for (run, step), value in scores.items()]
    random.shuffle(records)
    found = by_training_domains(records, TARGET)
    finite = {where: value for where, value in scores.items() if not math.isnan(value)}
    if not finite:
        assert isinstance(found, Missing)
        return
    top = max(finite.values())
    run = max(run for (run, _), value in finite.items() if value == top)
    step = min(step for (each, step), value in finite.items() if each == run and value == top)
    assert place(found) == (run, step)
    assert found.score == top


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3), st.floats(0, 1), st.floats(0, 1))
def test_the_target_does_not_move_the_choice(scores, before, after):
    def chosen(accuracy):
        left_out = {TARGET: LeftOut(accuracy, accuracy, accuracy)}
        records = [replace(record(i, 0, value), left_out=left_out) for i, value in enumerate(scores)]
        return place(by_training_domains(records, TARGET))

    assert chosen(before) == chosen(after)


def test_a_run_that_trained_on_the_target_is_refused_by_every_method():
    leak = Record(7, 10, True, {"art": 0.5, TARGET: 0.9}, {"photo": LeftOut(0.5, 0.5, 0.5)})
    message = "run 7: expected a run that left out the target domain 'sketch', got one that trained on it"
    with pytest.raises(InputError, match=message):
        by_training_domains([leak], TARGET)
    with pytest.raises(InputError, match=message):
        oracle([leak], TARGET)
    with pytest.raises(InputError, match=message):
        by_leaving_one_out([record(7, 10, 0.5)], {"photo": [leak]}, TARGET)
    for method in METHODS:
        with pytest.raises(InputError, match=message):
            visible([leak], method, TARGET)


def test_records_that_cannot_be_compared_are_refused():
    with pytest.raises(InputError, match="run 0, step 10: expected one record, got two"):
        by_training_domains([record(0, 10, 0.5), record(0, 10, 0.6)], TARGET)
    with pytest.raises(InputError, match=r"left out only 'sketch', got one that left out 'photo' too.*pairs"):
        by_training_domains([record(0, 10, 0.5, photo=0.4)], TARGET)
    with pytest.raises(InputError, match=r"run 1, step 10: .*training domain \(art, photo\), got art"):
        by_training_domains([record(0, 10, 0.5), record(1, 10, {"art": 0.5})], TARGET)
    with pytest.raises(InputError, match=r"\(at least one\), got none"):
        by_training_domains([record(0, 10, {})], TARGET)


# Leave-one-domain-out


def searched(art, photo):
    """Runs and their pairs; `art` and `photo` give the score on that domain by (run, step)."""
    records = [record(run, step, 0.9) for run, step in art]
    pairs = {
        "art": [record(*where, 0.9, art=value) for where, value in art.items()],
        "photo": [record(*where, 0.9, photo=value) for where, value in photo.items()],
    }
    return records, pairs


def test_leaving_one_out_is_the_mean_over_pairs_at_the_same_step():
    records, pairs = searched(
        {(0, 10): 0.4, (0, 20): 0.5, (1, 10): 0.1, (1, 20): 0.2},
        {(0, 10): 0.8, (0, 20): 0.6, (1, 10): 0.9, (1, 20): 0.2},
    )
    found = by_leaving_one_out(records, pairs, TARGET)
    assert place(found) == (0, 10)
    assert found.score == pytest.approx(0.6)
    assert found.method == "leave-one-out"
    assert found.record is records[0]


def test_ties_of_leaving_one_out_are_those_of_the_others():
    same = dict.fromkeys(itertools.product((0, 1), (10, 20)), 0.5)
    assert place(by_leaving_one_out(*searched(same, same), TARGET)) == (1, 10)


def test_a_missing_pair_leaves_leaving_one_out_undefined():
    both = {(0, 10): 0.4, (1, 10): 0.5}
    records, pairs = searched(both, {(0, 10): 0.4})
    reason = "leave-one-out needs run 1, step 10 of the run that left out 'sketch' and 'photo'; there is none"
    assert by_leaving_one_out(records, pairs, TARGET) == Missing(reason)
    records, pairs = searched(both, both)
    del pairs["art"]
    found = by_leaving_one_out(records, pairs, TARGET)
    assert found.reason.startswith(
        "leave-one-out needs run 0, step 10 of the run that left out 'sketch' and 'art'"
    )


def test_an_accuracy_that_was_not_measured_is_named():
    records, pairs = searched({(3, 10): 0.4}, {(3, 10): None})
    reason = "the accuracy on the 80 % part of 'photo' of run 3, step 10 without 'sketch' and 'photo'"
    assert reason in by_leaving_one_out(records, pairs, TARGET).reason
    pairs["photo"] = [Record(3, 10, True, {"art": 0.9}, {})]
    assert reason in by_leaving_one_out(records, pairs, TARGET).reason


def test_steps_of_a_pair_that_the_run_does_not_have_do_not_matter():
    records, pairs = searched({(0, 10): 0.4}, {(0, 10): 0.4, (0, 20): 0.9, (5, 10): 0.9})
    assert place(by_leaving_one_out(records, pairs, TARGET)) == (0, 10)


def test_a_score_of_its_own_sees_the_pair_and_not_the_target():
    records, pairs = searched({(0, 10): 0.4, (0, 20): 0.3}, {(0, 10): 0.4, (0, 20): 0.3})
    found = by_leaving_one_out(records, pairs, TARGET, score=lambda pair, name: -pair.left_out[name].train)
    assert place(found) == (0, 20)
    with pytest.raises(HiddenLabels, match="leave-one-out validation may not read accuracies of the target"):
        by_leaving_one_out(records, pairs, TARGET, score=lambda pair, name: pair.left_out[TARGET].train)


def test_pairs_of_the_wrong_domains_are_refused():
    records, pairs = searched({(0, 10): 0.4}, {(0, 10): 0.4})
    with pytest.raises(InputError, match=r"the runs trained on \(art, photo\), got 'sketch'"):
        by_leaving_one_out(records, {**pairs, TARGET: []}, TARGET)
    with pytest.raises(InputError, match="left out both, got one that trained on 'art'"):
        by_leaving_one_out(records, {"art": records, "photo": pairs["photo"]}, TARGET)


# The oracle


def test_the_oracle_uses_the_last_step_even_if_it_is_worse():
    records = [
        record(0, 10, 0.5, target=0.9),
        record(0, 20, 0.5, target=0.5, last=True),
        record(1, 10, 0.5, target=0.1),
        record(1, 20, 0.5, target=0.6, last=True),
    ]
    found = oracle(records, TARGET)
    assert place(found) == (1, 20)
    assert found.score == 0.6
    assert found.method == "oracle"


def test_of_equal_runs_the_oracle_takes_the_largest_and_nan_loses():
    records = [record(i, 5 - i, 0.5, target=value, last=True) for i, value in enumerate((0.6, 0.6, 0.2, NAN))]
    assert place(oracle(records, TARGET)) == (1, 4)
    assert isinstance(oracle(records[3:], TARGET), Missing)


def test_the_oracle_says_what_it_lacks():
    found = oracle([record(0, 10, 0.5, target=0.9, last=True), record(4, 10, 0.5, target=0.9)], TARGET)
    assert found == Missing("the oracle needs the last step of each run; run 4 has none")
    found = oracle([record(2, 10, 0.5, last=True)], TARGET)
    assert "20 % part of 'sketch' of run 2, step 10; it was not measured" in found.reason
    assert isinstance(oracle([Record(2, 10, True, {"art": 0.5}, {})], TARGET), Missing)
    with pytest.raises(InputError, match="run 0: expected one last step, the largest, got step 20 after 10"):
        oracle([record(0, 10, 0.5, last=True), record(0, 20, 0.5)], TARGET)


# What a score can read


@pytest.mark.parametrize("part", ["train", "validation", "whole"])
def test_a_changed_score_cannot_read_the_target(part):
    records = [record(0, 10, 0.5, target=0.9, last=True)]
    message = (
        "training-domain validation may not read accuracies of the target domain 'sketch'; training-domain "
        "validation chooses by the validation parts"
    )
    with pytest.raises(HiddenLabels, match=message):
        by_training_domains(records, TARGET, score=lambda each: getattr(each.left_out[TARGET], part))


def test_the_oracle_reads_the_part_it_chooses_by_and_no_other():
    records = [record(i, 10, 0.5, target=value, last=True) for i, value in enumerate((0.9, 0.4))]
    assert place(oracle(records, TARGET, score=lambda each: -each.left_out[TARGET].validation)) == (1, 10)
    for part in ("train", "whole"):
        with pytest.raises(
            HiddenLabels, match="the oracle may not read accuracies on the other images of the target"
        ):
            oracle(records, TARGET, score=lambda each, part=part: getattr(each.left_out[TARGET], part))


def test_a_view_holds_no_hidden_number():
    (view,) = visible([record(0, 10, 0.5, target=0.9)], "training-domain", TARGET)
    assert view.domains == ("art", "photo", "sketch")
    assert TARGET in view.left_out
    assert "elsewhere" not in view.left_out
    assert len(view.left_out) == 1
    assert view.validation == {"art": 0.5, "photo": 0.5}
    for held in ("0.31", "0.9", "0.33"):
        assert held not in repr(view)
        assert held not in repr(vars(view.left_out))
    (seen,) = visible([record(0, 10, 0.5, target=0.9)], "oracle", TARGET)
    assert seen.left_out[TARGET].validation == 0.9
    assert repr(seen.left_out[TARGET]) == "LeftOut(hidden)"
    with pytest.raises(AttributeError, match="nothing"):
        _ = seen.left_out[TARGET].nothing


@pytest.mark.parametrize(
    "read",
    [
        lambda view: list(view.left_out.values()),
        lambda view: view.left_out.get(TARGET),
        lambda view: dict(view.left_out),
        lambda view: asdict(view.left_out[TARGET]),
        lambda view: copy.copy(view.left_out[TARGET]),
        lambda view: pickle.dumps(view.left_out[TARGET]),
        lambda view: view.left_out[TARGET] == view.left_out[TARGET],
    ],
)
def test_no_roundabout_way_reads_a_hidden_number(read):
    (view,) = visible([record(0, 10, 0.5, target=0.9)], "training-domain", TARGET)
    with pytest.raises(HiddenLabels):
        read(view)


def test_leaving_one_out_sees_every_left_out_domain_but_the_target():
    (view,) = visible([record(0, 10, 0.5, photo=0.4)], "leave-one-out", TARGET)
    assert view.left_out["photo"] == LeftOut(0.4, 0.01, 0.02)
    with pytest.raises(HiddenLabels, match="target domain 'sketch'"):
        view.left_out[TARGET]
    for method in ("training-domain", "oracle"):
        (view,) = visible([record(0, 10, 0.5, photo=0.4)], method, TARGET)
        with pytest.raises(HiddenLabels, match="left-out domain 'photo'"):
            view.left_out["photo"]


def test_an_unknown_method_is_refused():
    with pytest.raises(
        InputError, match="expected one of training-domain, leave-one-out, oracle, got 'best'"
    ):
        visible([record(0, 10, 0.5)], "best", TARGET)


# Labels


@pytest.fixture(scope="module")
def task():
    return digits_task()


def test_what_each_method_may_read_of_a_split(task):
    target, other, *_ = task.domain_names
    split = task.split(target, data_seed=1)
    pair = task.split(target, data_seed=1, without=(other,))
    parts = ("validation", "target_validation", "target_train")
    allowed = set()
    for method, part, domain in itertools.product(METHODS, parts, (target, other)):
        try:
            subsets_for(pair, part, method, domain=domain)
        except HiddenLabels:
            continue
        allowed.add((method, part, domain == target))
    assert allowed == {
        *((method, "validation", which) for method in METHODS for which in (True, False)),
        ("oracle", "target_validation", True),
        ("leave-one-out", "target_validation", False),
        ("leave-one-out", "target_train", False),
    }
    for method in METHODS:
        found = labels_for(split, "validation", method)
        assert list(found) == [subset.name for subset in split.validation]
        for subset in split.validation:
            np.testing.assert_array_equal(found[subset.name], subset.labels)


def test_hidden_labels_say_whose(task):
    target = task.domain_names[0]
    split = task.split(target)
    message = (
        f"training-domain validation may not read labels of the 80 % part of the target domain '{target}'"
    )
    with pytest.raises(HiddenLabels, match=message):
        labels_for(split, "target_train", "training-domain")


def test_a_pair_serves_both_of_its_targets(task):
    one, other, *_ = task.domain_names
    pair = task.split(one, without=(other,))
    assert list(labels_for(pair, "target_train", "leave-one-out", domain=other)) == [other]
    assert list(labels_for(pair, "target_train", "leave-one-out", target=other)) == [one]
    with pytest.raises(HiddenLabels, match=f"target domain '{other}'"):
        labels_for(pair, "target_train", "leave-one-out", target=other, domain=other)


def test_the_parts_of_a_left_out_domain_are_those_it_has_as_a_source(task):
    target, other, *_ = task.domain_names
    split, as_source = (
        task.split(target, data_seed=2, holdout=0.3),
        task.split(other, data_seed=2, holdout=0.3),
    )
    train, validation = split_indices(len(task.domains[0]), data_seed=2, domain=0, holdout=0.3)
    np.testing.assert_array_equal(left_out_part(split, target, "train").indices, train)
    np.testing.assert_array_equal(left_out_part(split, target, "validation").indices, validation)
    np.testing.assert_array_equal(as_source.train[0].indices, train)
    (read,) = subsets_for(split, "target_validation", "oracle")
    np.testing.assert_array_equal(read.indices, validation)


def test_a_split_that_trains_on_the_target_is_refused(task):
    target, other, *_ = task.domain_names
    with pytest.raises(HiddenLabels, match=f"target domain '{other}' may not use a split that trains on it"):
        labels_for(task.split(target), "validation", "oracle", target=other)
    everything = task.split(None)
    with pytest.raises(HiddenLabels, match="leaves out no domain"):
        labels_for(everything, "validation", "oracle", target=other)
    assert len(labels_for(everything, "validation", "training-domain")) == len(task.domains)
    with pytest.raises(InputError, match="expected a split with a target"):
        labels_for(everything, "target_train", "oracle")


def test_parts_and_domains_that_do_not_exist_are_refused(task):
    target, other, *_ = task.domain_names
    split = task.split(target)
    with pytest.raises(InputError, match=r"part: expected one of .*, got 'test'"):
        labels_for(split, "test", "oracle")
    with pytest.raises(InputError, match="method: expected one of"):
        labels_for(split, "validation", "none")
    with pytest.raises(InputError, match=rf"the split leaves out \({target}\), got '{other}'"):
        left_out_part(split, other, "train")
