import copy
import math

import pytest
import torch
from tests.objectives.test_and_mask import Single, adam_of, drawn, in_single, reordered
from tests.objectives.test_coral import TwoLayers
from tests.objectives.test_rsc import Headed
from tests.reference import erm_plus_plus
from tests.reference.plain import new_adam
from torch import nn

from mirepoix.data import digits_task
from mirepoix.models import NetworkSpec, initial_weights
from mirepoix.objectives import ERM, SAM
from mirepoix.objectives._erm_plus_plus import ERMPlusPlus
from mirepoix.runs import Run
from mirepoix.training import Loop, Trainer
from mirepoix.types import Batch, InputError, Outputs


def small():
    return Headed(4)


def vector(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("linear_steps", [0, 1, 2, 9])
@pytest.mark.parametrize("sizes", [(3, 5, 4), (1, 4), (1,)])
def test_five_updates_are_those_of_the_reference(sizes, linear_steps):
    model, objective = small(), ERMPlusPlus(linear_lr=0.2, linear_steps=linear_steps)
    optimizer = adam_of(model, lr=0.05)
    theta = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    adams = [new_adam(), new_adam()]
    for number in range(1, 6):
        given = drawn(number, sizes)
        theta, expected = erm_plus_plus.update(
            theta, number, adams, given, linear_lr=0.2, linear_steps=linear_steps, lr=0.05
        )
        logged = objective.step(model, given, optimizer)
        assert logged.keys() == {"loss"}
        assert logged["loss"].item() == pytest.approx(expected.item(), abs=1e-10)
        assert not logged["loss"].requires_grad
    adam = adams[0] if linear_steps >= 4 else adams[1]
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, theta[name], rtol=0, atol=1e-10)
        if name not in adam["first"]:
            assert parameter not in optimizer.state
            continue
        state = optimizer.state[parameter]
        assert state["step"].item() == adam["count"]
        torch.testing.assert_close(state["exp_avg"], adam["first"][name], rtol=0, atol=1e-10)
        torch.testing.assert_close(state["exp_avg_sq"], adam["second"][name], rtol=0, atol=1e-10)


# The two phases


def test_one_update_more_than_said_trains_the_classifier_alone():
    model, objective = small(), ERMPlusPlus(linear_steps=2)
    optimizer = adam_of(model)
    moved = []
    for step in range(5):
        before = copy.deepcopy(model)
        objective.step(model, drawn(step), optimizer)
        moved.append(
            [not torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True)]
        )
    assert moved == [[False, True, True]] * 3 + [[True, True, True]] * 2


def test_the_first_phase_is_erm_with_an_optimizer_of_the_classifier():
    one, two = small(), small()
    objective = ERMPlusPlus(linear_lr=0.1, linear_steps=9)
    optimizers = adam_of(one, lr=7.0), adam_of(two.classifier, lr=0.1)
    for step in range(3):
        logged = objective.step(one, drawn(step), optimizers[0])
        expected = ERM().step(two, drawn(step), optimizers[1])
        assert torch.equal(logged["loss"], expected["loss"])
    assert torch.equal(vector(one), vector(two))


def test_the_second_phase_is_erm_with_a_fresh_optimizer():
    one, objective = small(), ERMPlusPlus(linear_lr=0.1, linear_steps=1)
    optimizer = adam_of(one)
    for step in range(2):
        objective.step(one, drawn(step), optimizer)
    two = copy.deepcopy(one)
    other = adam_of(two)
    for step in range(2, 5):
        assert torch.equal(
            objective.step(one, drawn(step), optimizer)["loss"], ERM().step(two, drawn(step), other)["loss"]
        )
    assert torch.equal(vector(one), vector(two))


def test_the_learning_rates_are_put_back_after_every_update():
    model, objective = small(), ERMPlusPlus(linear_lr=0.3, linear_steps=1)
    groups = [{"params": [model.first]}, {"params": list(model.classifier.parameters()), "lr": 0.5}]
    optimizer = torch.optim.Adam(groups, lr=0.1)
    used, after = [], []
    optimizer.register_step_pre_hook(
        lambda *_: used.append([group["lr"] for group in optimizer.param_groups])
    )
    for step in range(3):
        optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)  # a schedule
        objective.step(model, drawn(step), optimizer)
        after.append([group["lr"] for group in optimizer.param_groups])
    assert used == [[0.3, 0.3], [0.3, 0.3], [0.1 / 3, 0.5]]
    assert after == [[0.1, 0.5], [0.05, 0.5], [0.1 / 3, 0.5]]


def test_the_learning_rate_is_put_back_after_an_error():
    model = small()
    optimizer = adam_of(model, lr=0.1)
    given = [Batch(b.images, b.labels + 7, b.domains) for b in drawn(0)]
    with pytest.raises(IndexError):
        ERMPlusPlus().step(model, given, optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_gradients_of_an_earlier_step_are_forgotten_in_both_phases():
    for steps in (0, 9):
        ends = []
        for gradient in (None, 1e6):
            model, objective = small(), ERMPlusPlus(linear_steps=steps)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for step in range(2):
                for parameter in model.parameters():
                    parameter.grad = None if gradient is None else torch.full_like(parameter, gradient)
                objective.step(model, drawn(step), optimizer)
            ends.append(vector(model))
        assert torch.equal(*ends)


def test_statistics_of_batch_norm_move_in_both_phases():
    class Normal(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.norm = nn.BatchNorm1d(2, dtype=torch.float64)
            self.classifier = nn.Linear(2, 3, dtype=torch.float64)

        def forward(self, images):
            features = self.norm(images.flatten(1))
            return Outputs(features, self.classifier(features))

    model, objective = Normal(), ERMPlusPlus(linear_steps=0)
    optimizer = adam_of(model)
    for step in range(2):
        objective.step(model, drawn(step), optimizer)
        assert model.norm.num_batches_tracked == step + 1
        assert torch.equal(model.norm.weight, torch.ones(2, dtype=torch.float64)) == (step == 0)


@pytest.mark.parametrize("linear_steps", [0, 9])
def test_the_order_of_samples_and_of_domains_does_not_matter(linear_steps):
    ends = []
    for change in (list, lambda given: given[::-1], reordered):
        model, objective = small(), ERMPlusPlus(linear_lr=0.1, linear_steps=linear_steps)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(2):
            objective.step(model, change(drawn(step)), optimizer)
        ends.append(vector(model))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(ends[2], ends[0], rtol=1e-12, atol=1e-14)


# Precision


def test_half_precision():
    ends = []
    for half in (False, True):
        model, objective = Single(), ERMPlusPlus(linear_lr=1e-2, linear_steps=1)
        optimizer = adam_of(model, lr=1e-2)
        for step in range(4):
            given = in_single(drawn(step))
            if step == 3:
                given = [Batch(b.images, torch.ones_like(b.labels), b.domains) for b in given]
            before = copy.deepcopy(model)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                logged = objective.step(model, given, optimizer)
            assert logged["loss"].dtype == torch.float32
            # The copy that autocast makes of the classifier in the pass without gradients must not serve again.
            assert not torch.equal(model.classifier.weight, before.classifier.weight)
        ends.append(vector(model))
        assert ends[-1].isfinite().all()
    assert not torch.equal(*ends)
    assert (ends[0] - ends[1]).norm() < 0.2 * (ends[0] - vector(Single())).norm()


def test_the_scale_of_a_scaler_cancels():
    ends = []
    for scaler in (
        None,
        torch.amp.GradScaler("cpu", enabled=False),
        torch.amp.GradScaler("cpu", init_scale=2.0**10),
    ):
        model, objective = small(), ERMPlusPlus(linear_steps=1)
        optimizer = adam_of(model)
        for step in range(4):
            objective.step(model, drawn(step), optimizer, scaler)
        ends.append(vector(model))
    assert torch.equal(ends[0], ends[1])
    torch.testing.assert_close(ends[2], ends[0], rtol=1e-9, atol=1e-11)


# State and training


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_updates_continue_from_the_state_with_the_same_bits(stop):
    def run(stop=None):
        def fresh():
            model = small()
            return model, ERMPlusPlus(linear_lr=0.1, linear_steps=2), adam_of(model)

        model, objective, optimizer = fresh()
        for step in range(6):
            if step == stop:
                saved = copy.deepcopy([part.state_dict() for part in (model, objective, optimizer)])
                model, objective, optimizer = fresh()
                for part, state in zip((model, objective, optimizer), saved, strict=True):
                    part.load_state_dict(state)
            objective.step(model, drawn(step), optimizer)
        return vector(model)

    assert torch.equal(run(), run(stop))


class Stopped(Exception):
    pass


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_training_that_was_interrupted_ends_with_the_same_bits(tmp_path, after):
    split = digits_task(size=8).split("rotated_75")
    network = NetworkSpec(name="mnist_cnn", classes=10, channels=1, width=8)
    theta = initial_weights(network)
    run = Run(
        steps=5,
        batch_size=4,
        learning_rate=1e-3,
        schedule="cosine",
        dropout=0.1,
        collect="moving_average",
        average_from=4,
    )

    def stop(step, *_):
        if step == after + 1:
            raise Stopped

    def trained(workspace=None, on_progress=None):
        objective = ERMPlusPlus(linear_lr=1e-2, linear_steps=1)
        trainer = Trainer(network, objective, Loop(device="cpu", save_every=0.0), on_progress=on_progress)
        return trainer.fit(theta, split, run, workspace=workspace).weights["moving_average"]

    whole = trained()
    with pytest.raises(Stopped):
        trained(tmp_path, stop)
    continued = trained(tmp_path)
    assert all(torch.equal(value, continued[name]) for name, value in whole.items())
    assert not torch.equal(whole["featurizer.conv4.weight"], theta["featurizer.conv4.weight"])


def test_a_training_within_the_first_phase_moves_the_classifier_alone():
    split = digits_task(size=8).split("rotated_75")
    network = NetworkSpec(name="mnist_cnn", classes=10, channels=1, width=8)
    theta = initial_weights(network)
    run = Run(steps=3, batch_size=4, learning_rate=1e-3, weight_decay=0.1, collect="last")
    with pytest.warns(UserWarning, match="ERMPlusPlus begins at update 501"):
        end = Trainer(network, ERMPlusPlus(), Loop(device="cpu"))(theta, split, run)
    assert {name for name in theta if not torch.equal(theta[name], end[name])} == {
        "classifier.weight",
        "classifier.bias",
    }


# Corners


def test_a_model_without_classifier_is_refused():
    with pytest.raises(
        InputError, match=r"ERMPlusPlus needs a model with a module `classifier` .* TwoLayers"
    ):
        ERMPlusPlus()(TwoLayers(), drawn(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"linear_lr": 0}, "a positive, finite linear_lr, got 0; 5e-5 is usual"),
        ({"linear_lr": math.nan}, "a positive, finite linear_lr"),
        ({"linear_steps": -1}, "linear_steps to be a whole number of updates from 0, got -1"),
        ({"linear_steps": 2.5}, r"linear_steps to be a whole number of updates from 0, got 2\.5"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=f"ERMPlusPlus needs {message}"):
        ERMPlusPlus(**options)


def test_lars_is_not_an_option():
    with pytest.raises(TypeError, match="lars"):
        ERMPlusPlus(lars=True)


def test_the_options_are_named():
    assert ERMPlusPlus().configuration() == {"linear_lr": 5e-5, "linear_steps": 500}
    options = {"linear_lr": 1e-3, "linear_steps": 7}
    assert ERMPlusPlus(**options).configuration() == options


def test_sam_refuses_it():
    with pytest.raises(InputError, match="SAM cannot wrap ERMPlusPlus"):
        SAM(ERMPlusPlus())
