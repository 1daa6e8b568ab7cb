"""What every criterion of a later member keeps: one battery for all, and a new one is a row of the table."""

import copy
import inspect
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from tests.objectives.test_contracts import CHANNELS, LR, SIZES, Stopped, Training, drawn, finite, same
from tests.tiny import tiny_network, tiny_task
from torch import Tensor

from mirepoix import snapshots
from mirepoix.checkpoints import fingerprint
from mirepoix.models import Network, NetworkSpec, initial_weights
from mirepoix.objectives import ERM, SAM
from mirepoix.runs import Run
from mirepoix.snapshots import LaterMember
from mirepoix.store import Store, cached, key_of
from mirepoix.training import Loop, Trainer
from mirepoix.types import Batch, InputError

CLASSES = (0, 1, 2, 3)
UPDATES = 3
TOLD = {"network", "members", "fisher", "relative_to"}
"""What a criterion is made with that is no plain value."""


def spec_of(channels: int = CHANNELS) -> NetworkSpec:
    return NetworkSpec(**{**tiny_network(len(CLASSES)).to_dict(), "channels": channels})


def weights(seed: int, channels: int = CHANNELS) -> dict[str, Tensor]:
    return initial_weights(spec_of(channels), seed=seed)


@dataclass(frozen=True)
class Row:
    """One criterion.

    Attributes:
        kind: The class.
        options: Its options, so that the term weighs something.
        holds: How many members it holds; of those given, the first.
        part: What it logs beside the risk.
        draws: Whether a step depends on a draw.
        needs_start: Give it the start, too.
        fewest: It needs so many samples, and says ``alone`` when there are fewer.
        alone: What it says.
        elsewhere: The risk that it logs is not that of the network, but of weights between it and the members.
    """

    kind: type[LaterMember]
    options: Mapping[str, Any] = field(default_factory=dict)
    holds: int = 1
    part: str = ""
    draws: bool = False
    needs_start: bool = False
    fewest: int = 1
    alone: str = ""
    elsewhere: bool = False

    def make(self, channels: int = CHANNELS, first: int = 1, **given: Any) -> LaterMember:
        """A new criterion, in single precision."""
        more: dict[str, Any] = {}
        if "fisher" in inspect.signature(self.kind).parameters:
            shapes = dict(spec_of(channels).build().named_parameters())
            random = torch.Generator().manual_seed(0)
            more["fisher"] = {name: torch.rand(p.shape, generator=random) for name, p in shapes.items()}
        if self.needs_start:
            more["relative_to"] = weights(9, channels)
        members = given.pop("members", None) or [weights(first + place, channels) for place in range(3)]
        return self.kind(spec_of(channels), members, **{**self.options, **more, **given})


RTD = {"fewest": 3, "alone": "RTDPenalty needs at least 3 samples in the joint batch, got 1"}

ROWS: Mapping[str, Row] = {
    "EWC": Row(snapshots.EWC, {"alpha": 0.1}, part="fisher_distance"),
    "L2SP": Row(snapshots.L2SP, {"alpha": 0.1}, part="squared_distance"),
    "MSEPenalty": Row(snapshots.MSEPenalty, part="mse"),
    "MSEPenalty of layers": Row(
        snapshots.MSEPenalty, {"layers": {"conv2": 1.0, "norm3": 0.5, "features": 2.0}}, part="mse"
    ),
    "PredictionRepulsion": Row(snapshots.PredictionRepulsion, holds=3, part="repelled", draws=True),
    "PredictionRepulsion of all": Row(
        snapshots.PredictionRepulsion,
        {"samples": "all", "target": "soft", "reduction": "batch", "cap": 3.0, "alpha": 0.3},
        holds=3,
        part="repelled",
        draws=True,
    ),
    "RTDPenalty": Row(snapshots.RTDPenalty, {"alpha": 1.0}, part="rtd", **RTD),
    "RTDPenalty of layers": Row(
        snapshots.RTDPenalty,
        {"alpha": 0.3, "layers": {"norm2": 1.0, "features": 0.5}, "gradient": "transfer"},
        part="rtd",
        **RTD,
    ),
    "SimplexVolume": Row(
        snapshots.SimplexVolume,
        {"alpha": 0.1, "points": 2},
        holds=3,
        part="volume",
        draws=True,
        elsewhere=True,
    ),
    "SimplexVolume as released": Row(
        snapshots.SimplexVolume,
        {"alpha": 1e-3, "points": 1, "root": False},
        holds=3,
        part="volume",
        draws=True,
        elsewhere=True,
    ),
    "WeightOrthogonalisation": Row(
        snapshots.WeightOrthogonalisation, {"alpha": 3.16}, holds=3, part="cos2", draws=True
    ),
    "WeightOrthogonalisation of displacements": Row(
        snapshots.WeightOrthogonalisation,
        {"alpha": -1.0, "parameters": "convolutions"},
        holds=3,
        part="cos2",
        draws=True,
        needs_start=True,
    ),
    "WeightOrthogonalisation as released": Row(
        snapshots.WeightOrthogonalisation, {"alpha": 31.6, "detach": True}, holds=3, part="cos2", draws=True
    ),
}

every = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)


class Later(Training):
    """Updates of a tiny network, seeded one by one as those of the trainer."""

    def __init__(self, row: Row, sizes: tuple[int, ...] = SIZES, dtype: torch.dtype = torch.float64):
        self.model: Network = spec_of().build().to(dtype).train()
        self.objective, self.dtype, self.sizes = row.make().to(dtype).train(), dtype, sizes
        every = (*self.model.parameters(), *self.objective.trained_with_network())
        self.optimizer = torch.optim.Adam(every, lr=LR)
        self.logged: list[dict[str, Tensor]] = []

    def update(self, batches=None, scaler=None) -> dict[str, Tensor]:
        if batches is None:
            batches = drawn(len(self.logged), self.sizes, self.dtype, CLASSES)
        return super().update(batches, scaler)


# The table --------------------------------------------------------------------------------------------------


def test_the_table_holds_every_public_criterion():
    public = [getattr(snapshots, name) for name in snapshots.__all__]
    kinds = {one for one in public if isinstance(one, type) and issubclass(one, LaterMember)}
    assert {row.kind for row in ROWS.values()} == kinds - {LaterMember}


# Making one -------------------------------------------------------------------------------------------------


@every
def test_making_one_leaves_the_global_generator_alone(row):
    torch.manual_seed(12345)  # no state that an earlier test may have left by the same draws
    before = torch.get_rng_state()
    row.make()
    assert torch.equal(torch.get_rng_state(), before)


@every
def test_two_made_alike_are_alike_and_a_result_can_tell_other_members(row):
    made = fingerprint(row.make().state_dict())
    torch.rand(1)
    assert fingerprint(row.make().state_dict()) == made
    assert fingerprint(row.make(first=2).state_dict()) != made
    keys = {key_of(Trainer(spec_of(), row.make(first=first)).made_of()) for first in (1, 1, 2)}
    assert len(keys) == 2


@every
def test_the_configuration_is_plain_and_names_every_option(row):
    made = row.make()
    configuration = dict(made.configuration())
    stored = json.loads(json.dumps(configuration))
    assert stored == configuration
    taken = set(inspect.signature(row.kind).parameters)
    assert taken - TOLD <= set(configuration)
    assert configuration["network"] == spec_of().to_dict()
    for name, value in row.options.items():
        assert configuration[name] == value
    options = {name: value for name, value in stored.items() if name in taken - TOLD}
    again = row.make(**options)
    assert dict(again.configuration()) == configuration
    assert fingerprint(again.state_dict()) == fingerprint(made.state_dict())


@every
def test_it_takes_only_the_members_that_it_looks_at(row):
    made = row.make()
    assert len(made.members) == row.holds
    for place in range(row.holds):
        same(made.member(place).state_dict(), weights(1 + place))


# Training ---------------------------------------------------------------------------------------------------


@every
def test_every_parameter_of_the_network_is_trained_with_finite_gradients(row):
    training = Later(row)
    before = training.parameters()
    assert all(name.startswith("model.") for name in before)
    for _ in range(UPDATES):
        training.update()
        finite(training)
    for name, value in training.parameters().items():
        assert not torch.equal(value, before[name]), name


@every
def test_members_never_change_and_stay_in_evaluation_mode(row):
    training = Later(row)
    before = {name: value.clone() for name, value in training.objective.state_dict().items()}
    training.updates(UPDATES)
    same(training.objective.state_dict(), before)
    assert training.objective.training
    assert not any(m.training for part in training.objective.children() for m in part.modules())
    assert not any(parameter.requires_grad for parameter in training.objective.parameters())
    assert all(parameter.grad is None for parameter in training.objective.parameters())
    assert training.objective.trained_with_network() == []


@every
def test_what_is_logged_are_detached_scalars_the_loss_among_them(row):
    for logged in Later(row).updates(2).logged:
        assert {"loss", "nll", row.part} <= set(logged)
        for name, value in logged.items():
            assert isinstance(value, Tensor), name
            assert value.shape == (), name
            assert not value.requires_grad, name


@every
def test_the_term_weighs_something_and_its_gradient_too_but_for_the_released_one(row):
    with_term, plain = Later(row), Later(row)
    plain.objective = ERM()
    with_term.update(), plain.update()
    assert with_term.logged[0]["loss"] != plain.logged[0]["loss"]
    assert torch.equal(with_term.logged[0]["nll"], plain.logged[0]["loss"]) != row.elsewhere
    moved = [
        not torch.equal(value, plain.model.state_dict()[name])
        for name, value in with_term.model.state_dict().items()
    ]
    assert any(moved) != row.options.get("detach", False)


@every
def test_the_same_arguments_give_the_same_bits_and_leave_the_batches_alone(row):
    one, other = Later(row), Later(row)
    for update in range(2):
        batches = drawn(update, SIZES, classes=CLASSES)
        same(one.update(batches), other.update())
        for batch, untouched in zip(batches, drawn(update, SIZES, classes=CLASSES), strict=True):
            assert torch.equal(batch.images, untouched.images)
            assert torch.equal(batch.labels, untouched.labels)
    same(one.state(), other.state())


@every
def test_only_those_that_draw_depend_on_the_global_generator(row):
    objective, model, found = row.make().double(), spec_of().build().double(), set()
    with torch.random.fork_rng(devices=[]):
        for seed in range(12):
            torch.manual_seed(seed)
            found.add(objective(model, drawn(0, SIZES, classes=CLASSES)).item())
    assert (len(found) > 1) == row.draws


@every
def test_it_can_be_made_sharpness_aware(row):
    training = Later(row)
    training.objective = SAM(training.objective, rho=0.1).train()
    before = fingerprint(training.objective.state_dict())
    finite(training.updates(2))
    assert fingerprint(training.objective.state_dict()) == before
    bare = Later(row).updates(2).model.state_dict()
    assert any(not torch.equal(value, bare[name]) for name, value in training.model.state_dict().items())


# Few domains, samples and classes ---------------------------------------------------------------------------


@every
@pytest.mark.parametrize("sizes", [(5,), (4, 4), (3, 1, 5)], ids=["one", "two", "of several sizes"])
def test_any_number_of_domains_trains(row, sizes):
    finite(Later(row, sizes).updates(2))


@every
def test_a_sample_that_is_alone_trains_or_is_refused(row):
    training = Later(row, (1,))
    if row.fewest == 1:
        finite(training.updates(2))
        return
    before = training.state()
    with pytest.raises(InputError, match=row.alone):
        training.update()
    same(training.state(), before)
    finite(Later(row, (row.fewest,)).updates(2))


@every
@pytest.mark.parametrize("here", [(0, 1, 3), (1,)], ids=["missing", "all but one missing"])
def test_a_class_may_be_missing(row, here):
    training = Later(row, (4, 2))
    for update in range(2):
        training.update(drawn(update, training.sizes, classes=here))
    finite(training)


@every
def test_images_that_are_all_equal_have_finite_gradients(row):
    training = Later(row)
    for update in range(2):
        batches = drawn(update, SIZES, classes=CLASSES)
        training.update([Batch(torch.ones_like(b.images), b.labels, b.domains) for b in batches])
    finite(training)


@every
def test_a_network_that_is_a_member_itself_has_finite_gradients(row):
    training = Later(row)
    training.model.load_state_dict(weights(1))
    finite(training.updates(2))


# Half precision ---------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_trains(row, half):
    training = Later(row, dtype=torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, enabled=half == torch.float16)
    before = training.parameters()
    with torch.autocast("cpu", dtype=half):
        for _ in range(UPDATES):
            for name, value in training.update(scaler=scaler).items():
                assert value.dtype == torch.float32, name
    finite(training)
    if scaler.is_enabled():
        assert scaler.get_scale() >= 2.0**8  # no update was skipped
    for name, value in training.parameters().items():
        assert value.dtype == torch.float32
        assert not torch.equal(value, before[name]), name


@every
def test_an_update_whose_gradients_overflow_leaves_the_network_alone(row):
    training = Later(row)
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    training.update(scaler=torch.amp.GradScaler("cpu", init_scale=math.inf))
    for name, value in training.state().items():
        assert value.isfinite().all(), name
    same(training.model.state_dict(), before)
    finite(training.updates(1))
    assert any(not torch.equal(value, before[name]) for name, value in training.model.state_dict().items())


# Devices ----------------------------------------------------------------------------------------------------


@every
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_an_accelerator_trains_as_the_processor(row):
    here, there = Later(row), Later(row)
    there.model.cuda(), there.objective.cuda()
    for update in range(UPDATES):
        here.update()
        batches = drawn(update, SIZES, classes=CLASSES)
        there.update([Batch(b.images.cuda(), b.labels.cuda(), b.domains.cuda()) for b in batches])
    for name, value in here.model.state_dict().items():
        torch.testing.assert_close(there.model.state_dict()[name].cpu(), value, rtol=1e-6, atol=1e-9)


# State ------------------------------------------------------------------------------------------------------


@every
def test_a_stopped_run_goes_on_with_the_same_bits(row):
    parts = ("model", "objective", "optimizer")
    training, file = Later(row).updates(2), io.BytesIO()
    torch.save({part: getattr(training, part).state_dict() for part in parts}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = Later(row)
    for part in parts:
        getattr(resumed, part).load_state_dict(saved[part])
    resumed.logged = [{}] * 2
    training.updates(2), resumed.updates(2)
    same(training.logged[-1], resumed.logged[-1])
    same(training.state(), resumed.state())


@every
def test_a_copy_is_independent_and_trains_as_the_original(row):
    original = Later(row).updates(1)
    state = original.state()
    # Together, so that the optimizer of the copy holds the weights of the copy.
    other = copy.deepcopy(original).updates(2)
    same(original.state(), state)
    same(original.updates(2).state(), other.state())
    here = {parameter.data_ptr() for parameter in original.objective.parameters()}
    assert here.isdisjoint(parameter.data_ptr() for parameter in other.objective.parameters())


# Predictions ------------------------------------------------------------------------------------------------


@every
def test_predictions_are_those_of_the_network(row):
    training = Later(row).updates(1)
    training.model.eval(), training.objective.eval()
    state, random = training.state(), torch.get_rng_state()
    images = drawn(50, (7,))[0].images
    with torch.no_grad():
        predicted, bare = training.objective.predict(training.model, images), training.model(images)
    assert torch.equal(predicted.logits, bare.logits)
    assert torch.equal(predicted.features, bare.features)
    same(training.state(), state)
    assert torch.equal(torch.get_rng_state(), random)


# Through the trainer ----------------------------------------------------------------------------------------

SPLIT = tiny_task(images=12, classes=len(CLASSES)).split("domain_1")
RUN = Run(steps=4, learning_rate=1e-3, batch_size=4, check_every=2, dropout=0.2, classifier_steps=1)


@every
def test_a_training_stopped_after_two_updates_goes_on_with_the_same_bits(row, tmp_path):
    spec, objective = spec_of(1), row.make(1)
    theta = initial_weights(spec)
    state, made = fingerprint(objective.state_dict()), []

    def fit(stop_in=None, workspace=None):
        def watch(update, *_):
            made.append(update)
            if update == stop_in:  # what was saved last is the state before this update
                raise Stopped

        trainer = Trainer(spec, objective, loop=Loop(device="cpu", save_every=0.0), on_progress=watch)
        return trainer.fit(theta, SPLIT, RUN, workspace=workspace)

    whole = fit()
    with pytest.raises(Stopped):
        fit(3, tmp_path)
    made.clear()
    resumed = fit(workspace=tmp_path)
    assert made == [3, 4]
    assert fingerprint(objective.state_dict()) == state
    assert fingerprint(whole.objective.state_dict()) == state
    assert whole.record["checks"] == resumed.record["checks"]
    assert {"nll", row.part} <= set(whole.record["checks"][-1]["train_terms"])
    for name in whole.weights:
        same(whole.weights[name], resumed.weights[name])
        assert all(value.isfinite().all() for value in whole.weights[name].values())


@every
def test_member_one_is_untouched_by_the_training_that_begins_there(row):
    first = weights(0, 1)
    before = {name: value.clone() for name, value in first.items()}
    trainer = Trainer(spec_of(1), row.make(1, members=[first]), loop=Loop(device="cpu"))
    trained = trainer.fit(first, SPLIT, RUN).weights["last"]
    assert any(not torch.equal(value, first[name]) for name, value in trained.items())
    same(first, before)


@every
def test_results_are_kept_by_the_members_they_were_made_with(row, tmp_path):
    spec, store = spec_of(1), Store(tmp_path)
    theta = initial_weights(spec)
    run = Run(steps=1, batch_size=4, check_every=1)
    for first in (1, 1, 2):
        cached(Trainer(spec, row.make(1, first=first), loop=Loop(device="cpu")), store)(theta, SPLIT, run)
    assert len(store.made) == 2
