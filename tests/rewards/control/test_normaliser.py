import numpy as np
import pytest

pytest.importorskip("stable_baselines3", reason="pip install 'mirepoix[control]'")
pytest.importorskip("mujoco", reason="pip install 'mirepoix[control]'")

from mirepoix.rewards.control import Locomotion, ObservationNormaliser, check_observations
from mirepoix.types import InputError
from mirepoix.weights import average, interpolate
from tests.reference import locomotion as reference
from tests.rewards.control import small


def random_normaliser(size=17, seed=0):
    random = np.random.default_rng(seed)
    return ObservationNormaliser(random.normal(size=size), random.uniform(0.01, 4.0, size), np.float64(2.5))


def test_an_observation_is_normalised_as_the_loop_does_it():
    normaliser = random_normaliser()
    observations = 20 * np.random.default_rng(1).normal(size=(5, 17))  # some beyond the clip
    expected = [reference.normalise(row, normaliser.mean, normaliser.variance) for row in observations]
    found = normaliser(observations)
    assert found.dtype == np.float32
    assert np.abs(found).max() == 10
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_constant_observation_is_not_divided_by_zero():
    assert ObservationNormaliser(np.array([3.0]), np.array([0.0]), np.array(1.0))([3.0]) == 0


def test_it_agrees_with_stable_baselines():
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    normaliser = random_normaliser()
    theirs = VecNormalize(DummyVecEnv([Locomotion().make]), training=False)
    theirs.obs_rms.mean, theirs.obs_rms.var = normaliser.mean.astype(float), normaliser.variance.astype(float)
    observation = np.random.default_rng(2).normal(size=17)
    np.testing.assert_array_equal(normaliser(observation), theirs.normalize_obs(observation))
    theirs.close()


def test_an_environment_with_a_normaliser_shows_normalised_observations():
    normaliser = random_normaliser()
    plain, scaled = Locomotion().make(), Locomotion().make(normaliser=normaliser)
    np.testing.assert_array_equal(scaled.reset(seed=4)[0], normaliser(plain.reset(seed=4)[0]))
    action = np.linspace(-1, 1, 6, dtype=np.float32)
    np.testing.assert_array_equal(scaled.step(action)[0], normaliser(plain.step(action)[0]))
    assert scaled.observation_space.shape == (17,)
    plain.close()
    scaled.close()


def test_among_the_weights_and_back():
    normaliser = random_normaliser()
    again = ObservationNormaliser.from_weights({"w": 1, **normaliser.buffers()})
    assert again.fingerprint == normaliser.fingerprint
    assert again.fingerprint != random_normaliser(seed=1).fingerprint


def test_an_average_of_experts_keeps_the_bits():
    members = [random_normaliser().buffers() for _ in range(3)]
    for soup in (average(members), interpolate(members, [0.3, 0.6, 0.1])):
        assert small.same(soup, members[0])


def test_the_statistics_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        random_normaliser().mean[0] = 1


def test_experts_of_one_start_pass_and_others_are_refused():
    experts = {"risky": small.expert("risky"), "cautious": small.expert("cautious")}
    assert check_observations(experts) == ObservationNormaliser.from_weights(small.start()).fingerprint
    with pytest.raises(
        InputError, match=r"'risky' and 'other' have other observation statistics \(normaliser.mean\)"
    ):
        check_observations({"risky": small.expert("risky"), "other": small.other_statistics()})
    for name in ("variance", "return_variance"):
        theta = dict(small.start())
        theta[f"normaliser.{name}"] = theta[f"normaliser.{name}"] * 1.001
        with pytest.raises(InputError, match=rf"normaliser\.{name}"):
            check_observations({"a": small.start(), "b": theta})


def test_experts_without_statistics_are_refused():
    bare = {name: x for name, x in small.start().items() if not name.startswith("normaliser")}
    with pytest.raises(
        InputError, match=r"expert 'bare': expected a policy with its observation statistics.*gather"
    ):
        check_observations({"risky": small.start(), "bare": bare})
    with pytest.raises(InputError, match="expected one or more"):
        check_observations({})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([np.nan], [1.0], 1.0), "normaliser.mean: expected finite"),
        (([0.0], [-1.0], 1.0), "normaliser.variance: .* 0 or more"),
        (([0.0], [1.0], -1.0), "normaliser.return_variance"),
        (([0.0, 1.0], [1.0], 1.0), r"shapes \(2,\) and \(1,\)"),
        (([[0.0]], [[1.0]], 1.0), r"shapes \(1, 1\)"),
        (([0.0], [1.0], [1.0]), r"return_variance: expected one number, got shape \(1,\)"),
    ],
)
def test_wrong_statistics_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        ObservationNormaliser(*given)


def test_statistics_of_another_environment_are_refused():
    with pytest.raises(
        InputError, match=r"statistics are of 17 observations, the environment's have shape \(11,\)"
    ):
        Locomotion(environment="Hopper-v5").make(normaliser=random_normaliser())
