import pytest
import torch
from tests.tiny import tiny_network, tiny_task
from torch import nn

from mirepoix.checkpoints import fingerprint
from mirepoix.ensembles import Independent, JointObjective, average_logits
from mirepoix.models import NetworkSpec, branch_weights, initial_weights, member_weights
from mirepoix.objectives import ERM
from mirepoix.runs import Run
from mirepoix.training import Loop, Trainer
from mirepoix.types import Batch, InputError

RUN = Run(seed=3, steps=6, learning_rate=3e-3, batch_size=4, check_every=2, average_from=2)


def several(members, split_at=None):
    fields = {**tiny_network().to_dict(), "members": members, "split_at": split_at}
    return NetworkSpec(**fields)


@pytest.fixture(scope="module")
def split():
    return tiny_task().split("domain_2")


def drawn(spec, samples=(4, 3)):
    random = torch.Generator().manual_seed(0)
    size = 28
    return [
        Batch(
            torch.randn(count, spec.channels, size, size, generator=random),
            torch.randint(spec.classes, (count,), generator=random),
            torch.full((count,), place),
        )
        for place, count in enumerate(samples)
    ]


def test_the_loss_is_the_sum_of_the_members_risks():
    spec = several(3, "last_stage")
    network = spec.build()
    given = drawn(spec)
    expected = torch.zeros(())
    for place in range(3):
        one = spec.one_member().build()
        one.load_state_dict(member_weights(network.state_dict(), place))
        expected = expected + ERM()(one, given)
    torch.testing.assert_close(Independent()(network, given), expected)


def test_the_prediction_is_the_average_of_the_members_logits():
    spec = several(3)
    network = spec.build().eval()
    images = drawn(spec)[0].images
    found = Independent().predict(network, images)
    assert torch.equal(found.logits, average_logits(network(images).logits))
    assert found.features.shape[0] == 3


def test_one_member_is_trained_as_the_plain_network_bit_for_bit(split):
    plain = initial_weights(tiny_network())
    spec = several(1, "last_stage")
    whole = branch_weights([plain], spec.build().state_dict())
    alone = Trainer(tiny_network()).fit(plain, split, RUN)
    together = Trainer(spec, Independent()).fit(whole, split, RUN)
    for name, theta in alone.weights.items():
        assert fingerprint(member_weights(together.weights[name], 0)) == fingerprint(theta)
    assert together.record["checks"] == alone.record["checks"]


def test_members_without_a_trunk_are_trained_as_if_alone(split):
    """Same batches and order: each is what it would be alone, to rounding."""
    starts = [initial_weights(tiny_network(), seed=seed) for seed in range(2)]
    spec = several(2)
    together = Trainer(spec, Independent()).fit(branch_weights(starts, spec.build().state_dict()), split, RUN)
    for place, start in enumerate(starts):
        alone = Trainer(tiny_network()).fit(start, split, RUN).weights["last"]
        for name, value in member_weights(together.weights["last"], place).items():
            torch.testing.assert_close(value, alone[name], rtol=1e-4, atol=1e-6)


def test_a_joint_training_that_was_stopped_goes_on_bit_for_bit(split, tmp_path):
    spec = several(2, "last_stage")
    theta = initial_weights(spec)
    whole = Trainer(spec, Independent()).fit(theta, split, RUN)

    class Stopped(Exception):
        pass

    def stop(made, *_):
        if made == 4:
            raise Stopped

    stopping = Trainer(spec, Independent(), loop=Loop(save_every=0), on_progress=stop)
    with pytest.raises(Stopped):
        stopping.fit(theta, split, RUN, workspace=tmp_path)
    assert (tmp_path / "state.bin").exists()
    resumed = Trainer(spec, Independent()).fit(theta, split, RUN, workspace=tmp_path)
    assert {k: fingerprint(v) for k, v in resumed.weights.items()} == {
        k: fingerprint(v) for k, v in whole.weights.items()
    }


def test_a_network_of_one_member_without_an_axis_is_refused():
    spec = tiny_network()
    with pytest.raises(
        InputError, match=r"Independent needs a network of several members.*NetworkSpec\(members=3\)"
    ):
        Independent()(spec.build(), drawn(spec))
    with pytest.raises(InputError, match="Independent needs"):
        Independent().predict(spec.build(), drawn(spec)[0].images)


def test_a_new_criterion_writes_its_loss_alone():
    class Agreeing(JointObjective):
        def forward(self, model: nn.Module, batches):
            return model(batches[0].images).logits.var(0).mean()

    spec = several(2)
    logged = Agreeing().step(
        network := spec.build(), drawn(spec), torch.optim.SGD(network.parameters(), lr=0.01)
    )
    assert logged["loss"] > Agreeing()(network, drawn(spec))
