"""Numbers of the report from hand-made outcomes."""

import math

import pytest

from mirepoix.experiment._evidence import _subsets
from mirepoix.experiment._table import _moments, equations
from mirepoix.experiment._trust import caution, verdict


def seeds(*accuracies):
    return [{"data_seed": i, "id_accuracy": a, "ood_accuracy": a / 2} for i, a in enumerate(accuracies)]


def test_the_error_is_the_population_deviation_over_the_root_of_the_number_of_seeds():
    moments = _moments(seeds(0.70, 0.71, 0.75))
    assert moments["id_accuracy"] == pytest.approx(0.72)
    assert 100 * moments["id_standard_error"] == pytest.approx(2.1602469 / math.sqrt(3))
    assert moments["ood_standard_error"] == pytest.approx(moments["id_standard_error"] / 2)


def test_one_seed_has_no_error():
    moments = _moments(seeds(0.7))
    assert moments == {
        "id_accuracy": 0.7,
        "id_standard_error": None,
        "ood_accuracy": 0.35,
        "ood_standard_error": None,
    }


def test_the_strategies_print_the_equations_of_the_rows():
    assert equations(0.3) == {
        ("fine_tuning", "mean"): "Train(theta_pt, D; c_i)",
        ("fine_tuning", "best"): "best_i Train(theta_pt, D; c_i)",
        ("wise", "interpolate"): "0.7 Train(theta_pt, D; c_i) + 0.3 theta_pt",
        ("moving_average", "best"): "best_i mean_t theta_t along Train(theta_pt, D; c_i)",
        ("diwa", "average"): "1/M sum_i Train(theta_pt, D; c_i)",
        ("diwa", "greedy"): "1/|K| sum_(i in K) Train(theta_pt, D; c_i)",
        ("diwa", "ensemble"): "1/M sum_i f(x; Train(theta_pt, D; c_i))",
    }


@pytest.mark.parametrize(
    ("members", "size", "most"), [(4, 2, 50), (8, 4, 50), (8, 1, 50), (20, 10, 50), (5, 5, 1)]
)
def test_subsets_are_different_of_the_right_size_and_the_same_again(members, size, most):
    chosen = _subsets(members, size, most, seed=3)
    assert len(chosen) == min(most, math.comb(members, size)) or math.comb(members, size) <= most
    assert len({frozenset(subset) for subset in chosen}) == len(chosen)
    assert all(len(set(subset)) == size and max(subset) < members for subset in chosen)
    assert chosen == _subsets(members, size, most, seed=3)


KINDS = [
    ("fine_tuning", "mean", 1),
    ("fine_tuning", "best", 1),
    ("wise", "interpolate", 1),
    ("moving_average", "best", 1),
    ("diwa", "average", 1),
    ("diwa", "greedy", 1),
    ("diwa", "ensemble", 4),
]


def report(ood, *, images=10_000, id_accuracy=0.8, disagreement=0.0, ratio=0.5, runs=()):
    """One target and one data seed, with OOD accuracies in the order of `KINDS`."""

    def row(kind, value, **more):
        return {
            "strategy": kind[0],
            "combine": kind[1],
            "label": f"{kind[0]} {kind[1]}",
            "id_accuracy": id_accuracy,
            "ood_accuracy": value,
            "members": 4,
            "inference_cost": kind[2],
            **more,
        }

    return {
        "protocol": {"data_seeds": [0]},
        "targets": ["sketch"],
        "task": {
            "domains": [{"name": "sketch", "images": images}],
            "notes": ["class 'x' is missing in domains: a"],
        },
        "rows": [row(k, v, target="sketch") for k, v in zip(KINDS, ood, strict=True)],
        "averages": [row(k, v) for k, v in zip(KINDS, ood, strict=True)],
        "runs": list(runs),
        "why": [
            {
                "target": "sketch",
                "data_seed": 0,
                "ratio_error": {"ood": ratio},
                "average_ensemble_disagreement": disagreement,
            }
        ],
    }


GOOD = (0.50, 0.52, 0.51, 0.55, 0.56, 0.54, 0.57)


def texts(content, level):
    return [item["text"] for item in caution(content) if item["level"] == level]


def test_the_verdict_begins_with_the_plain_average_whatever_is_best():
    said = verdict(report(GOOD))
    assert said.startswith(
        "The average of 4 members: 56.0 % OOD, 4.0 points above the run that is best on ID"
    )
    assert "Best single model" not in said
    assert "57.0 % (+1.0 points), at 4 times the cost" in said
    below = verdict(report((0.50, 0.60, 0.51, 0.62, 0.56, 0.54, 0.57)))
    assert "4.0 points below the run" in below
    assert "Best single model here: moving_average best, 62.0 %" in below


def test_an_average_below_its_members_is_a_warning_and_one_above_is_none():
    assert not [t for t in texts(report(GOOD), "warning") if "below its mean member" in t]
    fallen = texts(report((0.58, 0.6, 0.5, 0.5, 0.56, 0.5, 0.6)), "warning")
    assert any("2.0 points below its mean member" in text for text in fallen)


def test_a_difference_within_twice_the_binomial_error_is_called_chance():
    # error sqrt(.52 * .48 / n): 0.5 points of 10,000 images, 5.0 of 100; the difference is 4 points
    assert not [t for t in texts(report(GOOD, images=10_000), "note") if "may be chance" in t]
    assert any("±5.0 points" in t and "may be chance" in t for t in texts(report(GOOD, images=100), "note"))


def test_disagreement_equal_errors_saturation_divergence_and_notes_are_told():
    run = {"target": "sketch", "run": 2, "data_seed": 0, "status": "diverged", "message": "the loss was nan"}
    content = report(GOOD, id_accuracy=0.999, disagreement=0.2, ratio=0.0, runs=[run])
    warnings, notes = " ".join(texts(content, "warning")), " ".join(texts(content, "note"))
    assert "disagree on 20.0 %" in warnings
    assert "All members fail on the same images" in warnings
    assert "Run 2 (data seed 0) is left out: the loss was nan" in warnings
    assert "class 'x' is missing" in warnings
    assert "ID validation is nearly perfect (sketch)" in notes
    assert "One data seed" in notes
    assert "1 of 1 runs diverged" in verdict(content)
    quiet = texts(report(GOOD), "warning")
    assert quiet == ["class 'x' is missing in domains: a"]
