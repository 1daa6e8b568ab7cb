"""Members as their strategies say them: a ``train`` that returns text."""

import pytest

from mirepoix.comparison._systems import equation, trained


def text(theta, task, run):
    return f"T({theta}, {task}; {run})"


@pytest.mark.parametrize(
    ("kind", "starts", "expected"),
    [
        ("deep_ensemble", ["a"], ["T(a, D; 1)", "T(a, D; 2)", "T(a, D; 3)"]),
        ("deep_ensemble", ["a", "b"], ["T(a, D; 1)", "T(b, D; 2)", "T(a, D; 3)"]),
        ("joint", ["a", "b", "c"], ["T(a, D; 1)", "T(b, D; 2)", "T(c, D; 3)"]),
        ("snapshot", ["a"], ["T(a, D; 1)", "T(T(a, D; 1), D; 2)", "T(T(T(a, D; 1), D; 2), D; 3)"]),
        ("swag", ["a"], ["T(a, D; 1)", "T(T(a, D; 1), D; 2)", "T(T(a, D; 1), D; 3)"]),
        ("star", ["a"], ["T(a, D; 1)", "T(T(a, D; 1), D; 2)", "T(T(a, D; 1), D; 3)"]),
    ],
)
def test_members_start_where_their_kind_says(kind, starts, expected):
    assert trained(kind, text, starts, "D", ["1", "2", "3"]) == expected


def test_vertices_start_from_the_average_of_those_before():
    def average(vertices):
        return f"mean {len(vertices)}"

    found = trained("simplex", text, ["a"], "D", ["1", "2", "3"], None, average)
    assert found == ["T(a, D; 1)", "T(mean 1, D; 2)", "T(mean 2, D; 3)"]


@pytest.mark.parametrize("kind", ["snapshot", "star"])
def test_later_members_know_of_the_earlier_ones(kind):
    def later(earlier):
        return lambda theta, task, run: f"L{len(earlier)}"

    assert trained(kind, text, ["a"], "D", ["1", "2", "3"], later) == ["T(a, D; 1)", "L1", "L2"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("deep_ensemble", 5, 1, 1, "", ""), "theta_i = Train(theta_pt, D; c_i)"),
        (("deep_ensemble", 1, 1, 1, "cutmix", ""), "theta = Train_cutmix(theta_pt, D; c)"),
        (("deep_ensemble", 5, 1, 2, "", ""), "theta_i = Train(phi_i, D; c_i)"),
        (
            ("snapshot", 5, 1, 1, "", "rtd"),
            "theta_1 = Train(theta_pt, D; c_1), theta_i = Train_rtd(theta_(i-1), D; c_i)",
        ),
        (
            ("star", 5, 1, 1, "mixup", ""),
            "theta_1 = Train_mixup(theta_pt, D; c_1), theta_i = Train_mixup(theta_1, D; c_i)",
        ),
        (("joint", 4, 1, 1, "dice", ""), "(theta_1, ..., theta_M) = Train_dice(theta_pt, D; c)"),
        (
            ("swag", 5, 1, 1, "", ""),
            "theta_1 = Train(theta_pt, D; c_1), theta_i ~ SWAG along Train(theta_1, D; c_2)",
        ),
        (
            ("laplace", 5, 1, 1, "", ""),
            "theta_1 = Train(theta_pt, D; c_1), theta_i ~ N(theta_1, s (H + tau I)^-1)",
        ),
        (
            ("simplex", 5, 1, 1, "", ""),
            "theta_1 = Train(theta_pt, D; c_1) = w_1, w_n = Train_simplex(1/(n-1) sum_(j<n) w_j, D; c_n), "
            "theta_i = sum_n lambda_in w_n",
        ),
        (("joint", 2, 3, 2, "mimo", ""), "(theta_1, ..., theta_M)_i = Train_mimo(phi_i, D; c_i)"),
    ],
)
def test_a_system_prints_its_equation(arguments, expected):
    assert equation(*arguments) == expected
