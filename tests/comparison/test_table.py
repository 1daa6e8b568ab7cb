import csv
import io
import math

import pytest
from scipy import stats

from mirepoix.comparison import moments, paired
from mirepoix.comparison._measure import MEASURES
from mirepoix.comparison._table import cautions, rows_csv, table_rows, trials_csv, verdict


def test_the_error_is_that_of_the_mean():
    values = [0.70, 0.71, 0.75]
    found = moments(values)
    assert found["mean"] == pytest.approx(0.72)
    assert found["error"] == pytest.approx(stats.sem(values))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.5], {"mean": 0.5, "error": None}),
        ([0.5, None], {"mean": None, "error": None}),
        ([0.5, "infinite"], {"mean": "infinite", "error": None}),
        ([], {"mean": None, "error": None}),
        ([0.5, 0.5], {"mean": 0.5, "error": 0.0}),
    ],
)
def test_what_has_no_mean_or_no_error(values, expected):
    assert moments(values) == expected


def test_the_interval_is_that_of_a_paired_test():
    ours, theirs = [0.71, 0.74, 0.70, 0.77], [0.70, 0.71, 0.71, 0.72]
    found = paired(ours, theirs)
    expected = stats.ttest_rel(ours, theirs)
    low, high = expected.confidence_interval(0.95)
    assert found["mean"] == pytest.approx(0.02)
    assert (found["low"], found["high"]) == pytest.approx((low, high))
    assert (found["better"], found["trials"]) == (3, 4)


def test_one_trial_has_a_difference_without_an_interval():
    found = paired([0.7], [0.6])
    assert found["mean"] == pytest.approx(0.1)
    assert found["low"] is None
    assert paired([0.7, None], [0.6, 0.5]) is None
    assert paired([0.7, 0.6], [None, 0.5]) is None


def rows(accuracies, baseline="a"):
    found = {
        label: [{"accuracy": value} if value is not None else {} for value in values]
        for label, values in accuracies.items()
    }
    return table_rows([{"label": label} for label in accuracies], found, baseline)


def test_a_row_has_moments_of_every_measure_and_a_difference():
    one, other = rows({"a": [0.5, 0.6], "b": [0.6, 0.6]})
    assert set(one["measures"]) == set(MEASURES)
    assert one["difference"] is None
    assert other["difference"]["mean"] == pytest.approx(0.05)
    assert other["measures"]["nll"] == {"mean": None, "error": None}
    assert other["trials"] == [{"accuracy": 0.6}, {"accuracy": 0.6}]


def test_tables_of_numbers_are_those_of_the_rows():
    made = rows({"a": [0.5, 0.6], 'b, "c"': [0.6, 0.65]})
    lines = list(csv.DictReader(io.StringIO(rows_csv(made))))
    assert [line["system"] for line in lines] == ["a", 'b, "c"']
    assert float(lines[1]["accuracy"]) == pytest.approx(0.625)
    assert float(lines[1]["accuracy_standard_error"]) == pytest.approx(0.025)
    assert float(lines[1]["difference"]) == pytest.approx(0.075)
    assert lines[0]["difference"] == lines[0]["nll"] == ""
    each = list(csv.DictReader(io.StringIO(trials_csv(made, [0, 3]))))
    assert [(line["system"], line["trial"], line["accuracy"]) for line in each] == [
        ("a", "0", "0.5"),
        ("a", "3", "0.6"),
        ('b, "c"', "0", "0.6"),
        ('b, "c"', "3", "0.65"),
    ]


def test_the_verdict_says_what_a_difference_is_worth():
    made = rows({"a": [0.50, 0.52, 0.51], "b": [0.60, 0.62, 0.615]})
    said = verdict(made, "a", 3)
    assert said.startswith("Highest accuracy: b, 61.17 ± 0.60 %, over 3 trials. That is +10.17 points from a")
    assert "which does not hold zero" in said
    near = verdict(rows({"a": [0.50, 0.52, 0.51], "b": [0.51, 0.50, 0.53]}), "a", 3)
    assert "so it may be chance" in near
    assert "which may be chance" in verdict(rows({"a": [0.5], "b": [0.6]}), "a", 1)
    assert verdict(rows({"a": [0.7], "b": [0.6]}), "a", 1).endswith("It is the baseline.")
    assert verdict(rows({"a": [None]}), "a", 1) == "No system has a number in every trial."


def test_what_should_make_a_reader_hesitate_is_told():
    made = rows({"a": [0.5, None], "b": [0.6, 0.7]})
    lost = [
        {"system": "a", "trial": 1, "number": 2, "status": "diverged", "message": "the loss was nan"},
        {"system": "b", "trial": 1, "number": 1, "status": "finished", "message": None},
    ]
    items = cautions(made, lost, trials=2, images=100, notes=["class 'x' is missing"])
    warnings = [item["text"] for item in items if item["level"] == "warning"]
    assert warnings == [
        "a, trial 1: training 2 is left out: the loss was nan",
        "a has no member in some trial, so it has no mean.",
        "class 'x' is missing",
    ]
    notes = " ".join(item["text"] for item in items if item["level"] == "note")
    assert f"±{100 * math.sqrt(0.65 * 0.35 / 100):.2f} points" in notes
    assert "one standard error over 2 trials" in notes
    single = cautions(made, [], trials=1, images=100, notes=[])
    assert any("One trial" in item["text"] for item in single if item["level"] == "warning")
