"""A strategy given text prints its equation; given an affine ``train`` it does the algebra."""

import numpy as np
import pytest

from mirepoix.runs import Run
from mirepoix.strategies import diwa, fine_tuning, moving_average, wise
from mirepoix.weights import average

RUNS = [Run(seed=seed) for seed in (1, 2, 3)]


def text_train(theta, task, run):
    suffix = "" if run.collect == "best" else f", {run.collect}"
    return f"Train({theta}, {task}; c{run.seed}{suffix})"


def text_mean(terms):
    terms = list(terms)
    return f"1/{len(terms)} ({' + '.join(terms)})"


def affine_train(theta, task, run):
    """theta -> 2 theta + seed * task, so that every equation has a value one can work out."""
    return {"w": 2 * theta["w"] + run.seed * task}


START = {"w": np.array([1.0, -2.0])}
TASK = np.array([10.0, 20.0])


def test_fine_tuning_prints_its_equation():
    printed = fine_tuning(text_train, "theta_pt", "D", RUNS, combine=lambda terms: f"best of {list(terms)}")
    assert printed == (
        "best of ['Train(theta_pt, D; c1)', 'Train(theta_pt, D; c2)', 'Train(theta_pt, D; c3)']"
    )


def test_diwa_prints_its_equation():
    assert diwa(text_train, "theta_pt", "D", RUNS, combine=text_mean) == (
        "1/3 (Train(theta_pt, D; c1) + Train(theta_pt, D; c2) + Train(theta_pt, D; c3))"
    )


def test_moving_average_prints_its_equation():
    assert moving_average(text_train, "theta_pt", "D", RUNS[1]) == "Train(theta_pt, D; c2, moving_average)"


def test_wise_prints_its_equation():
    def combine(thetas, coefficients):
        return " + ".join(f"{c:g} {t}" for c, t in zip(coefficients, thetas, strict=True))

    assert (
        wise(text_train, "theta_pt", "D", RUNS[0], 0.25, combine)
        == "0.75 Train(theta_pt, D; c1) + 0.25 theta_pt"
    )


def test_diwa_averages_by_default():
    # mean over c of (2 theta + c D) with c = 1, 2, 3 is 2 theta + 2 D
    assert diwa(affine_train, START, TASK, RUNS)["w"] == pytest.approx([22, 36])


def test_diwa_trains_lazily_one_member_at_a_time():
    alive = []

    def train(theta, task, run):
        alive.append(run.seed)
        return affine_train(theta, task, run)

    def combine(thetas):
        iterator = iter(thetas)
        next(iterator)
        assert alive == [1]
        return list(iterator)

    assert len(diwa(train, START, TASK, RUNS, combine=combine)) == 2


def test_wise_interpolates_with_lambda_on_the_start():
    trained = affine_train(START, TASK, RUNS[2])["w"]
    for share in (0.0, 0.3, 1.0):
        expected = (1 - share) * trained + share * START["w"]
        assert wise(affine_train, START, TASK, RUNS[2], share)["w"] == pytest.approx(expected)


def test_the_same_members_serve_every_combination():
    members = diwa(affine_train, START, TASK, RUNS, combine=list)
    assert np.array_equal(average(members)["w"], diwa(affine_train, START, TASK, RUNS)["w"])
