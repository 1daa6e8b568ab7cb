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
                assert type(value) in (int, float, str, bool)
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
        ("schedule", "step", "'constant' or 'cosine'"),
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
