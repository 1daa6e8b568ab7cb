import pytest

pytest.importorskip("stable_baselines3", reason="pip install 'mirepoix[control]'")
pytest.importorskip("mujoco", reason="pip install 'mirepoix[control]'")

from mirepoix.checkpoints import fingerprint
from mirepoix.rewards import check_experts, simplex_lattice, sweep
from mirepoix.rewards.control import PolicyEvaluation, policy_expert
from mirepoix.types import InputError
from mirepoix.weights import interpolate
from tests.rewards.control import small


def experts():
    return [policy_expert(name, small.expert(name), small.start()) for name in ("risky", "cautious")]


def test_experts_of_one_start_can_be_interpolated():
    found = check_experts(experts())
    assert found.start == fingerprint(small.start())
    assert found.warnings == ()
    assert [expert.reward for expert in experts()] == ["risky", "cautious"]


def test_experts_with_other_statistics_are_refused():
    other = small.other_statistics()
    with pytest.raises(InputError, match="'stranger': its observation statistics are not those of the start"):
        policy_expert("stranger", other, small.start())
    stranger = policy_expert("stranger", other, other, reward="risky")
    with pytest.raises(InputError, match="have different fixed states 'observation statistics'"):
        check_experts([experts()[0], stranger], force=True)


def test_the_front_of_a_sweep_has_the_experts_at_its_ends(tmp_path):
    evaluate = PolicyEvaluation(small.TASK, small.start(), seeds=(0, 1))
    points = simplex_lattice(["risky", "cautious"], 2)
    front = sweep(experts(), points, evaluate, evaluation=evaluate.digest, cache=tmp_path, items=2)
    assert front.rewards == ("risky", "cautious")
    assert front.values.shape == (3, 2, 2)
    for name in ("risky", "cautious"):
        alone = evaluate(small.expert(name))
        assert (front.values[front.vertex(name)] == [alone["risky"], alone["cautious"]]).all()
    half = evaluate(interpolate([small.expert("risky"), small.expert("cautious")], [0.5, 0.5]))
    assert (front.values[1] == [half["risky"], half["cautious"]]).all()

    def never(theta):
        raise AssertionError

    again = sweep(experts(), points, never, evaluation=evaluate.digest, cache=tmp_path, items=2)
    assert (again.values == front.values).all()
    evaluate.close()
