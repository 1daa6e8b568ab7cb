import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from tests.objectives.test_erm import batches
from tests.reference import fishr as reference
from torch import nn

from mirepoix.data import digits_task
from mirepoix.models import NetworkSpec, initial_weights
from mirepoix.objectives import ERM
from mirepoix.objectives._fishr import Fishr
from mirepoix.runs import Run
from mirepoix.training import Loop, Trainer
from mirepoix.types import Batch, InputError, Outputs

CLASSIFIER = ("classifier.weight", "classifier.bias")
FEATURIZER = ("featurizer.0.weight", "featurizer.0.bias")


class Small(nn.Module):
    """Two linear layers, and a scale between them if it shall not be linear layers alone."""

    def __init__(self, classes=3, scale=False, bias=True, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.featurizer = nn.Sequential(nn.Linear(2, 4), nn.Tanh())
            self.classifier = nn.Linear(4, classes, bias=bias)
            if scale:
                self.scale = nn.Parameter(torch.rand(4) + 0.5)
        self.double()

    def forward(self, images):
        features = self.featurizer(images.flatten(1))
        features = features * self.scale if hasattr(self, "scale") else features
        return Outputs(features, self.classifier(features))


def close(one, other, tolerance=1e-10):
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=0, atol=tolerance)


CASES = {
    "as released": ({"lambda_": 7.0, "ema": 0.9}, CLASSIFIER),
    "without memory": ({"lambda_": 70.0, "ema": 0.0}, CLASSIFIER),
    "not centred": ({"lambda_": 7.0, "ema": 0.5, "centred": False}, CLASSIFIER),
    "as in the thesis": (
        {"lambda_": 7.0, "ema": 0.0, "unbiased": True, "reduction": "norm", "initial_lambda": 0.5},
        CLASSIFIER,
    ),
    "two stages": (
        {
            "lambda_": 50.0,
            "ema": 0,
            "reduction": "sum",
            "initial_lambda": 1.0,
            "l2": 0.01,
            "divide": True,
            "reset": False,
        },
        CLASSIFIER,
    ),
    "all": ({"lambda_": 7.0, "ema": 0.9, "layers": "all"}, CLASSIFIER + FEATURIZER),
    "all, not centred": (
        {"lambda_": 7.0, "ema": 0.9, "layers": "all", "centred": False, "reduction": "sum"},
        CLASSIFIER + FEATURIZER,
    ),
    "featurizer": ({"lambda_": 7.0, "ema": 0.3, "layers": "featurizer", "unbiased": True}, FEATURIZER),
    "some": (
        {"lambda_": 7.0, "ema": 0.3, "layers": ("featurizer.0.bias", "classifier")},
        (*CLASSIFIER, FEATURIZER[1]),
    ),
}


@pytest.mark.parametrize("scale", [False, True], ids=["linear layers", "any network"])
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_updates_are_those_of_the_formula(case, classes, scale):
    options, names = CASES[case]
    one, two, given = Small(classes, scale), Small(classes, scale), batches((4, 6, 3), max(classes, 2))
    if options.get("layers") == "all" and scale:
        names = (*names, "scale")
    slow = {name: value for name, value in options.items() if name != "layers"}
    slow = reference.Reference(names, anneal=2, **slow)
    fast = Fishr(domains=3, penalty_anneal_iters=2, **options)
    optimizer = torch.optim.Adam(one.parameters(), 1e-2)
    for _ in range(4):
        logged, expected = fast.step(one, given, optimizer), slow.update(two, given)
        close(one, two)
        assert {name: value.item() for name, value in logged.items()} == pytest.approx(expected, abs=1e-10)
        assert not any(value.requires_grad for value in logged.values())
    if options["ema"]:
        torch.testing.assert_close(fast.variances, torch.stack(slow.memory), rtol=0, atol=1e-12)
    else:
        assert fast.variances.shape == (3, 0)
    assert fast.updates == 4


def test_two_domains_by_hand():
    def model(images):  # two features of one pixel each; no image is told from another: p = (1/2, 1/2)
        features = images.flatten(1)
        return Outputs(features, torch.zeros(len(features), 2, dtype=torch.float64))

    def domain(pixels, labels):
        images = torch.tensor(pixels, dtype=torch.float64).reshape(-1, 1, 1, 1)
        return Batch(images, torch.tensor(labels), torch.zeros(len(labels), dtype=torch.int64))

    # Gradients (p - 1_y) z of class 0 are -2, 2 against -1, -1; of its bias -1/2, 1/2 against -1/2, -1/2. Class 1
    # has the same with the other sign. Variances 4, 1/4 against 0, 0; half their difference squared 4, 1/64.
    given = [domain([4, 4], [0, 1]), domain([2, 2], [0, 0])]
    options = {"domains": 2, "lambda_": 1.0, "penalty_anneal_iters": 0, "ema": 0.0}
    values = [
        Fishr(**options, reduction=reduction)(model, given).item() - math.log(2)
        for reduction in ("mean", "norm", "sum")
    ]
    assert values == pytest.approx([(4 + 1 / 64) / 2, 2 * (4 + 1 / 64), 4 * (4 + 1 / 64)], abs=1e-12)
    without = Fishr(**options, bias=False)(model, given).item() - math.log(2)
    assert without == pytest.approx(4, abs=1e-12)


def test_the_memory_makes_the_penalty_larger_by_one_over_one_minus_ema():
    model, given = Small(), batches((4, 6))
    plain = Fishr(domains=2, penalty_anneal_iters=0, ema=0.0)
    remembering = Fishr(domains=2, penalty_anneal_iters=0, ema=0.8)
    for _ in range(200):
        remembering(model, given)
    plain(model, given)
    factor = remembering.parts["penalty"] / plain.parts["penalty"]
    assert factor.item() == pytest.approx(25, rel=1e-6)


def test_the_memory_stands_still_in_evaluation():
    model, given = Small(), batches((4, 6))
    fishr = Fishr(domains=2, penalty_anneal_iters=0, ema=0.8)
    fishr(model, given)
    before = fishr.variances.clone()
    fishr.eval()(model, given)
    assert torch.equal(fishr.variances, before)
    fishr.train()(model, given)
    assert not torch.equal(fishr.variances, before)


# The closed form


def test_the_closed_form_is_the_variance_of_gradients_of_the_classifier():
    model, given = Small(), batches((4, 6))
    losses = [
        Fishr(domains=2, penalty_anneal_iters=0, layers=layers)(model, given)
        for layers in ("classifier", ("classifier",), ("classifier.weight", "classifier.bias"))
    ]
    gradients = [torch.autograd.grad(loss, list(model.parameters())) for loss in losses]
    for loss, gradient in zip(losses[1:], gradients[1:], strict=True):
        torch.testing.assert_close(loss, losses[0], rtol=1e-12, atol=0)
        for a, b in zip(gradient, gradients[0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


def test_features_that_hardly_vary_keep_their_digits():
    random = torch.Generator().manual_seed(0)
    features = 1000 + torch.randn(64, 5, generator=random, dtype=torch.float64)
    labels = torch.zeros(64, dtype=torch.int64)  # all of one class, so that residuals hardly vary either
    logits = 0.01 * torch.randn(64, 3, generator=random, dtype=torch.float64)
    exact, single = (Fishr(domains=1, penalty_anneal_iters=0, ema=0.5) for _ in range(2))
    given = [Batch(torch.zeros(64, 1, 1, 1), labels, labels)]
    exact(lambda _: Outputs(features, logits), given)
    single(lambda _: Outputs(features.float(), logits.float()), given)
    # 1000 in single precision has spacing 6e-5, that is, 1e-4 of a variance of one.
    torch.testing.assert_close(single.variances.double(), exact.variances, rtol=1e-3, atol=0)


def test_a_hook_leaves_with_the_update():
    model, given = Small(), batches((4, 6))
    Fishr(domains=2, layers="all")(model, given)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_layer_applied_twice_takes_per_sample_gradients():
    class Twice(Small):
        def forward(self, images):
            features = torch.tanh(self.featurizer[0](images.flatten(1)))[:, :2]
            features = self.featurizer(features)
            return Outputs(features, self.classifier(features))

    one, two, given = Twice(), Twice(), batches((4, 3))
    slow = reference.Reference(CLASSIFIER + FEATURIZER, lambda_=5.0, anneal=0, ema=0.5)
    fast = Fishr(domains=2, penalty_anneal_iters=0, lambda_=5.0, ema=0.5, layers="all")
    optimizer = torch.optim.Adam(one.parameters(), 1e-2)
    for _ in range(2):
        fast.step(one, given, optimizer)
        slow.update(two, given)
    close(one, two)


@pytest.mark.parametrize("scale", [False, True])
def test_a_frozen_featurizer_still_counts(scale):
    model, given = Small(scale=scale), batches((4, 3))
    whole = Fishr(domains=2, penalty_anneal_iters=0, layers="all")(model, given)
    (expected,) = torch.autograd.grad(whole, [model.classifier.weight])
    model.featurizer.requires_grad_(False)
    frozen = Fishr(domains=2, penalty_anneal_iters=0, layers="all")(model, given)
    (found,) = torch.autograd.grad(frozen, [model.classifier.weight])
    torch.testing.assert_close(frozen, whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


# One logit or two


@pytest.mark.parametrize("layers", ["classifier", "all"])
def test_two_opposite_logits_are_one_logit_with_half_the_weights_each(layers):
    """Entries of the classifier come twice: the mean is the same, the sum is double."""
    one, two, given = Small(1), Small(2), batches((4, 6), classes=2)
    with torch.no_grad():
        for name in ("weight", "bias"):
            value = getattr(one.classifier, name)
            getattr(two.classifier, name).copy_(torch.cat([-value / 2, value / 2]))
        for a, b in zip(two.featurizer.parameters(), one.featurizer.parameters(), strict=True):
            a.copy_(b)

    def value(model, reduction):
        fishr = Fishr(domains=2, penalty_anneal_iters=0, reduction=reduction, layers=layers, ema=0)
        fishr(model, given)
        return fishr.parts

    assert value(one, "mean")["nll"].item() == pytest.approx(value(two, "mean")["nll"].item(), abs=1e-12)
    if layers == "classifier":
        for reduction, factor in (("mean", 1), ("norm", 2), ("sum", 2)):
            expected = factor * value(one, reduction)["penalty"].item()
            assert value(two, reduction)["penalty"].item() == pytest.approx(expected, rel=1e-10)
    else:  # the featurizer's entries come once
        assert value(two, "sum")["penalty"] < 2 * value(one, "sum")["penalty"]


# Laws


@pytest.mark.parametrize("layers", ["classifier", "all"])
def test_without_a_weight_it_is_erm(layers):
    one, two, given = Small(), Small(), batches((4, 6))
    fishr, erm = Fishr(domains=2, lambda_=0.0, penalty_anneal_iters=1, layers=layers, reset=False), ERM()
    optimizers = [torch.optim.Adam(model.parameters(), 1e-2) for model in (one, two)]
    for _ in range(3):
        fishr.step(one, given, optimizers[0])
        erm.step(two, given, optimizers[1])
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_before_the_anneal_it_is_erm_that_remembers():
    one, two, given = Small(), Small(), batches((4, 6))
    fishr, optimizer = Fishr(domains=2, penalty_anneal_iters=5), torch.optim.Adam(one.parameters(), 1e-2)
    other = torch.optim.Adam(two.parameters(), 1e-2)
    for _ in range(5):
        logged = fishr.step(one, given, optimizer)
        ERM().step(two, given, other)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert logged["loss"] == logged["nll"]
    assert logged["penalty"] > 0
    assert fishr.variances.abs().sum() > 0


def test_equal_domains_have_no_penalty():
    model, (batch,) = Small(), batches((5,))
    fishr = Fishr(domains=3, penalty_anneal_iters=0)
    torch.testing.assert_close(fishr(model, [batch] * 3), ERM()(model, [batch]), rtol=1e-12, atol=0)


def test_one_domain_has_no_penalty():
    model, given = Small(), batches((5,))
    loss = Fishr(domains=1, penalty_anneal_iters=0)(model, given)
    assert torch.equal(loss, ERM()(model, given))


@pytest.mark.parametrize("layers", ["classifier", "all", "featurizer"])
def test_the_order_of_samples_and_of_domains_does_not_matter(layers):
    model, given = Small(), batches((3, 4, 5))
    expected = Fishr(domains=3, penalty_anneal_iters=0, layers=layers)(model, given)
    for order in itertools.permutations(range(3)):
        turned = [Batch(b.images.flip(0), b.labels.flip(0), b.domains) for b in (given[k] for k in order)]
        loss = Fishr(domains=3, penalty_anneal_iters=0, layers=layers)(model, turned)
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("layers", ["classifier", "all"])
def test_a_batch_of_one_and_an_absent_class_have_a_gradient(layers):
    model, given = Small(classes=5), batches((1, 4), classes=2)
    Fishr(domains=2, penalty_anneal_iters=0, layers=layers).step(
        model, given, torch.optim.SGD(model.parameters(), 0.0)
    )
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    fishr = Fishr(domains=2, penalty_anneal_iters=0, layers=layers)
    fishr(model, given)
    assert fishr.variances[0].abs().max() < 1e-30
    assert fishr.variances[1].abs().max() > 0


# Precision, dropout, compiled networks


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("layers", ["classifier", "all"])
def test_under_autocast_variances_are_in_single_precision(layers, scale):
    model = Small(scale=scale).float()
    given = [Batch(batch.images.float(), batch.labels, batch.domains) for batch in batches((4, 6))]
    plain, half = (Fishr(domains=2, penalty_anneal_iters=0, layers=layers) for _ in range(2))
    plain(model, given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half.step(model, given, torch.optim.SGD(model.parameters(), 0.1))
    assert half.variances.dtype == torch.float32
    torch.testing.assert_close(half.variances, plain.variances, rtol=0.1, atol=1e-4)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_dropout_draws_anew_for_per_sample_gradients():
    class Dropped(Small):
        def forward(self, images):
            features = F.dropout(self.featurizer(images.flatten(1)) * self.scale, 0.5)
            return Outputs(features, self.classifier(features))

    model, given = Dropped(scale=True), batches((40, 40))
    same = [
        Batch(batch.images[:1].expand(40, 1, 1, 2), batch.labels[:1].expand(40), batch.domains)
        for batch in given
    ]
    fishr = Fishr(domains=2, penalty_anneal_iters=0, layers="classifier.weight")
    torch.manual_seed(0)
    fishr(model, same)
    assert (fishr.variances.max(1).values > 0).all()  # equal samples, different masks


def test_a_compiled_network_is_looked_into():
    class Compiled(nn.Module):
        def __init__(self, network):
            super().__init__()
            self._orig_mod = network

        def forward(self, images):
            return self._orig_mod(images)

    given = batches((4, 3))
    for scale in (False, True):
        model = Small(scale=scale)
        losses = [
            Fishr(domains=2, penalty_anneal_iters=0, layers="featurizer")(one, given)
            for one in (model, Compiled(model))
        ]
        assert torch.equal(*losses)


def test_a_scaler_that_scales_changes_nothing():
    one, two, given = Small(), Small(), batches()
    for model, scaler in ((one, None), (two, torch.amp.GradScaler("cpu", init_scale=2.0**10))):
        fishr = Fishr(domains=2, penalty_anneal_iters=0)
        fishr.step(model, given, torch.optim.SGD(model.parameters(), 0.1), scaler)
    close(one, two, 1e-13)


# State


@pytest.mark.parametrize("layers", ["classifier", "all"])
def test_a_run_that_was_saved_goes_on_with_the_same_bits(layers):
    given = batches((4, 6))
    options = {"domains": 2, "lambda_": 20.0, "penalty_anneal_iters": 3, "layers": layers}
    model, fishr = Small(), Fishr(**options)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(6):
        if step == 2:
            saved = copy.deepcopy((model.state_dict(), fishr.state_dict(), optimizer.state_dict()))
        fishr.step(model, given, optimizer)
    again, other = Small(seed=1), Fishr(**options)
    again.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    resumed = torch.optim.Adam(again.parameters(), 1e-2)
    resumed.load_state_dict(saved[2])
    for _ in range(2, 6):
        other.step(again, given, resumed)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert torch.equal(fishr.variances, other.variances)
    assert other.variances.dtype == torch.float64


def test_the_state_before_the_first_update_loads():
    fishr = Fishr(domains=2)
    fishr.load_state_dict(copy.deepcopy(fishr.state_dict()))
    assert fishr.variances.shape == (2, 0)
    with pytest.raises(RuntimeError, match="variances"):
        Fishr(domains=3).load_state_dict(fishr.state_dict())


class Stopped(Exception):
    pass


def test_a_training_that_was_interrupted_ends_with_the_same_bits(tmp_path):
    split = digits_task(size=8).split("rotated_75")
    network = NetworkSpec(name="mnist_cnn", classes=10, channels=1, width=8)
    theta = initial_weights(network)
    run = Run(steps=4, batch_size=4, learning_rate=1e-3, dropout=0.3, collect="last")

    def stop_after_two(step, *_):
        if step == 3:
            raise Stopped

    fishr = Fishr(domains=len(split.train), penalty_anneal_iters=2)

    def trained(workspace=None, on_progress=None):
        trainer = Trainer(network, fishr, Loop(device="cpu", save_every=0.0), on_progress=on_progress)
        return trainer.fit(theta, split, run, workspace=workspace).weights["last"]

    whole = trained()
    with pytest.raises(Stopped):
        trained(tmp_path, stop_after_two)
    continued = trained(tmp_path)
    assert all(torch.equal(value, continued[name]) for name, value in whole.items())


def test_a_copy_is_independent():
    model, given = Small(), batches()
    fishr = Fishr(domains=2, penalty_anneal_iters=0)
    fishr.step(model, given, torch.optim.SGD(model.parameters(), 0.1))
    other = copy.deepcopy(fishr)
    other.step(model, given, torch.optim.SGD(model.parameters(), 0.1))
    assert (fishr.updates, other.updates) == (1, 2)
    assert not torch.equal(fishr.variances, other.variances)


# Options and errors


def test_all_options_are_named():
    options = {
        "domains": 4,
        "lambda_": 3.0,
        "penalty_anneal_iters": 7,
        "ema": 0.5,
        "layers": "all",
        "bias": False,
        "centred": True,
        "unbiased": True,
        "reduction": "sum",
        "initial_lambda": 1.0,
        "l2": 0.1,
        "divide": True,
        "reset": False,
    }
    assert Fishr(**options).configuration() == options
    default = Fishr(domains=4).configuration()
    assert default["lambda_"] == 1000
    assert default["penalty_anneal_iters"] == 1500
    assert default["ema"] == 0.95
    assert default["layers"] == "classifier"
    assert Fishr(domains=4, layers="featurizer").configuration()["layers"] == ["featurizer"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"domains": 0}, "number of source domains, at least 1, got 0"),
        ({"lambda_": -1}, "finite lambda_ of 0 or more, got -1"),
        ({"initial_lambda": math.inf}, "finite initial_lambda of 0 or more, got inf"),
        ({"l2": math.nan}, "finite l2 of 0 or more, got nan"),
        ({"ema": 1.0}, "ema of at least 0 and below 1, got 1.0; 0 keeps no memory"),
        (
            {"penalty_anneal_iters": -1},
            "penalty_anneal_iters to be a whole number of updates from 0, got -1",
        ),
        ({"reduction": "max"}, "reduction that is mean, norm or sum, got 'max'"),
        ({"layers": ()}, r"layers: classifier, all, or beginnings of names, got \(\)"),
        ({"unbiased": True, "centred": False}, "unbiased=True needs centred=True"),
    ],
)
def test_an_option_out_of_range_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        Fishr(**{"domains": 2, **options})


def test_what_cannot_be_computed_is_refused():
    model, given = Small(), batches((3, 1))
    with pytest.raises(InputError, match=r"made for 3 source domains, .* got 2 batches; give domains=2"):
        Fishr(domains=3)(model, given)
    with pytest.raises(InputError, match=r"at least 2 samples per domain, got 1 of domain \[1\]"):
        Fishr(domains=2, unbiased=True)(model, given)
    with pytest.raises(InputError, match=r"such as 'featurizer.0.weight', got 'backbone'"):
        Fishr(domains=2, layers="backbone")(model, given)
    fishr = Fishr(domains=2)
    fishr(model, given)
    with pytest.raises(InputError, match=r"remembers 15 variances per domain, got 25"):
        fishr(Small(classes=5), given)


def test_per_sample_gradients_need_frozen_batch_norm():
    class Normed(Small):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(4).double()

        def forward(self, images):
            features = self.norm(self.featurizer(images.flatten(1)))
            return Outputs(features, self.classifier(features))

    model, given = Normed(), batches((4, 3))
    with pytest.raises(
        InputError, match=r"frozen batch norm, but 'norm' mixes the samples .* layers='classifier'"
    ):
        Fishr(domains=2, layers="all")(model, given)
    Fishr(domains=2)(model, given)
    model.norm.eval()
    fishr = Fishr(domains=2, layers="all")
    fishr(model, given)
    assert fishr.variances.shape == (2, 4 * 2 + 4 + 4 * 3 + 3 + 8)
