import copy
import math

import pytest
import torch
from tests.reference import mixmo
from tests.reference.plain import adam_step, new_adam
from tests.tiny import tiny_network, tiny_task
from torch import nn

from mirepoix.checkpoints import fingerprint
from mirepoix.data import digits_pretraining_task, evaluation_batches
from mirepoix.ensembles import Independent, average_logits
from mirepoix.ensembles._mixmo import MIMO, CutMixMo, LinearMixMo, MixMo
from mirepoix.models import MultiInputNetwork, NetworkSpec, initial_weights
from mirepoix.objectives import ERM, SAM
from mirepoix.runs import Run
from mirepoix.training import Loop, Trainer
from mirepoix.types import Batch, InputError, Outputs

RUN = Run(seed=3, steps=6, learning_rate=3e-3, batch_size=4, check_every=2, average_from=2)
SIZE = (4, 3)


class Tiny(nn.Module):
    def __init__(self, seed):
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self.first = nn.Conv2d(1, 2, 3, padding=1, bias=False)
        self.scale = nn.Linear(2, 2, bias=False)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=random)

    def forward(self, x):
        return self.scale(torch.tanh(self.first(x)).mean((2, 3)))


def network(members=2):
    random = torch.Generator().manual_seed(9)
    made = MultiInputNetwork([Tiny(seed) for seed in range(members)], 2, 3)
    for parameter in made.classifier.parameters():
        nn.init.normal_(parameter, generator=random)
    return made.double()


def drawn(step, sizes=(3, 2), dtype=torch.float64):
    random = torch.Generator().manual_seed(step)
    return [
        Batch(
            torch.randn(size, 1, *SIZE, generator=random, dtype=dtype),
            torch.randint(3, (size,), generator=random),
            torch.full((size,), place),
        )
        for place, size in enumerate(sizes)
    ]


def adam_of(model):
    return torch.optim.Adam(model.parameters(), lr=0.05, weight_decay=0.01)


def draws(objective, members, samples, probability):
    """The numbers that a step draws, in their order."""
    count = samples * objective.repetition
    places = torch.randperm(count).tolist()
    own = round(count * (1 - objective.input_repetition))
    orders = []
    for _ in range(members):
        within = torch.randperm(own).tolist()
        orders.append([place % samples for place in [*(places[i] for i in within), *places[own:]]])
    if objective.alpha > 0 and members > 1:
        alphas = torch.full((count, members), objective.alpha, dtype=torch.float64)
        kappa = torch.distributions.Dirichlet(alphas).sample().tolist()
    else:
        kappa = [[1 / members] * members] * count
    cut = torch.rand((), dtype=torch.float64).item() < probability
    roles = torch.randperm(members).tolist()
    centres = [None] * count
    if cut:
        rows, columns = (torch.randint(side, (count,)).tolist() for side in SIZE)
        centres = list(zip(rows, columns, strict=True))
    masks = [mixmo.masks(kappa[s], centres[s], SIZE, roles, cut=cut and members > 1) for s in range(count)]
    return orders, [[masks[s][m] for s in range(count)] for m in range(members)], cut


def pasted(objective, images, labels, orders, masks):
    """Images with boxes of others in them, the others' labels, and the shares of the own ones."""
    members, count, samples = len(orders), len(orders[0]), len(images)
    chosen = torch.rand(members, count, dtype=torch.float64) < objective.cutmix_probability
    areas = torch.rand(members, count, dtype=torch.float64)
    centres = []
    for _ in range(members):
        rows, columns = (torch.randint(side, (count,)).tolist() for side in SIZE)
        centres.append(list(zip(rows, columns, strict=True)))
    partners = torch.randint(samples, (members, count)).tolist()
    inputs, shares = [], []
    for m in range(members):
        inputs.append([])
        shares.append([])
        for s in range(count):
            own, share = images[orders[m][s]], 1.0
            if chosen[m][s]:
                own, share = mixmo.cut_and_pasted(
                    own, images[partners[m][s]], areas[m][s].item(), centres[m][s], masks[m][s]
                )
            inputs[-1].append(own)
            shares[-1].append(share)
    return inputs, [[labels[i] for i in partners[m]] for m in range(members)], shares


SETTINGS = [
    (CutMixMo, {"cut_probability": 1, "alpha": 1}, 2),
    (CutMixMo, {"cut_probability": 1, "repetition": 2}, 3),
    (CutMixMo, {"cut_probability": 0.9, "total_steps": 3, "alpha": 0.7, "r": 2}, 2),
    (LinearMixMo, {"alpha": 1.5, "r": 1, "input_repetition": 0.4}, 2),
    (LinearMixMo, {"cutmix_probability": 0.6}, 3),
    (CutMixMo, {"cutmix_probability": 1, "cut_probability": 1}, 2),
    (MIMO, {"repetition": 2, "input_repetition": 0.5}, 2),
    (CutMixMo, {}, 1),
]


@pytest.mark.parametrize(("kind", "options", "members"), SETTINGS)
def test_updates_are_those_of_the_reference(kind, options, members):
    model, objective = network(members), kind(**options)
    optimizer, memory = adam_of(model), new_adam()
    theta = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    kinds = set()
    for step in range(3):
        batches = drawn(step)
        images = torch.cat([batch.images for batch in batches])
        labels = torch.cat([batch.labels for batch in batches]).tolist()
        torch.manual_seed(step)
        probability = objective.cut_probability
        if objective.total_steps:
            probability *= [1, 1, 0][step]
        orders, masks, cut = draws(objective, members, len(labels), probability)
        kinds.add(cut)
        targets = [[labels[i] for i in order] for order in orders]
        inputs, others, shares = [images[order] for order in orders], None, None
        if objective.cutmix_probability:
            inputs, others, shares = pasted(objective, images, labels, orders, masks)
        expected, nll = mixmo.loss(
            theta, inputs, targets, mask=masks, r=objective.r, other_labels=others, shares=shares
        )
        theta = adam_step(theta, expected, memory)
        torch.manual_seed(step)
        logged = objective.step(model, batches, optimizer)
        assert set(logged) == {"loss", "nll"}
        assert logged["loss"].item() == pytest.approx(expected.item(), rel=1e-10)
        assert logged["nll"].item() == pytest.approx(nll.item(), rel=1e-10)
        for name, value in model.named_parameters():
            assert (value - theta[name]).abs().max() < 1e-10
    if objective.total_steps:
        assert kinds == {True, False}


def test_a_network_of_one_input_is_trained_as_the_plain_one():
    """The order of samples is random, so up to rounding."""
    model = network(1)

    class First(nn.Module):
        def forward(self, images):
            outputs = model(images)
            return Outputs(features=outputs.features[0], logits=outputs.logits[0])

    for objective in (CutMixMo(cut_probability=1), LinearMixMo(repetition=3), MIMO()):
        torch.testing.assert_close(objective(model, drawn(0)), ERM()(First(), drawn(0)), rtol=1e-12, atol=0)


def test_mixing_with_equal_coefficients_is_mimo():
    for options in ({"alpha": 0}, {"alpha": -1.0, "r": 1}, {"alpha": 0, "r": 7}):
        losses = []
        for objective in (MIMO(repetition=2), LinearMixMo(repetition=2, **options)):
            torch.manual_seed(0)
            losses.append(objective(network(), drawn(0)))
        assert torch.equal(*losses)


def test_cut_mixmo_that_never_cuts_is_linear_mixmo():
    losses = []
    for objective in (
        LinearMixMo(),
        CutMixMo(cut_probability=0),
        CutMixMo(total_steps=1),
        MixMo(cut_probability=0),
    ):
        torch.manual_seed(0)
        losses.append(objective(network(), drawn(0)))
    assert all(torch.equal(loss, losses[0]) for loss in losses)
    torch.manual_seed(0)
    assert not torch.equal(CutMixMo(cut_probability=1)(network(), drawn(0)), losses[0])


def test_all_inputs_repeated_and_linear_is_what_is_predicted():
    """Trained on equal images it minimises the plain sum of the risks of the heads that predict."""
    for members in (2, 3):
        model = network(members)
        found = MIMO(input_repetition=1)(model, drawn(0))
        torch.testing.assert_close(found, Independent()(model, drawn(0)), rtol=1e-12, atol=0)


def test_a_prediction_is_one_pass_and_the_average_of_logits():
    model, objective, images = network(3), CutMixMo(), drawn(0)[0].images
    passes = []
    model.featurizer.core.register_forward_hook(lambda *_: passes.append(1))
    found = objective.predict(model, images)
    assert passes == [1]
    assert torch.equal(found.logits, average_logits(model(images).logits))
    masks = torch.full((3, 3, 1, 1, 1), 1 / 3, dtype=torch.float64)
    torch.testing.assert_close(
        found.logits, model.mixed([images] * 3, masks).logits.mean(0), rtol=1e-12, atol=0
    )
    orders = model.mixed([images.clone() for _ in range(3)][::-1], masks).logits.mean(0)
    torch.testing.assert_close(found.logits, orders, rtol=1e-12, atol=0)


def test_the_descent_ends_in_zero():
    objective = CutMixMo(cut_probability=0.6, total_steps=24)
    found = []
    for update in (0, 11, 21, 22, 23, 30):
        objective.updates = update
        found.append(objective.probability())
    assert found == pytest.approx([0.6, 0.6, 0.6, 0.3, 0, 0], abs=1e-12)
    assert CutMixMo(cut_probability=0.6).probability() == 0.6
    assert CutMixMo().resets() == ()


def test_both_kinds_of_masks_and_all_roles_are_drawn():
    """A batch is of one kind; the box goes to either member."""
    objective, like = CutMixMo(alpha=1), torch.zeros((), dtype=torch.float64)
    torch.manual_seed(0)
    found = [objective.drawn_masks(2, 3, (8, 8), like) for _ in range(200)]
    cut = [masks for masks in found if masks.shape[3:] == (8, 8)]
    assert {masks.shape for masks in found} == {(2, 3, 1, 8, 8), (2, 3, 1, 1, 1)}
    assert 70 < len(cut) < 130
    # A corner of the frame that is seen is around the box, nearly always.
    second = [masks[0, :, 0, (0, 0, 7, 7), (0, 7, 0, 7)].sum() > 6 for masks in cut]
    assert 0.3 < sum(second) / len(second) < 0.7


def test_members_that_are_not_seen_have_no_gradient():
    """A box of the whole frame leaves nothing of the second member."""
    model = network()

    class Whole(CutMixMo):
        def drawn_masks(self, members, samples, size, like):
            masks = torch.zeros(2, samples, 1, *size).to(like)
            masks[0] = 1
            return masks

    Whole()(model, drawn(0)).backward()
    assert model.classifier[1].weight.grad.abs().max() == 0
    assert model.featurizer.encoders[1].weight.grad.abs().max() == 0
    assert model.classifier[0].weight.grad.abs().max() > 0


def test_the_order_of_members_does_not_matter_where_it_is_not_drawn():
    model = network()
    theta = model.state_dict()
    other = network()
    swapped = {
        name: theta[name.replace(".0.", ".x.").replace(".1.", ".0.").replace(".x.", ".1.")] for name in theta
    }
    other.load_state_dict(swapped)
    # All members see all of one image, so only the weights are in another order.
    batch = drawn(0, (1,))
    for objective in (MIMO(), MIMO(repetition=3)):
        torch.testing.assert_close(objective(model, batch), objective(other, batch), rtol=1e-12, atol=0)


def test_only_what_a_mask_shows_counts_for_the_label():
    """A box that the mask of the member hides changes nothing; what it shows of both is shared."""
    objective, images = CutMixMo(cutmix_probability=1), torch.zeros(6, 1, 8, 8)
    images[:] = torch.arange(6)[:, None, None, None]
    torch.manual_seed(0)
    masks = torch.zeros(2, 6, 1, 8, 8)
    masks[0, :, :, :, :3], masks[1, :, :, :, 3:] = 1, 1
    inputs, partners, shares = objective.cut_and_pasted(images, [images, images], masks)
    assert shares.shape == partners.shape == (2, 6)
    assert (shares >= 0.5 - 1e-6).all()
    for m in range(2):
        for s in range(6):
            if partners[m, s] == s:
                continue
            own = (inputs[m][s] == s).float()
            expected = (own * masks[m, s]).sum() / masks[m, s].sum()
            assert shares[m, s].item() == pytest.approx(expected.item(), abs=1e-6)
    never = CutMixMo(cutmix_probability=1e-12).cut_and_pasted(images, [images, images], masks)
    assert (never[2] == 1).all()
    assert all(torch.equal(image, images) for image in never[0])


def test_a_mask_of_another_size_than_the_image_shows_the_mean_of_its_pixels():
    objective = CutMixMo(cutmix_probability=1)
    images = torch.arange(8.0)[:, None, None, None].expand(8, 1, 8, 8)
    for size in ((4, 4), (1, 1)):
        torch.manual_seed(0)
        masks = torch.full((1, 8, 1, *size), 0.3)
        inputs, partners, shares = objective.cut_and_pasted(images, [images], masks)
        for s in range(8):
            if partners[0, s] != s:
                assert shares[0, s].item() == pytest.approx(
                    (inputs[0][s] == s).float().mean().item(), abs=1e-6
                )


@pytest.mark.parametrize(
    ("name", "size"), [("cifar_resnet20", 8), ("wrn28_1", 8), ("timm:resnet18", 32), ("mnist_cnn", 8)]
)
def test_networks_are_trained(name, size):
    spec = NetworkSpec(name=name, classes=3, inputs=2, frozen_batch_norm=False)
    model = spec.build().train()
    random = torch.Generator().manual_seed(0)
    batch = Batch(
        torch.randn(4, 3, size, size, generator=random),
        torch.tensor([0, 2, 1, 1]),
        torch.zeros(4, dtype=torch.long),
    )
    objective = CutMixMo(cut_probability=1, cutmix_probability=0.5)
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(0)
    logged = objective.step(model, [batch], torch.optim.SGD(model.parameters(), lr=0.01))
    assert logged["loss"].isfinite()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all()
        if "encoders" in name or "classifier" in name:  # timm's blocks begin as the identity
            assert not torch.equal(before[name], parameter)


@pytest.mark.parametrize(
    "options", [{"cut_probability": 1}, {"cut_probability": 0}, {"cutmix_probability": 1}]
)
def test_half_precision(options):
    model = NetworkSpec(name="mnist_cnn", classes=3, channels=1, width=8, inputs=2).build()
    objective, seen = CutMixMo(**options), []
    model.featurizer.core.register_forward_hook(lambda _, given, __: seen.append(given[0].dtype))
    optimizer = adam_of(model)
    for step in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logged = objective.step(model, drawn(step, dtype=torch.float32), optimizer)
        # The size of masks is looked up before; that must leave no weights without a gradient in autocast's cache.
        assert all(encoder.weight.grad.abs().max() > 0 for encoder in model.featurizer.encoders)
    assert set(seen) == {torch.bfloat16}
    assert all(value.isfinite() and value.dtype == torch.float32 for value in logged.values())
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_batch_of_one_shows_it_to_all_members():
    for objective in (CutMixMo(cut_probability=1), LinearMixMo(cutmix_probability=1), MIMO(repetition=2)):
        logged = objective.step(model := network(), drawn(0, (1,)), adam_of(model))
        assert logged["loss"].isfinite()


def test_the_state_is_the_number_of_updates():
    objective = CutMixMo(total_steps=24)
    objective.updates = 22
    again = CutMixMo(total_steps=24)
    again.load_state_dict(copy.deepcopy(objective.state_dict()))
    assert again.probability() == objective.probability() == pytest.approx(0.25)
    assert not list(objective.parameters())


@pytest.mark.parametrize(
    "objective",
    [MIMO(repetition=2), LinearMixMo(), CutMixMo(total_steps=6, repetition=2, cutmix_probability=0.5)],
    ids=lambda objective: type(objective).__name__,
)
def test_a_training_that_was_stopped_goes_on_bit_for_bit(objective, tmp_path):
    spec = NetworkSpec(**{**tiny_network().to_dict(), "inputs": 2})
    split, theta = tiny_task().split("domain_2"), initial_weights(spec)

    class Stopped(Exception):
        pass

    def stop(made, *_):
        if made == 4:
            raise Stopped

    whole = Trainer(spec, objective).fit(theta, split, RUN)
    with pytest.raises(Stopped):
        Trainer(spec, objective, loop=Loop(save_every=0), on_progress=stop).fit(
            theta, split, RUN, workspace=tmp_path
        )
    assert (tmp_path / "state.bin").exists()
    resumed = Trainer(spec, objective).fit(theta, split, RUN, workspace=tmp_path)
    assert {k: fingerprint(v) for k, v in resumed.weights.items()} == {
        k: fingerprint(v) for k, v in whole.weights.items()
    }
    assert resumed.record["checks"] == whole.record["checks"]
    for name, value in whole.weights["last"].items():
        assert value.isfinite().all()
        assert not torch.equal(value, theta[name])


def test_the_options_are_named():
    options = {
        "alpha": 1.5,
        "r": 2.0,
        "cut_probability": 0.25,
        "total_steps": 10,
        "repetition": 2,
        "input_repetition": 0.1,
        "cutmix_probability": 0.5,
    }
    assert CutMixMo(**options).configuration() == options
    assert CutMixMo().configuration() == {
        "alpha": 2,
        "r": 3,
        "cut_probability": 0.5,
        "total_steps": None,
        "repetition": 1,
        "input_repetition": 0,
        "cutmix_probability": 0,
    }
    linear = {name: options[name] for name in options if name not in ("cut_probability", "total_steps")}
    assert LinearMixMo(**linear).configuration() == linear
    assert LinearMixMo().configuration() == {
        name: value for name, value in CutMixMo().configuration().items() if name in linear
    }
    mimo = {name: options[name] for name in ("repetition", "input_repetition", "cutmix_probability")}
    assert MIMO(**mimo).configuration() == mimo
    assert (MIMO().alpha, MIMO().r, MIMO().cut_probability, MIMO().repetition) == (0, 1, 0, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": math.inf}, "CutMixMo needs alpha to be a finite number, got inf"),
        ({"alpha": True}, "CutMixMo needs alpha to be a finite number, got True"),
        ({"r": 0}, "CutMixMo needs r to be positive, got 0; 3 is usual, and 1 is not to rebalance"),
        ({"r": -1.0}, "CutMixMo needs r to be positive, got -1"),
        ({"r": math.inf}, "CutMixMo needs r to be a finite number, got inf"),
        ({"cut_probability": 1.1}, r"CutMixMo needs cut_probability to be a number from 0 to 1, got 1\.1"),
        (
            {"input_repetition": -0.1},
            r"CutMixMo needs input_repetition to be a number from 0 to 1, got -0\.1",
        ),
        (
            {"cutmix_probability": math.nan},
            "CutMixMo needs cutmix_probability to be a number from 0 to 1, got nan",
        ),
        ({"repetition": 0}, "CutMixMo needs repetition to be 1 or more, got 0; 1 is not to repeat"),
        (
            {"total_steps": 0},
            "CutMixMo needs total_steps to be 1 or more, got 0; leave it out for no descent",
        ),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        CutMixMo(**options)


def test_a_network_without_inputs_is_refused():
    for spec in (tiny_network(), NetworkSpec(**{**tiny_network().to_dict(), "members": 2})):
        with pytest.raises(
            InputError, match=r"MIMO gives each member an image of its own.*NetworkSpec\(inputs=2\)"
        ):
            MIMO()(spec.build(), drawn(0, dtype=torch.float32))


def test_sam_cannot_wrap_it():
    with pytest.raises(InputError, match="SAM cannot wrap CutMixMo"):
        SAM(CutMixMo())


@pytest.mark.slow
@pytest.mark.parametrize("objective", [MIMO(), CutMixMo(total_steps=600)], ids=lambda o: type(o).__name__)
def test_each_member_names_the_digit_that_it_is_shown(objective):
    """With two digits at a time, each is right on its own and blind to the other's; with one, both are right."""
    split = digits_pretraining_task(size=8).split(None)
    spec = NetworkSpec(name="mnist_cnn", classes=10, channels=1, width=16, inputs=2)
    run = Run(
        seed=1, steps=600, learning_rate=3e-3, batch_size=32, check_every=600, average_from=1, augment=False
    )
    theta = Trainer(spec, objective, keep=()).fit(initial_weights(spec), split, run.with_(collect="last"))
    model = spec.build().eval()
    model.load_state_dict(theta.weights["last"])
    (held_out,) = split.validation
    batches = list(evaluation_batches(held_out, split.task.transform))
    images = torch.cat([batch.images for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])

    def accuracy(logits, expected):
        return (logits.argmax(-1) == expected).float().mean().item()

    with torch.no_grad():
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        first, second = model.mixed(
            [images, images[order]], torch.full((2, len(labels), 1, 1, 1), 0.5)
        ).logits
        assert min(accuracy(first, labels), accuracy(second, labels[order])) > 0.85
        assert max(accuracy(second, labels), accuracy(first, labels[order])) < 0.25
        members = model(images).logits
        alone = [accuracy(member, labels) for member in members]
        together = accuracy(objective.predict(model, images).logits, labels)
    assert min(alone) > 0.85
    assert together >= sum(alone) / 2 - 0.01


@pytest.mark.parametrize("cut_probability", [0, 1])
def test_without_a_box_in_any_image_pixels_change_nothing(cut_probability):
    """The draws for boxes come last, so that the others stay what they are."""
    losses = []
    for probability in (0, 1e-300):
        torch.manual_seed(5)
        objective = CutMixMo(cut_probability=cut_probability, cutmix_probability=probability)
        losses.append(objective(network(), drawn(0)))
    assert torch.equal(*losses)


def test_the_own_label_counts_half_or_more_whatever_the_mask():
    objective = CutMixMo(cutmix_probability=1)
    for seed in range(20):
        torch.manual_seed(seed)
        images = torch.rand(8, 1, 6, 6)
        for size in ((6, 6), (3, 3)):
            masks = objective.drawn_masks(2, 8, size, torch.empty((), dtype=torch.float64))
            _, _, shares = objective.cut_and_pasted(images, [images, images], masks)
            assert ((shares >= 0.5) & (shares <= 1)).all()
