"""The fronts printed in the chapter on rewarded soups, as far as its tables give them."""

import numpy as np
import pytest

from mirepoix.rewards import (
    area_over_front,
    chord_margin,
    hypervolume,
    pareto_mask,
    reward_connectivity,
    reward_curves,
)
from tests.rewards.fronts import CAPTIONING, HUMANOID, NEWS, table_front

TABLES = {"news": NEWS, "captioning": CAPTIONING, "humanoid": HUMANOID}


@pytest.mark.parametrize(
    ("rows", "kept"),
    [(NEWS, [2, 3, 5, 6, 7, 9, 10]), (CAPTIONING, [0, 3, 5, 6, 7, 8, 9, 10])],
    ids=["news", "captioning"],
)
def test_the_rows_that_are_not_dominated(rows, kept):
    assert np.flatnonzero(pareto_mask(rows)).tolist() == kept


@pytest.mark.parametrize(
    ("rows", "with_dominated", "without", "staircase"),
    [(NEWS, 0.33759, 0.31505, 0.38230), (CAPTIONING, 0.26171, 0.24209, 0.29271)],
    ids=["news", "captioning"],
)
def test_the_area_over_the_front_in_its_three_forms(rows, with_dominated, without, staircase):
    def area(**options):
        return area_over_front(rows, scale="minmax", **options).value

    assert area(keep_dominated=True) == pytest.approx(with_dominated, abs=5e-6)
    assert area() == pytest.approx(without, abs=5e-6)
    assert area(mode="staircase") == pytest.approx(staircase, abs=5e-6)
    table = np.array(rows)
    scaled = (table - table.min(axis=0)) / np.ptp(table, axis=0)
    assert hypervolume(scaled, (0, 0)).value == pytest.approx(1 - staircase, abs=5e-6)


@pytest.mark.parametrize(
    ("rows", "largest"),
    [(NEWS, (0.091, 0.159)), (CAPTIONING, (0.0030, 0.0026)), (HUMANOID, (629, 407))],
    ids=list(TABLES),
)
def test_linear_mode_connectivity_holds_with_margin_zero_at_the_ends_alone(rows, largest):
    found = reward_connectivity(table_front(rows))
    assert found.holds
    assert found.above_chord
    assert found.tolerance_from == "none"
    for k, margin in enumerate(found.rewards.values()):
        assert (margin.minimum, margin.tolerance) == (0, 0)
        assert sorted(margin.at.values()) == [0, 1]
        assert (found.margins[1:-1, k] > 0).all()
        assert margin.largest == pytest.approx(largest[k], rel=0.02)
        assert 0 < margin.mean < margin.largest


@pytest.mark.parametrize("rows", TABLES.values(), ids=list(TABLES))
def test_the_front_lies_above_the_chord_of_its_ends(rows):
    margins = chord_margin(rows, [rows[0], rows[-1]])
    assert margins[[0, -1]] == pytest.approx([0, 0], abs=1e-9)
    assert (margins[1:-1] > 0).all()
    assert (margins >= reward_connectivity(table_front(rows)).margins.min(axis=1) - 1e-9).all()


def test_both_training_rewards_of_captioning_are_nearly_monotone():
    curves = reward_curves(table_front(CAPTIONING, "bleu1", "rouge")).curves
    assert curves["bleu1"].monotone
    # ROUGE falls with the weight of BLEU-1, but for 0.0003 between the rows 2 and 3.
    assert curves["rouge"].direction == "rising"  # in the order of the second expert's weight
    assert curves["rouge"].violation == pytest.approx(0.0003, abs=1e-6)


def test_one_soup_of_the_humanoid_beats_the_risky_expert_on_both_rewards():
    front = table_front(HUMANOID, "cautious", "risky")
    curves = reward_curves(front).curves
    assert curves["risky"].gain == 6697 - 6447
    assert curves["risky"].at == {"cautious": 0.2, "risky": 0.8}
    assert not front.nondominated()[0]
