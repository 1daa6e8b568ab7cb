import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="pip install 'mirepoix[text]'")

from mirepoix.rewards import simplex_lattice, sweep
from mirepoix.rewards.scenes import SceneEvaluation, SceneNetwork, decode, initial_network, scene_expert
from mirepoix.types import InputError
from tests.rewards.scenes import small


def evaluation(**options):
    return SceneEvaluation(small.TASK, small.start(), **{"examples": 10, **options})


def equal(a, b):
    return set(a) == set(b) and all((a[name] == b[name]).all() for name in a)


def test_values_are_the_rewards_of_the_greedy_answers():
    evaluate = evaluation()
    examples = small.TASK.examples("test").take(range(10))
    network = SceneNetwork(small.TASK, small.expert("short"))
    answers = network.texts(decode([network], [1.0], examples.images, examples.prompts))
    assert evaluate.answers(small.expert("short")) == answers
    expected = small.TASK.score(examples, range(10), answers)
    assert equal(evaluate(small.expert("short")), expected)
    assert evaluate.rewards == tuple(expected) == small.TASK.rewards


def test_what_was_evaluated_before_does_not_matter():
    evaluate = evaluation()
    first = evaluate(small.start())
    evaluate(small.expert("short"))
    assert equal(evaluate(small.start()), first)


def test_an_ensemble_of_equal_networks_is_the_network():
    evaluate = evaluation()
    alone = evaluate(small.expert("short"))
    thetas = {"a": small.expert("short"), "b": dict(small.expert("short"))}
    assert equal(evaluate.ensemble(thetas, {"a": 0.3, "b": 0.7}), alone)
    mixed = {"a": small.expert("right"), "b": small.expert("short")}
    assert equal(evaluate.ensemble(mixed, {"b": 1.0, "a": 0.0}), alone)


def test_it_shows_what_was_asked_and_said():
    evaluate, examples = evaluation(part="validation", examples=5), small.TASK.examples("validation")
    assert evaluate.prompts(2) == examples.prompts[:2]
    assert evaluate.references() == examples.references[:5]
    np.testing.assert_array_equal(evaluate.images(3), examples.images[:3])
    assert evaluate.answers(small.start(), 2) == evaluate.answers(small.start())[:2]
    evaluate.images(3)[:] = 0
    assert evaluate.images(3).any()
    with pytest.raises(InputError, match="count: expected 1 to 5 examples, got 6"):
        evaluate.answers(small.start(), 6)


def test_a_sweep_takes_it(tmp_path):
    evaluate = evaluation()
    experts = [
        scene_expert(name, small.expert(name), small.start(), task=small.TASK) for name in ("right", "short")
    ]
    points = simplex_lattice(["right", "short"], 2)
    front = sweep(experts, points, evaluate, evaluation=evaluate.digest, cache=tmp_path)
    assert front.means.shape == (3, 3)
    np.testing.assert_array_equal(front.values[0][1], evaluate(small.expert("short"))["short"])


def test_the_digest_names_what_decides():
    digests = {
        evaluation().digest,
        evaluation(examples=9).digest,
        evaluation(part="validation").digest,
        SceneEvaluation(small.Strokes(seed=1), small.start(), examples=10).digest,
    }
    assert len(digests) == 4
    assert evaluation().digest in digests


def test_wrong_questions_are_refused():
    with pytest.raises(
        InputError, match="examples: expected 1 to 12, as many as the task has in 'test', got 13"
    ):
        evaluation(examples=13)
    with pytest.raises(InputError, match="part: expected one of"):
        evaluation(part="dev")
    evaluate = evaluation()
    with pytest.raises(InputError, match="theta: expected weights of a network for the task 'strokes'"):
        evaluate(initial_network(small.TASK, width=32))
    thetas = {"a": small.start(), "b": small.start()}
    with pytest.raises(InputError, match=r"expected one for each expert \(a, b\), got a"):
        evaluate.ensemble(thetas, {"a": 1.0})
    with pytest.raises(InputError, match="0 or more that sum to one"):
        evaluate.ensemble(thetas, {"a": 0.5, "b": 0.6})
    with pytest.raises(InputError, match="expert 'b': expected weights"):
        evaluate.ensemble({"a": small.start(), "b": {"w": torch.zeros(1)}}, {"a": 1.0, "b": 0.0})
