import json

import pytest

from mirepoix.runs import EXTREME, EXTREME_SMALL, MILD, Run, sample_runs
from mirepoix.types import InputError

EXTREME_GOLDEN = {
    1: (2.7028930742148706e-05, 4.4832883881609976e-04, 39, 0.5),
    2: (5.6841898471378446e-05, 5.100223533962902e-03, 25, 0.5),
    3: (6.801736841150391e-05, 1.046949588651311e-05, 34, 0.0),
}
MILD_GOLDEN = {
    1: (3e-5, 1e-4, 0.5),
    2: (1e-5, 1e-6, 0.5),
    3: (3e-5, 1e-6, 0.0),
    4: (1e-5, 1e-6, 0.0),
    5: (3e-5, 1e-4, 0.5),
    6: (3e-5, 1e-4, 0.1),
    7: (1e-5, 1e-4, 0.1),
    8: (5e-5, 1e-4, 0.1),
    9: (5e-5, 1e-6, 0.5),
}


def test_extreme_space_draws_the_values_of_the_benchmark():
    runs = sample_runs(EXTREME, 4)
    for number, expected in EXTREME_GOLDEN.items():
        run = runs[number]
        assert (run.learning_rate, run.weight_decay, run.batch_size, run.dropout) == pytest.approx(
            expected, rel=1e-15
        )


def test_mild_space_draws_the_values_of_diwa():
    runs = sample_runs(MILD, 10)
    for number, expected in MILD_GOLDEN.items():
        run = runs[number]
        assert (run.learning_rate, run.weight_decay, run.dropout) == expected
        assert run.batch_size == 32


def test_run_zero_is_the_base():
    base = Run(steps=7, learning_rate=0.1)
    first = sample_runs(EXTREME_SMALL, 2, base=base)[0]
    assert first == base.with_(seed=first.seed)


def test_another_field_in_the_space_moves_no_other_draw():
    alone = {"dropout": MILD["dropout"]}
    assert [run.dropout for run in sample_runs(alone, 9)] == [run.dropout for run in sample_runs(MILD, 9)]


def test_more_runs_continue_the_list_and_seeds_differ():
    assert sample_runs(MILD, 5)[3:] == sample_runs(MILD, 2, first=3)
    seeds = [run.seed for trial in range(3) for run in sample_runs(MILD, 20, data_seed=trial)]
    assert len(set(seeds)) == 60


def test_drawn_values_are_plain_python():
    for space in (MILD, EXTREME, EXTREME_SMALL):
        for run in sample_runs(space, 5):
            for value in run.to_dict().values():
                assert value is None or type(value) in (int, float, str, bool, list)
            assert Run(**json.loads(json.dumps(run.to_dict()))) == run


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("steps", 0, "at least 1"),
        ("learning_rate", -1.0, "positive"),
        ("learning_rate", float("nan"), "positive"),
        ("weight_decay", -1e-9, "0 or more"),
        ("dropout", 1.0, r"\[0, 1\)"),
        ("batch_size", 0, "at least 1"),
        ("optimizer", "lion", "'adam', 'adamw' or 'sgd'"),
        ("momentum", 1.5, r"\[0, 1\)"),
        ("schedule", "step", "constant, cosine, steps, triangular"),
        ("classifier_steps", 6000, "0 to 5001"),
        ("check_every", 0, "at least 1"),
        ("average_from", 0, "at least 1"),
        ("collect", "first", "one of best, last, moving_average"),
    ],
)
def test_every_field_is_validated(field, value, expected):
    with pytest.raises(InputError, match=expected) as error:
        Run(**{field: value})
    assert f"run.{field}" in str(error.value)


def test_no_members_is_an_error():
    with pytest.raises(InputError, match="at least 1 run, got 0"):
        sample_runs(MILD, 0)


def test_cosine_is_that_of_published_snapshots():
    first = Run(steps=25, learning_rate=0.05, schedule="cosine")
    assert [round(first.learning_rate_at(t), 4) for t in (0, 12, 24)] == [0.05, 0.0266, 0.0002]
    cycle = Run(steps=12, learning_rate=0.1, schedule="cosine")
    assert [round(cycle.learning_rate_at(t), 4) for t in (0, 6, 11)] == [0.1, 0.05, 0.0017]


def test_a_schedule_of_epochs_changes_once_in_an_epoch():
    steps = Run(steps=25, learning_rate=0.05, schedule="cosine")
    epochs = steps.with_(steps=25 * 7, schedule_every=7)
    assert [epochs.learning_rate_at(t) for t in range(175)] == pytest.approx(
        [steps.learning_rate_at(t // 7) for t in range(175)], rel=1e-12
    )


def test_warmup_rises_linearly_and_the_cosine_begins_after_it():
    run = Run(steps=14, learning_rate=0.1, schedule="cosine", warmup_steps=4)
    assert [run.learning_rate_at(t) for t in range(4)] == pytest.approx([0.025, 0.05, 0.075, 0.1])
    cosine = Run(steps=10, learning_rate=0.1, schedule="cosine")
    assert [run.learning_rate_at(t + 4) for t in range(10)] == [cosine.learning_rate_at(t) for t in range(10)]
    epochs = Run(steps=14, learning_rate=0.1, warmup_steps=6, schedule_every=3)
    assert [epochs.learning_rate_at(t) for t in (0, 2, 3, 5, 6)] == pytest.approx([0.05, 0.05, 0.1, 0.1, 0.1])


def test_steps_fall_at_the_start_of_published_epochs():
    run = Run(steps=300, learning_rate=0.1, schedule="steps", milestones=(1 / 3, 2 / 3, 3 / 4))
    rates = [run.learning_rate_at(t) for t in (0, 99, 100, 199, 200, 224, 225, 299)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3, 1e-4, 1e-4])


def test_a_triangle_begins_low_is_full_in_the_middle_and_ends_low():
    run = Run(steps=10, learning_rate=0.2, schedule="triangular")
    rates = [run.learning_rate_at(t) for t in range(10)]
    assert rates[0] == pytest.approx(0.002)
    assert rates[5] == pytest.approx(0.2)
    assert rates[1:5] == pytest.approx(rates[:5:-1])
    assert rates[:6] == sorted(rates[:6])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"nesterov": True}, "nesterov"),
        ({"nesterov": True, "optimizer": "sgd", "momentum": 0.0}, "nesterov"),
        ({"schedule_every": 0}, "schedule_every"),
        ({"steps": 5, "warmup_steps": 5}, "fewer than steps"),
        ({"milestones": (0.75, 0.5)}, "milestones"),
        ({"milestones": (0.0,)}, "milestones"),
        ({"decay": 0.0}, "decay"),
        ({"train_from": ""}, "train_from"),
        ({"frozen_statistics": True}, "without train_from"),
    ],
)
def test_schedules_and_frozen_parts_are_checked(fields, message):
    with pytest.raises(InputError, match=message):
        Run(**fields)


def test_a_run_read_from_a_record_is_the_run():
    run = Run(schedule="steps", milestones=(0.25, 0.5))
    assert Run(**run.to_dict()) == run
    assert hash(Run(**run.to_dict())) == hash(run)
