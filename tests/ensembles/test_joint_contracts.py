"""What every criterion of several members keeps: one battery for all, and a new one is a row of the table."""

import copy
import inspect
import io
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from tests.objectives.test_contracts import CHANNELS, LR, SIZES, Stopped, Training, drawn, finite, same
from tests.tiny import tiny_network, tiny_task
from torch import Tensor

from mirepoix import ensembles
from mirepoix.checkpoints import fingerprint
from mirepoix.ensembles import JointObjective
from mirepoix.models import Network, NetworkSpec, initial_weights
from mirepoix.objectives import SAM, Objective
from mirepoix.runs import Run
from mirepoix.training import Loop, Trainer
from mirepoix.types import InputError

CLASSES = (0, 1, 2, 3)
MEMBERS = 2
FEATURES = 16  # twice the width
UPDATES = 3


def mean(predicted: Tensor, members: Tensor) -> bool:
    return torch.equal(predicted, members.mean(0))


def leader(predicted: Tensor, members: Tensor) -> bool:
    return torch.equal(predicted, members[-1])


def gated(predicted: Tensor, members: Tensor) -> bool:
    """Of two members: weights of each sample, the same for all classes, that are positive and sum to one."""
    way = members[0] - members[1]
    weights = ((predicted - members[1]) * way).sum(1, keepdim=True) / way.square().sum(1, keepdim=True)
    mixed = weights * members[0] + (1 - weights) * members[1]
    return bool(((weights > 0) & (weights < 1)).all()) and torch.allclose(predicted, mixed, rtol=1e-9)


@dataclass(frozen=True)
class Row:
    """One criterion, and what it may do that others may not.

    Attributes:
        kind: The class.
        facts: What it must be told of the network: ``features``, ``classes``, ``members``.
        options: Options that bring all its stages into a few updates.
        network: What the members share.
        alone: What it says to a single sample; "" if it trains.
        idle: Its parameters whose gradients are 0 but for their rounding.
        rule: Whether a prediction is what it is to be, from it and the logits of the members.
    """

    kind: type[JointObjective]
    facts: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    network: Mapping[str, Any] = field(default_factory=lambda: {"members": MEMBERS})
    alone: str = ""
    idle: tuple[str, ...] = ()
    rule: Callable[[Tensor, Tensor], bool] = mean

    def spec(self, channels: int = CHANNELS) -> NetworkSpec:
        """A small network of several members."""
        plain = {**tiny_network(len(CLASSES)).to_dict(), "channels": channels}
        return NetworkSpec(**{**plain, **self.network})

    def make(self, **given: Any) -> JointObjective:
        """A new criterion, in single precision, from facts and options."""
        facts = {"features": FEATURES, "classes": len(CLASSES), "members": MEMBERS}
        return self.kind(**{name: facts[name] for name in self.facts}, **{**self.options, **given})


SIZED = ("features", "members")
TOLD = ("features", "classes", "members")
RAMP = {"ramp_steps": 2}
DISCRIMINATOR = {"hidden": (4, 3), "embedding": 2, "discriminator_steps": 2, **RAMP}
TRUNK = {"members": MEMBERS, "split_at": "last_stage"}
INPUTS = {"inputs": MEMBERS}
GATE = {
    "alone": "ONE needs at least 2 samples in the joint batch, for the batch norm of its gate, got 1",
    "idle": ("objective.gate.0.bias",),  # the batch norm after it takes the mean away
}

ROWS: Mapping[str, Row] = {
    "ADP": Row(ensembles.ADP),
    "CEB": Row(ensembles.CEB, TOLD, RAMP),
    "CEBR": Row(ensembles.CEBR, TOLD, DISCRIMINATOR),
    # Fewer rows than the samples of a class, so that the oldest are forgotten.
    "DICE": Row(ensembles.DICE, TOLD, {**DISCRIMINATOR, "queue_size": 2}),
    "DICE on a trunk": Row(ensembles.DICE, TOLD, {**DISCRIMINATOR, "partners": "batch"}, TRUNK),
    "DICE of balanced batches": Row(
        ensembles.DICE, TOLD, {**DISCRIMINATOR, "partners": "balanced", "clip": "hard", "pairs": "mean"}
    ),
    "IB": Row(ensembles.IB, TOLD, RAMP),
    "IBR": Row(ensembles.IBR, TOLD, DISCRIMINATOR),
    "Independent": Row(ensembles.Independent),
    "Independent on a trunk": Row(ensembles.Independent, network=TRUNK),
    "OKDDip": Row(ensembles.OKDDip, SIZED, RAMP),
    # The other member is the only peer and listens to itself, so a third one is needed for matrices to be trained.
    "OKDDip with a leader": Row(
        ensembles.OKDDip, ("features",), {"leader": True, "members": 3, **RAMP}, {"members": 3}, rule=leader
    ),
    "ONE": Row(ensembles.ONE, SIZED, RAMP, **GATE),
    "ONE with its gate": Row(
        ensembles.ONE, SIZED, {"combiner": "gate", "detach_teacher": True}, rule=gated, **GATE
    ),
    "MIMO": Row(ensembles.MIMO, options={"input_repetition": 0.5, "repetition": 2}, network=INPUTS),
    "LinearMixMo": Row(ensembles.LinearMixMo, network=INPUTS),
    "CutMixMo": Row(ensembles.CutMixMo, options={"cut_probability": 1, "total_steps": 4}, network=INPUTS),
    "CutMixMo of pixels": Row(ensembles.CutMixMo, options={"cutmix_probability": 0.5}, network=INPUTS),
    "MixMo": Row(ensembles.MixMo, network=INPUTS),
}

every = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)


class Together(Training):
    """Updates of a tiny network of several members, seeded one by one as those of the trainer."""

    def __init__(self, row: Row, sizes: tuple[int, ...] = SIZES, dtype: torch.dtype = torch.float64):
        self.model: Network = row.spec().build().to(dtype).train()
        self.objective, self.dtype, self.sizes = row.make().to(dtype).train(), dtype, sizes
        every = (*self.model.parameters(), *self.objective.trained_with_network())
        self.optimizer = torch.optim.Adam(every, lr=LR)
        self.logged: list[dict[str, Tensor]] = []

    def update(self, batches=None, scaler=None) -> dict[str, Tensor]:
        if batches is None:
            batches = drawn(len(self.logged), self.sizes, self.dtype, CLASSES)
        return super().update(batches, scaler)


def trained(row: Row, training: Together, before: Mapping[str, Tensor]) -> None:
    now = training.parameters()
    assert set(row.idle) <= now.keys() == before.keys()
    for name in now.keys() - set(row.idle):
        assert not torch.equal(now[name], before[name]), name


# The table --------------------------------------------------------------------------------------------------


def test_the_table_holds_every_public_criterion():
    public = [getattr(ensembles, name) for name in ensembles.__all__]
    kinds = {one for one in public if isinstance(one, type) and issubclass(one, JointObjective)}
    assert {row.kind for row in ROWS.values()} == kinds - {JointObjective}


# Making one -------------------------------------------------------------------------------------------------


@every
def test_making_one_leaves_the_global_generator_alone(row):
    torch.manual_seed(12345)  # no state that an earlier test may have left by the same draws
    before = torch.get_rng_state()
    row.make()
    assert torch.equal(torch.get_rng_state(), before)


@every
def test_two_made_alike_are_alike_and_a_result_can_tell_another_seed(row):
    made = fingerprint(row.make().state_dict())
    torch.rand(1)
    assert fingerprint(row.make().state_dict()) == made
    if "seed" in inspect.signature(row.kind).parameters:
        assert fingerprint(row.make(seed=1).state_dict()) != made


@every
def test_the_configuration_is_plain_and_names_every_option(row):
    made = row.make()
    configuration = dict(made.configuration())
    stored = json.loads(json.dumps(configuration))
    assert stored == configuration
    assert set(inspect.signature(row.kind).parameters) == set(configuration)
    for name, value in row.options.items():
        assert configuration[name] == (list(value) if isinstance(value, tuple) else value)
    again = row.kind(**stored)
    assert dict(again.configuration()) == configuration
    assert fingerprint(again.state_dict()) == fingerprint(made.state_dict())


# Training ---------------------------------------------------------------------------------------------------


@every
def test_every_parameter_has_finite_gradients_and_is_trained(row):
    training = Together(row)
    before, reached = training.parameters(), set()
    for _ in range(UPDATES):
        training.update()
        finite(training)
        for name, parameter in training.model.named_parameters():
            assert parameter.grad is not None, name
            if parameter.grad.any():
                reached.add(name)
    assert reached == {name for name, _ in training.model.named_parameters()}
    trained(row, training, before)


@every
def test_what_is_logged_are_detached_scalars_the_loss_among_them(row):
    for logged in Together(row).updates(2).logged:
        assert "loss" in logged
        for name, value in logged.items():
            assert isinstance(value, Tensor), name
            assert value.shape == (), name
            assert not value.requires_grad, name


@every
def test_the_same_arguments_give_the_same_bits_and_leave_the_batches_alone(row):
    one, other = Together(row), Together(row)
    for update in range(2):
        batches = drawn(update, SIZES, classes=CLASSES)
        same(one.update(batches), other.update())
        for batch, untouched in zip(batches, drawn(update, SIZES, classes=CLASSES), strict=True):
            assert torch.equal(batch.images, untouched.images)
            assert torch.equal(batch.labels, untouched.labels)
    same(one.state(), other.state())


@every
def test_it_can_be_made_sharpness_aware_or_says_why_not(row):
    training = Together(row)
    if row.kind.step is not Objective.step:
        with pytest.raises(InputError, match=f"cannot wrap {row.kind.__name__}: it makes its own step"):
            SAM(training.objective)
        return
    training.objective = SAM(training.objective, rho=0.1)
    finite(training.updates(2))
    bare = Together(row).updates(2).model.state_dict()
    assert any(not torch.equal(value, bare[name]) for name, value in training.model.state_dict().items())


@every
def test_a_network_without_members_is_refused(row):
    plain = tiny_network(len(CLASSES))
    images = torch.zeros(2, 1, 8, 8)
    with pytest.raises(InputError, match=f"^{row.kind.__name__} needs a network of several members"):
        row.make().predict(plain.build(), images)


# Few domains, samples and classes ---------------------------------------------------------------------------


@every
@pytest.mark.parametrize("sizes", [(5,), (4, 4), (3, 1, 5)], ids=["one", "two", "of several sizes"])
def test_any_number_of_domains_trains(row, sizes):
    finite(Together(row, sizes).updates(2))


@every
def test_a_sample_that_is_alone_trains_or_is_refused(row):
    training = Together(row, (1,))
    if row.alone:
        before = training.state()
        with pytest.raises(InputError, match=re.escape(row.alone)):
            training.update()
        same(training.state(), before)
    else:
        finite(training.updates(2))


@every
@pytest.mark.parametrize("here", [(0, 1, 3), (1,)], ids=["missing", "all but one missing"])
def test_a_class_may_be_missing(row, here):
    training = Together(row, (4, 2))
    for update in range(2):
        training.update(drawn(update, training.sizes, classes=here))
    finite(training)


# Half precision ---------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_trains(row, half):
    training = Together(row, dtype=torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, enabled=half == torch.float16)
    before = training.parameters()
    with torch.autocast("cpu", dtype=half):
        for _ in range(UPDATES):
            for name, value in training.update(scaler=scaler).items():
                assert value.dtype == torch.float32, name
    finite(training)
    if scaler.is_enabled():
        assert scaler.get_scale() >= 2.0**8  # no update was skipped
    assert all(value.dtype == torch.float32 for value in training.parameters().values())
    trained(row, training, before)


@every
def test_an_update_whose_gradients_overflow_leaves_the_network_alone(row):
    training = Together(row)
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    training.update(scaler=torch.amp.GradScaler("cpu", init_scale=math.inf))
    for name, value in training.state().items():
        assert value.isfinite().all(), name
    same(training.model.state_dict(), before)
    finite(training.updates(1))
    assert any(not torch.equal(value, before[name]) for name, value in training.model.state_dict().items())


# State ------------------------------------------------------------------------------------------------------


@every
def test_a_stopped_run_goes_on_with_the_same_bits(row):
    parts = ("model", "objective", "optimizer")
    training, file = Together(row).updates(2), io.BytesIO()
    torch.save({part: getattr(training, part).state_dict() for part in parts}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = Together(row)
    for part in parts:
        getattr(resumed, part).load_state_dict(saved[part])
    resumed.logged = [{}] * 2
    training.updates(2), resumed.updates(2)
    same(training.logged[-1], resumed.logged[-1])
    same(training.state(), resumed.state())


@every
def test_a_copy_is_independent_and_trains_as_the_original(row):
    original = Together(row).updates(1)
    state = original.state()
    # Together, so that the optimizer of the copy holds the weights of the copy.
    other = copy.deepcopy(original).updates(2)
    same(original.state(), state)
    same(original.updates(2).state(), other.state())


# Predictions ------------------------------------------------------------------------------------------------


@every
def test_predictions_are_logits_by_the_rule_and_leave_no_trace(row):
    training = Together(row).updates(1)
    training.model.eval(), training.objective.eval()
    state, random = training.state(), torch.get_rng_state()
    for count in (1, 7):
        images = drawn(50, (count,))[0].images
        with torch.no_grad():
            predicted = training.objective.predict(training.model, images)
            again = training.objective.predict(training.model, images)
            members = training.model(images).logits
        assert predicted.logits.shape == (count, len(CLASSES))
        assert predicted.logits.isfinite().all()
        assert torch.equal(predicted.logits, again.logits)
        assert row.rule(predicted.logits, members)
        assert predicted.features.shape[:2] == members.shape[:2]
    assert row.rule is mean or not mean(predicted.logits, members)
    same(training.state(), state)
    assert torch.equal(torch.get_rng_state(), random)


# Through the trainer ----------------------------------------------------------------------------------------


@every
def test_a_training_stopped_after_two_updates_goes_on_with_the_same_bits(row, tmp_path):
    spec = row.spec(channels=1)
    split = tiny_task(images=12, classes=len(CLASSES)).split("domain_1")
    theta = initial_weights(spec)
    run = Run(steps=4, learning_rate=1e-3, batch_size=4, check_every=2, dropout=0.2, classifier_steps=1)
    objective = row.make()
    state, made = fingerprint(objective.state_dict()), []

    def fit(stop_in=None, workspace=None):
        def watch(update, *_):
            made.append(update)
            if update == stop_in:  # what was saved last is the state before this update
                raise Stopped

        trainer = Trainer(spec, objective, loop=Loop(device="cpu", save_every=0.0), on_progress=watch)
        return trainer.fit(theta, split, run, workspace=workspace)

    whole = fit()
    with pytest.raises(Stopped):
        fit(3, tmp_path)
    made.clear()
    resumed = fit(workspace=tmp_path)
    assert made == [3, 4]
    assert fingerprint(objective.state_dict()) == state  # the trainer works on a copy
    assert whole.record["checks"] == resumed.record["checks"]
    same(whole.objective.state_dict(), resumed.objective.state_dict())
    for name in whole.weights:
        same(whole.weights[name], resumed.weights[name])
        assert all(value.isfinite().all() for value in whole.weights[name].values())
