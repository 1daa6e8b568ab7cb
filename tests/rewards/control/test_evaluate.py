import numpy as np
import pytest

pytest.importorskip("stable_baselines3", reason="pip install 'mirepoix[control]'")
pytest.importorskip("mujoco", reason="pip install 'mirepoix[control]'")

from mirepoix.rewards.control import Locomotion, PolicyEvaluation, PPOTrainer, initial_policy
from mirepoix.types import InputError
from mirepoix.weights import interpolate
from tests.reference import locomotion as reference
from tests.rewards.control import small

SEEDS = (5, 2, 9)


@pytest.fixture(scope="module")
def evaluate():
    made = PolicyEvaluation(small.TASK, small.start(), seeds=SEEDS)
    yield made
    made.close()


@pytest.fixture(scope="module")
def experts():
    return {name: small.expert(name) for name in ("risky", "cautious")}


def equal(a, b):
    return list(a) == list(b) and all((a[name] == b[name]).all() for name in a)


def by_loops(members, seeds=SEEDS, task=small.TASK):
    bare = task.make().unwrapped
    found = [reference.episode(bare, members, task.alphas, seed, task.episode_steps) for seed in seeds]
    bare.close()
    return {name: np.array([one[name] for one in found]) for name in task.alphas}


def assert_close(found, expected):
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-3, atol=1e-3)


def test_every_reward_of_every_episode_as_the_loop_finds_it(evaluate):
    found = evaluate(small.expert("risky"))
    assert list(found) == ["risky", "cautious"]
    assert found["risky"].shape == (3,)
    assert_close(found, by_loops([(1.0, small.expert("risky"))]))


def test_an_ensemble_averages_the_mean_actions(evaluate, experts):
    found = evaluate.ensemble(experts, {"cautious": 0.7, "risky": 0.3})
    assert_close(found, by_loops([(0.3, experts["risky"]), (0.7, experts["cautious"])]))
    assert not equal(found, evaluate(interpolate(list(experts.values()), [0.3, 0.7])))


def test_means_are_averaged_before_they_are_clipped(evaluate, experts):
    far = {**experts["risky"], "action_net.bias": experts["risky"]["action_net.bias"] + 3}
    pair = {"far": far, "cautious": experts["cautious"]}
    found = evaluate.ensemble(pair, {"far": 0.6, "cautious": 0.4})
    assert_close(found, by_loops([(0.6, far), (0.4, experts["cautious"])]))


def test_same_weights_same_numbers_whatever_was_evaluated_before(evaluate, experts):
    first = evaluate(experts["risky"])
    evaluate(experts["cautious"])
    evaluate.ensemble(experts, {"risky": 0.5, "cautious": 0.5})
    assert equal(first, evaluate(experts["risky"]))
    fresh = PolicyEvaluation(small.TASK, experts["cautious"], seeds=SEEDS)
    assert equal(first, fresh(experts["risky"]))
    fresh.close()


def test_the_ends_of_a_front_are_the_experts(evaluate, experts):
    for name, coefficients in (("risky", [1, 0]), ("cautious", [0, 1])):
        soup = interpolate(list(experts.values()), coefficients)
        ensemble = evaluate.ensemble(experts, dict(zip(experts, coefficients, strict=True)))
        assert equal(evaluate(soup), evaluate(experts[name]))
        assert equal(ensemble, evaluate(experts[name]))


def test_an_ensemble_of_copies_is_the_copy(evaluate, experts):
    copies = {"a": experts["risky"], "b": experts["risky"]}
    assert equal(evaluate.ensemble(copies, {"a": 0.5, "b": 0.5}), evaluate(experts["risky"]))


def test_every_seed_has_its_own_episode(evaluate, experts):
    one = PolicyEvaluation(small.TASK, small.start(), seeds=[2])
    assert one(experts["risky"])["risky"] == pytest.approx(evaluate(experts["risky"])["risky"][1], rel=1e-3)
    one.close()
    assert len(set(evaluate(experts["risky"])["risky"])) == 3


def test_an_episode_ends_when_the_robot_falls():
    task = Locomotion(environment="Hopper-v5", episode_steps=200)
    theta = PPOTrainer(reward={"risky": 1.0}, gather=True)(
        initial_policy(task, hidden=(8, 8)), task, small.RUN
    )
    evaluate = PolicyEvaluation(task, theta, seeds=SEEDS)
    assert_close(evaluate(theta), by_loops([(1.0, theta)], task=task))
    evaluate.close()


def test_the_digest_names_what_decides_the_numbers(evaluate):
    others = [
        PolicyEvaluation(small.TASK, small.start(), seeds=(5, 2)),
        PolicyEvaluation(small.TASK, small.other_statistics(), seeds=SEEDS),
        PolicyEvaluation(Locomotion(episode_steps=49), small.start(), seeds=SEEDS),
    ]
    assert len({evaluate.digest, *(other.digest for other in others)}) == 4
    again = PolicyEvaluation(small.TASK, small.expert("risky"), seeds=SEEDS)
    assert again.digest == evaluate.digest
    for other in (*others, again):
        other.close()


def test_other_statistics_are_refused(evaluate, experts):
    with pytest.raises(InputError, match="the start and theta have other observation statistics"):
        evaluate(small.other_statistics())
    with pytest.raises(InputError, match="'risky' and 'other' have other observation statistics"):
        evaluate.ensemble(
            {"risky": experts["risky"], "other": small.other_statistics()}, {"risky": 0.5, "other": 0.5}
        )
    with pytest.raises(InputError, match="start: expected a policy with its observation statistics"):
        PolicyEvaluation(small.TASK, initial_policy(small.TASK))


def test_another_architecture_is_refused(evaluate):
    theta = {**small.start(), **initial_policy(small.TASK, hidden=(8, 8))}
    with pytest.raises(InputError, match=r"expected weights of a policy for HalfCheetah-v5, .* has shape"):
        evaluate(theta)


@pytest.mark.parametrize("seeds", [[], [1, 1], [-1]])
def test_wrong_seeds_are_refused(seeds):
    with pytest.raises(InputError, match="seeds: expected different numbers"):
        PolicyEvaluation(small.TASK, small.start(), seeds=seeds)


@pytest.mark.parametrize(
    ("coefficients", "message"),
    [
        ({"risky": 1.0}, r"expected one for each expert \(cautious, risky\), got risky"),
        ({"risky": 0.5, "cautious": 0.6}, "that sum to one"),
        ({"risky": -0.5, "cautious": 1.5}, "0 or more"),
        ({"risky": float("nan"), "cautious": 1.0}, "that sum to one"),
    ],
)
def test_wrong_coefficients_are_refused(evaluate, experts, coefficients, message):
    with pytest.raises(InputError, match=message):
        evaluate.ensemble(experts, coefficients)
