"""What every objective keeps, whatever it minimises: one battery for all, and a new one is a row of the table."""

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
from tests.tiny import tiny_task
from torch import nn

from mirepoix import objectives
from mirepoix.checkpoints import fingerprint
from mirepoix.models import Network, NetworkSpec, initial_weights
from mirepoix.objectives import (
    ADRMX,
    ARM,
    CDANN,
    DANN,
    ERM,
    MTL,
    TRM,
    URM,
    ERMPlusPlus,
    Objective,
    SagNet,
    Transfer,
)
from mirepoix.runs import Run
from mirepoix.training import Loop, Trainer
from mirepoix.types import Batch, InputError

CHANNELS, SIDE, FEATURES, CLASSES = 2, 4, 8, 3
SIZES = (4, 4, 4)
LR = 0.01


@dataclass(frozen=True)
class Row:
    """One objective, and what it may do that others may not.

    Attributes:
        kind: The class.
        facts: What it must be told of the model and the data: ``features``, ``classes``, ``domains``, ``channels``,
            or a ``featurizer`` to copy.
        options: Options that bring all its stages into a few updates.
        extra_channels: How many channels more than the images have the network takes.
        updates: So many updates that every stage and every turn has been.
        neutral: Options with which it minimises the mean risk; none where there are none.
        neutral_domains: The number of source domains with which it then does.
        network_turns: The first three updates that train the network.
        fewest_domains: It needs so many, and says ``too_few_domains`` when there are fewer.
        fewest_samples: It needs so many per domain, and says ``too_few_samples`` when there are fewer.
        alone: What it says to a single sample of a single domain, if that is something else; "" if it trains.
        no_scaler: What it says when it is given a gradient scaler that is switched on.
        predicts: Whether predictions need it.
        arguments: From its configuration to the arguments of its constructor.
    """

    kind: type[Objective]
    facts: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    extra_channels: int = 0
    updates: int = 3
    neutral: Mapping[str, Any] | None = None
    neutral_domains: int = 3
    network_turns: tuple[int, ...] = (0, 1, 2)
    fewest_domains: int = 1
    too_few_domains: str = ""
    fewest_samples: int = 1
    too_few_samples: str = ""
    alone: str | None = None
    no_scaler: str = ""
    predicts: bool = False
    arguments: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict

    def make(self, **given: Any) -> Objective:
        """A new objective, in single precision, from facts and options."""
        facts = {
            "domains": len(SIZES),
            "features": FEATURES,
            "classes": CLASSES,
            "channels": CHANNELS,
            "featurizer": network(torch.float32).featurizer,
        }
        for name in facts.keys() & given.keys():
            facts[name] = given.pop(name)
        return self.kind(**{name: facts[name] for name in self.facts}, **{**self.options, **given})


DISCRIMINATOR = {"mlp_width": 8, "mlp_depth": 3}
ANNEAL = 2  # the update at which a weight jumps, so the third of four

ROWS: Mapping[str, Row] = {
    # No neutral options: the classifier of differences and that of domains train the featurizer too.
    "ADRMX": Row(
        ADRMX,
        ("featurizer", "features", "classes", "domains"),
        DISCRIMINATOR,
        updates=5,
        fewest_domains=2,
        too_few_domains="ADRMX needs at least 2 source domains",
        arguments=lambda configuration: {**configuration, "featurizer": network(torch.float32).featurizer},
    ),
    "ANDMask": Row(objectives.ANDMask, neutral={"tau": 0.0}),
    # No neutral options: the network sees the context.
    "ARM": Row(ARM, ("channels",), extra_channels=1, predicts=True),
    "CAD": Row(objectives.CAD, ("features",), {"is_project": True}, neutral={"lmbda": 0.0}),
    "CDANN": Row(
        CDANN,
        ("features", "domains", "classes"),
        {**DISCRIMINATOR, "grad_penalty": 0.5},
        updates=4,
        neutral={"lambda_": 0.0},
        network_turns=(0, 2, 4),
        fewest_domains=2,
        too_few_domains="CDANN needs at least 2 source domains",
    ),
    "CORAL": Row(
        objectives.CORAL,
        neutral={"mmd_gamma": 0.0},
        fewest_samples=2,
        too_few_samples="CORAL needs at least 2 samples per domain for a covariance, got 1",
        alone="",  # one domain is compared with none
    ),
    "CausIRLCORAL": Row(objectives.CausIRLCORAL, neutral={"mmd_gamma": 0.0}),
    "CausIRLMMD": Row(objectives.CausIRLMMD, neutral={"mmd_gamma": 0.0}),
    "CondCAD": Row(objectives.CondCAD, ("features",), {"is_project": True}, neutral={"lmbda": 0.0}),
    "CutMix": Row(objectives.CutMix, neutral={"probability": 0.0}),
    "DANN": Row(
        DANN,
        ("features", "domains"),
        {**DISCRIMINATOR, "grad_penalty": 0.5},
        updates=4,
        neutral={"lambda_": 0.0},
        network_turns=(0, 2, 4),
        fewest_domains=2,
        too_few_domains="DANN needs at least 2 source domains",
    ),
    # No neutral options: its first update is always one of the classifier alone.
    "ERMPlusPlus": Row(ERMPlusPlus, options={"linear_steps": 1}, updates=4),
    "EQRM": Row(
        objectives.EQRM,
        options={"eqrm_burnin_iters": ANNEAL},
        updates=4,
        neutral={"eqrm_burnin_iters": 100},
        fewest_domains=2,
        too_few_domains="EQRM needs at least 2 source domains for a distribution of risks, got 1",
    ),
    "ERM": Row(ERM, neutral={}),
    # With one domain and the whole of the way.
    "Fish": Row(objectives.Fish, neutral={"meta_lr": 1.0}, neutral_domains=1),
    "Fishr": Row(
        objectives.Fishr,
        ("domains",),
        {"penalty_anneal_iters": ANNEAL},
        updates=4,
        neutral={"lambda_": 0.0},
    ),
    "Fishr of all layers": Row(
        objectives.Fishr,
        ("domains",),
        {"penalty_anneal_iters": ANNEAL, "layers": "all"},
        updates=4,
        neutral={"lambda_": 0.0},
    ),
    "GroupDRO": Row(objectives.GroupDRO, ("domains",), neutral={"groupdro_eta": 0.0}),
    "IBERM": Row(
        objectives.IBERM,
        options={"ib_penalty_anneal_iters": ANNEAL},
        updates=4,
        neutral={"ib_lambda": 0.0, "ib_penalty_anneal_iters": 0},
        fewest_samples=2,
        too_few_samples="IBERM needs at least 2 samples per domain for a variance, got 1",
    ),
    "IBIRM": Row(
        objectives.IBIRM,
        options={"ib_penalty_anneal_iters": ANNEAL, "irm_penalty_anneal_iters": 1},
        updates=4,
        neutral={
            "ib_lambda": 0.0,
            "irm_lambda": 0.0,
            "ib_penalty_anneal_iters": 0,
            "irm_penalty_anneal_iters": 0,
        },
        fewest_samples=2,
        too_few_samples="IBIRM needs at least 2 samples per domain for a variance, got 1",
    ),
    "IGA": Row(
        objectives.IGA, neutral={"penalty": 0.0}, no_scaler="IGA cannot be trained with a gradient scaler"
    ),
    "IRM": Row(
        objectives.IRM,
        options={"irm_penalty_anneal_iters": ANNEAL},
        updates=4,
        neutral={"irm_lambda": 0.0, "irm_penalty_anneal_iters": 0},
        fewest_samples=2,
        too_few_samples="IRM needs at least 2 samples per domain for two halves, got 1",
    ),
    # No neutral options: the risks are summed, and the classifier is told the mean feature.
    "MTL": Row(MTL, ("features", "classes", "domains"), predicts=True),
    # No neutral options: something is always mixed.
    "ManifoldMixup": Row(objectives.ManifoldMixup, updates=4),
    # No neutral options: at beta 0 the meta-test domains have no part in the update.
    "MLDG": Row(
        objectives.MLDG, fewest_domains=2, too_few_domains="MLDG needs at least 2 source domains", updates=4
    ),
    "MMD": Row(objectives.MMD, neutral={"mmd_gamma": 0.0}),
    "Mixup": Row(objectives.Mixup, neutral={}, neutral_domains=1),
    "RDM": Row(
        objectives.RDM,
        options={"rdm_penalty_anneal_iters": ANNEAL},
        updates=4,
        neutral={
            "rdm_lambda": 0.0,
            "variance_weight": 0.0,
            "rdm_penalty_anneal_iters": 0,
            "rdm_lr": LR,
        },
        fewest_samples=2,
        too_few_samples="RDM needs at least 2 samples per domain for a variance, got 1",
    ),
    # No neutral options: even at shares of 0 the largest entry is muted.
    "RSC": Row(objectives.RSC),
    # The perturbation cannot be 0, but so small that no weight moves.
    "SAM": Row(
        objectives.SAM,
        neutral={"rho": 1e-300},
        arguments=lambda configuration: {"objective": ERM(), "rho": configuration["rho"]},
    ),
    # So steep that the mask is 1 wherever the domains have a common sign at all, as three of them must.
    "SANDMask": Row(objectives.SANDMask, neutral={"tau": 0.0, "k": 1e300}),
    "SD": Row(objectives.SD, neutral={"sd_reg": 0.0}),
    # No neutral options: without its third step the styles are still exchanged in the first.
    "SagNet": Row(SagNet, ("features", "classes")),
    # No neutral options: it has none at all.
    "SelfReg": Row(
        objectives.SelfReg, ("features",), alone="SelfReg needs at least 2 samples in the joint batch"
    ),
    "TRM": Row(
        TRM,
        ("features", "classes", "domains"),
        {"iters": 1},
        neutral={"iters": 100},
        fewest_domains=2,
        too_few_domains="TRM needs domains to be a whole number of domains from 2, got 1",
    ),
    "Transfer": Row(Transfer, ("features", "classes"), neutral={"t_lambda": 0.0}),
    "URM": Row(
        URM,
        ("features",),
        neutral={"urm_adv_lambda": 0.0, "urm_generator_output": "none"},
        predicts=True,
    ),
    "URM with gradient descent": Row(
        URM, ("features",), {"urm_discriminator_optimizer": "sgd"}, predicts=True
    ),
    "VREx": Row(
        objectives.VREx,
        options={"vrex_penalty_anneal_iters": ANNEAL},
        updates=4,
        neutral={"vrex_lambda": 0.0, "vrex_penalty_anneal_iters": 0},
    ),
}

every = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)


def some(condition: Callable[[Row], Any]):
    """The rows for which something holds."""
    chosen = {name: row for name, row in ROWS.items() if condition(row)}
    return pytest.mark.parametrize("row", chosen.values(), ids=chosen)


def network(dtype: torch.dtype = torch.float64, channels: int = CHANNELS) -> Network:
    """Smooth and without batch norm: every weight has a gradient, and a second one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        featurizer = nn.Sequential(
            nn.Conv2d(channels, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(16, FEATURES), nn.Tanh()
        )
        return Network(featurizer, FEATURES, CLASSES).to(dtype).train()


def drawn(update: int, sizes=SIZES, dtype: torch.dtype = torch.float64, classes=(0, 1, 2)) -> list[Batch]:
    """Batches of one update; what they are called in the task is not their position among the sources."""
    generator = torch.Generator().manual_seed(100 + update)
    batches = []
    for place, size in enumerate(sizes):
        images = torch.randn(size, CHANNELS, SIDE, SIDE, generator=generator, dtype=torch.float64) + place
        labels = torch.tensor([classes[i % len(classes)] for i in range(size)])
        labels = labels[torch.randperm(size, generator=generator)]
        batches.append(Batch(images.to(dtype), labels, torch.full((size,), 9 - 4 * place)))
    return batches


class Training:
    """Updates of a tiny network, seeded one by one as those of the trainer."""

    def __init__(self, row: Row, domains: int = 3, dtype=torch.float64, kind=torch.optim.Adam, **options):
        self.model, self.dtype = network(dtype, CHANNELS + row.extra_channels), dtype
        self.objective = row.make(domains=domains, **options).to(dtype).train()
        self.optimizer = kind([*self.model.parameters(), *self.objective.trained_with_network()], lr=LR)
        self.sizes = SIZES[:1] * domains
        self.logged: list[dict[str, torch.Tensor]] = []

    def update(self, batches=None, scaler=None) -> dict[str, torch.Tensor]:
        number = len(self.logged)
        batches = drawn(number, self.sizes, self.dtype) if batches is None else batches
        torch.manual_seed(number)
        self.logged.append(self.objective.step(self.model, batches, self.optimizer, scaler))
        return self.logged[-1]

    def updates(self, count: int) -> "Training":
        for _ in range(count):
            self.update()
        return self

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that a run is made of."""
        parts = {"model": self.model, "objective": self.objective}
        state = {f"{part}.{n}": v for part, module in parts.items() for n, v in module.state_dict().items()}
        for place, moments in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{place}.{n}": torch.as_tensor(v) for n, v in moments.items()}
        for place, group in enumerate(self.optimizer.param_groups):
            state[f"optimizer.lr.{place}"] = torch.tensor(group["lr"])
        return {name: torch.as_tensor(value).clone() for name, value in state.items()}

    def parameters(self) -> dict[str, torch.Tensor]:
        parts = {"model": self.model, "objective": self.objective}
        named = {f"{part}.{n}": v for part, module in parts.items() for n, v in module.named_parameters()}
        return {name: value.detach().clone() for name, value in named.items() if value.requires_grad}


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.dtype == other[name].dtype, name
        assert torch.equal(value, other[name]), name


def finite(training: Training) -> None:
    for name, value in training.state().items():
        assert value.isfinite().all(), name
    for parameter in (*training.model.parameters(), *training.objective.parameters()):
        assert parameter.grad is None or parameter.grad.isfinite().all()
    for logged in training.logged:
        for name, value in logged.items():
            assert value.isfinite(), name


# The table --------------------------------------------------------------------------------------------------


def test_the_table_holds_every_public_objective():
    public = [getattr(objectives, name) for name in objectives.__all__]
    kinds = {one for one in public if isinstance(one, type) and issubclass(one, Objective)} - {Objective}
    assert {row.kind for row in ROWS.values()} >= kinds


# Making one -------------------------------------------------------------------------------------------------


@every
def test_making_one_leaves_the_global_generator_alone(row):
    torch.manual_seed(12345)  # not a state that a faulty seeding may leave
    before = torch.get_rng_state()
    row.make()
    assert torch.equal(torch.get_rng_state(), before)


@every
def test_two_made_alike_are_alike_and_a_result_can_tell_another_seed(row):
    assert fingerprint(row.make().state_dict()) == fingerprint(row.make().state_dict())
    if "seed" in inspect.signature(row.kind).parameters and list(row.make().parameters()):
        assert fingerprint(row.make(seed=1).state_dict()) != fingerprint(row.make().state_dict())


@every
def test_the_configuration_is_plain_and_names_every_option(row):
    made = row.make()
    configuration = dict(made.configuration())
    assert json.loads(json.dumps(configuration)) == configuration
    assert set(inspect.signature(row.kind).parameters) == set(configuration)
    for name, value in row.options.items():
        assert configuration[name] == value
    again = row.kind(**row.arguments(configuration))
    assert dict(again.configuration()) == configuration
    assert fingerprint(again.state_dict()) == fingerprint(made.state_dict())


# Training ---------------------------------------------------------------------------------------------------


@every
def test_every_parameter_is_trained_with_finite_gradients(row):
    training = Training(row)
    before = training.parameters()
    for _ in range(row.updates):
        training.update()
        finite(training)
    for name, value in training.parameters().items():
        assert not torch.equal(value, before[name]), name


@every
def test_what_is_logged_are_detached_scalars_the_loss_among_them(row):
    for logged in Training(row).updates(row.updates).logged:
        assert "loss" in logged
        for name, value in logged.items():
            assert isinstance(value, torch.Tensor), name
            assert value.shape == (), name
            assert not value.requires_grad, name


@every
def test_the_same_arguments_give_the_same_bits_and_leave_the_batches_alone(row):
    one, other = Training(row), Training(row)
    for update in range(row.updates):
        batches = drawn(update)
        same(one.update(batches), other.update())
        for batch, untouched in zip(batches, drawn(update), strict=True):
            assert torch.equal(batch.images, untouched.images)
            assert torch.equal(batch.labels, untouched.labels)
            assert batch.images.grad is None
    same(one.state(), other.state())


@some(lambda row: row.neutral is not None)
def test_with_a_penalty_of_zero_it_is_erm(row):
    one = Training(row, row.neutral_domains, kind=torch.optim.SGD, **row.neutral)
    one.updates(row.network_turns[-1] + 1)
    erm = Training(ROWS["ERM"], row.neutral_domains, kind=torch.optim.SGD)
    for update in row.network_turns:
        erm.update(drawn(update, one.sizes))
    weights, expected = one.model.state_dict(), erm.model.state_dict()
    for name in expected:
        assert (weights[name] - expected[name]).abs().max() < 1e-12, name


@some(lambda row: row.kind is not ERM and not row.extra_channels)
def test_as_it_is_it_is_not_erm(row):
    one, erm = Training(row).updates(row.updates), Training(ROWS["ERM"]).updates(row.updates)
    assert any(
        not torch.allclose(value, erm.model.state_dict()[name], rtol=1e-6, atol=1e-9)
        for name, value in one.model.state_dict().items()
    )


@every
def test_a_frozen_featurizer_stays_and_the_classifier_is_trained(row):
    training = Training(row)
    training.model.featurizer.requires_grad_(False)
    trained = [p for p in training.model.parameters() if p.requires_grad]
    training.optimizer = torch.optim.Adam([*trained, *training.objective.trained_with_network()], lr=LR)
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    training.updates(row.updates)
    finite(training)
    for name, value in training.model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("featurizer."), name


@every
def test_it_can_be_made_sharpness_aware_or_says_why_not(row):
    training = Training(row)
    if row.kind.step is not Objective.step:
        with pytest.raises(InputError, match=f"cannot wrap {row.kind.__name__}: it makes its own step"):
            objectives.SAM(training.objective)
        return
    training.objective = objectives.SAM(training.objective, rho=0.1)
    finite(training.updates(row.updates))
    bare = Training(row).updates(row.updates).model.state_dict()
    assert any(not torch.equal(value, bare[name]) for name, value in training.model.state_dict().items())


# Few domains, samples and classes ---------------------------------------------------------------------------


@every
@pytest.mark.parametrize("domains", [1, 2, 3])
def test_any_number_of_domains_trains_or_is_refused(row, domains):
    if domains < row.fewest_domains:
        with pytest.raises(InputError, match=re.escape(row.too_few_domains)):
            Training(row, domains).updates(row.updates)
    else:
        finite(Training(row, domains).updates(row.updates))


@every
@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 4, 2)])
def test_single_samples_train_or_are_refused(row, sizes):
    training = Training(row)
    training.sizes = sizes
    if row.fewest_samples > 1:
        with pytest.raises(InputError, match=re.escape(row.too_few_samples)):
            training.updates(row.updates)
    else:
        finite(training.updates(row.updates))


@every
def test_a_sample_that_is_alone_trains_or_is_refused(row):
    def alone() -> Training:
        training = Training(row, 1)
        training.sizes = (1,)
        return training.updates(row.updates)

    refusal = row.alone if row.alone is not None else row.too_few_domains or row.too_few_samples
    if refusal:
        with pytest.raises(InputError, match=re.escape(refusal)):
            alone()
    else:
        finite(alone())


@every
def test_domains_may_have_batches_of_other_sizes(row):
    training = Training(row)
    training.sizes = (3, 5, 4)
    finite(training.updates(row.updates))


@every
@pytest.mark.parametrize("missing", ["in a domain", "everywhere", "all but one"])
def test_a_class_may_be_missing(row, missing):
    training = Training(row)
    here = {"in a domain": (0, 1, 2), "everywhere": (0, 1), "all but one": (1,)}[missing]
    for update in range(row.updates):
        batches = drawn(update, classes=here)
        if missing == "in a domain":
            batches[1] = drawn(update, classes=(0, 2))[1]
        training.update(batches)
    finite(training)


@every
def test_images_that_are_all_equal_have_finite_gradients(row):
    training = Training(row)
    for update in range(row.updates):
        ones = [Batch(torch.ones_like(b.images), b.labels, b.domains) for b in drawn(update)]
        training.update(ones)
    finite(training)


@every
def test_a_classifier_of_zeros_has_finite_gradients(row):
    training = Training(row)
    for parameter in training.model.classifier.parameters():
        nn.init.zeros_(parameter)
    finite(training.updates(row.updates))


# Half precision ---------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_trains(row, half):
    training = Training(row, dtype=torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, enabled=half == torch.float16)
    before = training.parameters()
    with torch.autocast("cpu", dtype=half):
        if row.no_scaler and scaler.is_enabled():
            with pytest.raises(InputError, match=re.escape(row.no_scaler)):
                training.update(scaler=scaler)
            return
        for _ in range(row.updates):
            assert training.update(scaler=scaler)["loss"].dtype == torch.float32
    finite(training)
    if scaler.is_enabled():
        assert scaler.get_scale() >= 2.0**8  # no update was skipped
    for name, value in training.parameters().items():
        assert value.dtype == torch.float32
        assert not torch.equal(value, before[name]), name


@some(lambda row: not row.no_scaler)
def test_the_scale_of_a_scaler_cancels(row):
    bare, scaled = Training(row, kind=torch.optim.SGD), Training(row, kind=torch.optim.SGD)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for _ in range(row.updates):
        bare.update()
        scaled.update(scaler=scaler)
    for name, value in bare.state().items():
        torch.testing.assert_close(scaled.state()[name], value, rtol=1e-9, atol=1e-12)


@some(lambda row: not row.no_scaler)
def test_an_update_whose_gradients_overflow_leaves_the_network_alone(row):
    training = Training(row)
    too_much = torch.amp.GradScaler("cpu", init_scale=math.inf)
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    for _ in range(row.updates):
        training.update(scaler=too_much)
    for name, value in training.state().items():
        assert value.isfinite().all(), name
    same(training.model.state_dict(), before)
    training.updates(row.updates)
    finite(training)
    assert any(not torch.equal(value, before[name]) for name, value in training.model.state_dict().items())


@every
def test_a_scaler_that_is_off_changes_no_bit(row):
    bare, off = Training(row), Training(row)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for _ in range(row.updates):
        bare.update()
        off.update(scaler=scaler)
    same(bare.state(), off.state())


# Devices ----------------------------------------------------------------------------------------------------


@every
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_an_accelerator_trains_as_the_processor(row):
    here, there = Training(row, kind=torch.optim.SGD), Training(row, kind=torch.optim.SGD)
    there.model.cuda(), there.objective.cuda()
    for update in range(row.updates):
        here.update()
        there.update([Batch(b.images.cuda(), b.labels.cuda(), b.domains.cuda()) for b in drawn(update)])
    for name, value in here.state().items():
        torch.testing.assert_close(there.state()[name].cpu(), value, rtol=1e-6, atol=1e-9)


# State ------------------------------------------------------------------------------------------------------


@every
def test_a_stopped_run_goes_on_with_the_same_bits(row):
    whole = Training(row).updates(row.updates + 1)
    for made in range(1, row.updates + 1):
        stopped = Training(row).updates(made)
        file = io.BytesIO()
        parts = ("model", "objective", "optimizer")
        torch.save({part: getattr(stopped, part).state_dict() for part in parts}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        resumed = Training(row)
        for part in parts:
            getattr(resumed, part).load_state_dict(saved[part])
        resumed.logged = [{}] * made
        resumed.updates(row.updates + 1 - made)
        same(whole.logged[-1], resumed.logged[-1])
        same(whole.state(), resumed.state())


@every
def test_a_copy_is_independent_and_trains_as_the_original(row):
    original = Training(row).updates(1)
    state = original.state()
    # Together, so that the optimizer of the copy holds the weights of the copy.
    other = copy.deepcopy(original)
    other.updates(row.updates)
    same(original.state(), state)
    same(original.updates(row.updates).state(), other.state())


# Predictions ------------------------------------------------------------------------------------------------


@every
def test_predictions_are_logits_of_any_number_of_images_and_leave_no_trace(row):
    training = Training(row).updates(row.updates)
    training.model.eval(), training.objective.eval()
    state, random = training.state(), torch.get_rng_state()
    for count in (1, 7):
        images = drawn(50, (count,))[0].images
        with torch.no_grad():
            predicted = training.objective.predict(training.model, images)
            again = training.objective.predict(training.model, images)
            bare = None if row.predicts else training.model(images)
        assert predicted.logits.shape == (count, CLASSES)
        assert predicted.logits.isfinite().all()
        assert torch.equal(predicted.logits, again.logits)
        if bare is not None:
            assert torch.equal(predicted.logits, bare.logits)
            assert torch.equal(predicted.features, bare.features)
    same(training.state(), state)
    assert torch.equal(torch.get_rng_state(), random)


# Through the trainer ----------------------------------------------------------------------------------------


class Stopped(Exception):
    pass


@every
def test_a_training_stopped_after_two_updates_goes_on_with_the_same_bits(row, tmp_path):
    spec = NetworkSpec(name="mnist_cnn", classes=2, channels=1 + row.extra_channels, width=8)
    split = tiny_task(domains=4, images=12).split("domain_1")
    theta = initial_weights(spec)
    run = Run(steps=4, learning_rate=1e-3, batch_size=4, check_every=2, dropout=0.2, classifier_steps=1)
    network = spec.build()
    objective = row.make(features=network.feature_size, classes=2, channels=1, featurizer=network.featurizer)
    state = fingerprint(objective.state_dict())

    made = []

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
    for name in whole.weights:
        same(whole.weights[name], resumed.weights[name])
        assert all(math.isfinite(value.double().sum()) for value in whole.weights[name].values())
