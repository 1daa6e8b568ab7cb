import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirepoix.rewards.diffusion._loss_weights import best_of, loss_weights
from tests.reference import diffusion_weights as reference

SCORES = st.lists(st.integers(-1000, 1000).map(lambda n: n / 64), min_size=2, max_size=40)


@given(SCORES, st.sampled_from([0.25, 0.5, 0.9, 1.0]), st.sampled_from([0.5, 1.5, 5.0]))
def test_kept_images_and_their_weights_as_the_loop_finds_them(scores, kept, clip):
    found = best_of(np.array(scores), kept)
    if len({scores[i] for i in found}) < 2:
        return
    chosen, weights = reference.kept_and_weights(scores, kept, clip)
    assert found.tolist() == chosen
    np.testing.assert_allclose(loss_weights(np.array(scores)[found], clip), weights, rtol=1e-9)


@given(SCORES)
def test_the_mean_weight_is_one_and_better_images_weigh_no_less(scores):
    weights = loss_weights(np.array(scores), 5.0)
    assert weights.mean() == pytest.approx(1)
    assert (np.diff(weights[np.argsort(scores, kind="stable")]) >= -1e-12).all()


@given(SCORES)
def test_weights_do_not_know_the_scale_of_the_reward(scores):
    array = np.array(scores)
    np.testing.assert_allclose(loss_weights(4 * array + 3, 5.0), loss_weights(array, 5.0), rtol=1e-7)


def test_by_hand():
    weights = loss_weights(np.array([-1.0, 1.0]), clip=2.0)
    np.testing.assert_allclose(weights, np.array([np.exp(-1), 2]) / ((np.exp(-1) + 2) / 2))


def test_equal_scores_weigh_the_same():
    assert (loss_weights(np.full(3, 0.1), 5.0) == 1).all()


def test_the_worse_half_is_dropped_and_of_equal_images_the_first_is_kept():
    assert best_of(np.array([3.0, 1.0, 2.0, 0.0]), 0.5).tolist() == [0, 2]
    assert best_of(np.array([1.0, 1.0, 1.0, 1.0]), 0.5).tolist() == [0, 1]
    assert best_of(np.arange(5.0), 0.5).tolist() == [2, 3, 4]
    assert len(best_of(np.arange(1024.0), 0.5)) == 512
    assert len(best_of(np.arange(10.0), 0.7)) == 7
