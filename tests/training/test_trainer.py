import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mirepoix.checkpoints import fingerprint
from mirepoix.data import Domain, Transform, draw
from mirepoix.data._images import ArrayImages
from mirepoix.data._task import make_task
from mirepoix.models import NetworkSpec, initial_weights
from mirepoix.objectives import ERM
from mirepoix.runs import Run
from mirepoix.seeds import seed_hash
from mirepoix.store import key_of
from mirepoix.training import Loop, Trainer, choose_device
from mirepoix.types import Diverged, InputError, Outputs
from tests.tiny import tiny_network, tiny_task

RUN = Run(seed=3, steps=12, learning_rate=3e-3, batch_size=4, check_every=5, average_from=4, dropout=0.3)


@pytest.fixture(scope="module")
def split():
    return tiny_task().split("domain_2")


@pytest.fixture(scope="module")
def theta():
    return initial_weights(tiny_network())


def same(a, b):
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def slow_training(theta, split, run):
    """The definition, written out: one loop, torch's own Adam, everything kept in lists."""
    model = tiny_network().build(dropout=run.dropout)
    model.load_state_dict(theta)
    optimizer = torch.optim.Adam(model.parameters(), lr=run.learning_rate, weight_decay=run.weight_decay)
    iterates, scores = [], []
    for step in range(run.steps):
        batches = draw(split, step, batch_size=run.batch_size, seed=run.seed, augment=True)
        torch.manual_seed(seed_hash(run.seed, "dropout", step))
        model.train()
        logits = model(torch.cat([b.images for b in batches])).logits
        loss = -logits.log_softmax(1)[range(len(logits)), torch.cat([b.labels for b in batches])].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        iterates.append({k: v.clone() for k, v in model.state_dict().items()})
        if step % run.check_every == 0 or step == run.steps - 1:
            model.eval()
            accuracies = []
            for subset in split.validation:
                images = split.task.transform.plain(subset.domain.images.read(subset.indices))
                right = model(images).logits.argmax(1) == torch.as_tensor(subset.labels)
                accuracies.append(right.float().mean().item())
            scores.append((step, sum(accuracies) / len(accuracies)))
    return iterates, scores


def test_the_loop_is_the_plain_loop(theta, split):
    iterates, scores = slow_training(theta, split, RUN)
    fit = Trainer(tiny_network(), loop=Loop(device="cpu")).fit(theta, split, RUN)
    for name, last in iterates[-1].items():
        torch.testing.assert_close(fit.weights["last"][name], last, rtol=1e-6, atol=1e-7)
    assert {check["step"]: check["score"] for check in fit.record["checks"]} == pytest.approx(dict(scores))
    best_step = max(scores, key=lambda pair: (pair[1], -pair[0]))[0]
    assert fit.record["best_step"] == best_step
    assert fit.record["id_accuracy"] == pytest.approx(dict(scores)[best_step])
    for name, best in iterates[best_step].items():
        torch.testing.assert_close(fit.weights["best"][name], best, rtol=1e-6, atol=1e-7)
    for name in theta:  # iterates are counted from 1: the mean starts with the third
        mean = torch.stack([i[name].double() for i in iterates[2:]]).mean(0).float()
        torch.testing.assert_close(fit.weights["moving_average"][name], mean, rtol=1e-6, atol=1e-7)


def test_checks_happen_at_multiples_and_at_the_last_step(theta, split):
    fit = Trainer(tiny_network()).fit(theta, split, RUN)
    assert [check["step"] for check in fit.record["checks"]] == [0, 5, 10, 11]


def test_a_run_returns_what_it_collects(theta, split):
    train = Trainer(tiny_network())
    fit = train.fit(theta, split, RUN)
    for collect in ("best", "last", "moving_average"):
        assert same(train(theta, split, RUN.with_(collect=collect)), fit.weights[collect])


def test_the_same_arguments_give_the_same_bits_and_other_seeds_others(theta, split):
    train = Trainer(tiny_network())
    last = RUN.with_(collect="last")
    first = train(theta, split, last)
    torch.manual_seed(99)
    assert same(first, train(theta, split, last))
    assert not same(first, train(theta, split, last.with_(seed=4)))


def test_evaluating_more_often_changes_nothing(theta, split):
    train = Trainer(tiny_network())
    seldom = train(theta, split, RUN.with_(collect="last"))
    assert same(seldom, train(theta, split, RUN.with_(collect="last", check_every=1)))


def test_training_leaves_global_generators_and_inputs_alone(theta, split):
    before = {name: value.clone() for name, value in theta.items()}
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    Trainer(tiny_network())(theta, split, RUN)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state[1])  # noqa: NPY002
    assert same(theta, before)


class Killed(Exception):
    pass


@pytest.mark.parametrize("killed_after", [1, 4, 5, 7, 11])
def test_an_interrupted_run_continues_to_the_same_bits(theta, split, tmp_path, killed_after):
    run = RUN.with_(classifier_steps=5, optimizer="sgd" if killed_after == 7 else "adam", schedule="cosine")
    whole = Trainer(tiny_network()).fit(theta, split, run)
    steps = []

    def stop(step, steps_, loss, accuracy):
        steps.append(step)
        if step == killed_after + 1:
            raise Killed

    loop = Loop(save_every=0.0)
    with pytest.raises(Killed):
        Trainer(tiny_network(), loop=loop, on_progress=stop).fit(theta, split, run, workspace=tmp_path)
    steps.clear()
    resumed = Trainer(tiny_network(), loop=loop, on_progress=lambda step, *_: steps.append(step)).fit(
        theta, split, run, workspace=tmp_path
    )
    assert steps == list(range(killed_after + 1, run.steps + 1))  # nothing is trained twice
    for name in whole.weights:
        assert same(whole.weights[name], resumed.weights[name]), name
    assert whole.record["checks"] == resumed.record["checks"]


def test_a_damaged_state_is_not_used(theta, split, tmp_path, caplog):
    def stop(step, *_):
        if step == 6:
            raise Killed

    loop = Loop(save_every=0.0)
    with pytest.raises(Killed):
        Trainer(tiny_network(), loop=loop, on_progress=stop).fit(theta, split, RUN, workspace=tmp_path)
    state = tmp_path / "state.bin"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    whole = Trainer(tiny_network()).fit(theta, split, RUN)
    again = Trainer(tiny_network()).fit(theta, split, RUN, workspace=tmp_path)
    assert "is damaged; this run starts again" in caplog.text
    assert same(whole.weights["last"], again.weights["last"])


def test_a_linear_probe_moves_the_classifier_alone(theta, split):
    probe = RUN.with_(classifier_steps=RUN.steps, collect="last")
    trained = Trainer(tiny_network())(theta, split, probe)
    for name in theta:
        assert torch.equal(trained[name], theta[name]) == name.startswith("featurizer."), name


def test_after_the_classifier_steps_everything_moves(theta, split):
    run = RUN.with_(collect="last", steps=6, check_every=1)
    fewer = Trainer(tiny_network())(theta, split, run.with_(classifier_steps=6))
    more = Trainer(tiny_network())(theta, split, run.with_(classifier_steps=5))
    moved = [name for name in theta if not torch.equal(fewer[name], more[name])]
    assert any(name.startswith("featurizer.") for name in moved)


def test_cosine_ends_near_zero_and_constant_stays(theta, split):
    rates = {}

    class Spy(ERM):
        def step(self, model, batches, optimizer, scaler=None):
            rates.setdefault(self.name, []).append(optimizer.param_groups[0]["lr"])
            return super().step(model, batches, optimizer, scaler)

    for schedule in ("constant", "cosine"):
        spy = Spy()
        spy.name = schedule
        Trainer(tiny_network(), spy)(theta, split, RUN.with_(schedule=schedule))
    assert set(rates["constant"]) == {RUN.learning_rate}
    expected = [RUN.learning_rate * (1 + math.cos(math.pi * t / RUN.steps)) / 2 for t in range(RUN.steps)]
    assert rates["cosine"] == pytest.approx(expected)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_weight_decay_is_coupled_but_for_adamw(theta, split, optimizer):
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    seen = []

    class Spy(ERM):
        def step(self, model, batches, optimizer, scaler=None):
            seen.append(optimizer)
            return super().step(model, batches, optimizer, scaler)

    Trainer(tiny_network(), Spy())(
        theta, split, RUN.with_(optimizer=optimizer, weight_decay=0.01, momentum=0.7)
    )
    assert type(seen[0]) is kinds[optimizer]
    assert seen[0].param_groups[0]["weight_decay"] == 0.01
    if optimizer == "sgd":
        assert seen[0].param_groups[0]["momentum"] == 0.7


@pytest.mark.parametrize(("steps", "check_every"), [(12, 5), (12, 100), (1, 5)])
def test_a_loss_that_is_not_finite_ends_the_run_with_the_step_and_advice(theta, split, steps, check_every):
    wild = RUN.with_(learning_rate=1e30, optimizer="sgd", steps=steps, check_every=check_every)
    message = rf"loss was (nan|inf) (by|after) step \d+ of {steps} .*smaller learning rate"
    with pytest.raises(Diverged, match=message) as error:
        Trainer(tiny_network())(theta, split, wild)
    assert error.value.step < steps


def test_what_changes_a_result_is_part_of_what_a_trainer_is_made_of():
    class Weighted(ERM):
        def __init__(self, weight):
            super().__init__()
            self.weight = weight

        def configuration(self):
            return {"weight": self.weight}

    class Stateful(ERM):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

    other = Stateful()
    with torch.no_grad():
        other.scale += 1
    trainers = [
        Trainer(tiny_network()),
        Trainer(tiny_network(classes=3)),
        Trainer(tiny_network(), Weighted(1.0)),
        Trainer(tiny_network(), Weighted(2.0)),
        Trainer(tiny_network(), Stateful()),
        Trainer(tiny_network(), other),
        Trainer(tiny_network(), loop=Loop(mixed_precision="bf16")),
        Trainer(tiny_network(), loop=Loop(channels_last=True)),
        Trainer(tiny_network(), loop=Loop(compile=True)),
    ]
    keys = {key_of(trainer.made_of()) for trainer in trainers}
    assert len(keys) == len(trainers)
    same_results = [Loop(device="cpu"), Loop(save_every=1.0)]
    assert {key_of(Trainer(tiny_network(), loop=loop).made_of()) for loop in same_results} <= keys


def test_parameters_of_an_objective_are_trained_and_survive_an_interruption(theta, split, tmp_path):
    class Scaled(ERM):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.register_buffer("calls", torch.zeros((), dtype=torch.long))

        def forward(self, model, batches):
            self.calls += 1
            return self.scale.square() * super().forward(model, batches)

    prototype = Scaled()
    whole = Trainer(tiny_network(), prototype)(theta, split, RUN.with_(collect="last"))
    assert prototype.scale.item() == 1  # the prototype is copied
    assert prototype.calls == 0

    def stop(step, *_):
        if step == 8:
            raise Killed

    with pytest.raises(Killed):
        Trainer(tiny_network(), prototype, Loop(save_every=0.0), on_progress=stop).fit(
            theta, split, RUN, workspace=tmp_path
        )
    resumed = Trainer(tiny_network(), prototype).fit(theta, split, RUN, workspace=tmp_path)
    assert same(whole, resumed.weights["last"])


def test_what_an_objective_adds_to_predictions_counts_at_checks_and_comes_back(theta, split):
    class Reversed(ERM):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros((), dtype=torch.long))

        def forward(self, model, batches):
            self.calls += 1
            return super().forward(model, batches)

        def predict(self, model, images):
            assert not self.training
            outputs = model(images)
            return Outputs(outputs.features, -outputs.logits)

    plain = Trainer(tiny_network()).fit(theta, split, RUN)
    reversed_ = Trainer(tiny_network(), Reversed()).fit(theta, split, RUN)
    assert same(plain.weights["last"], reversed_.weights["last"])
    for one, other in zip(plain.record["checks"], reversed_.record["checks"], strict=True):
        assert other["score"] == pytest.approx(1 - one["score"])  # two classes
    assert reversed_.objective.calls == RUN.steps
    assert not reversed_.objective.training


def test_half_precision_and_channels_last_train(theta, split):
    for loop in (Loop(mixed_precision="bf16"), Loop(channels_last=True)):
        trained = Trainer(tiny_network(), loop=loop)(theta, split, RUN.with_(collect="last"))
        assert all(torch.isfinite(value).all() for value in trained.values())
        assert trained["classifier.weight"].dtype == torch.float32
        assert fingerprint(trained) != fingerprint(theta)


def test_nothing_of_the_target_reaches_the_training(theta):
    """Other labels and images in the target domain: the same bits, the same checks."""
    task = tiny_task()
    target = task.domains[2]
    images = target.images.read(np.arange(len(target)))
    scrambled = Domain(target.name, ArrayImages((255 - images).numpy()), 1 - target.labels)
    other = dataclasses.replace(task, domains=(*task.domains[:2], scrambled))
    fits = [Trainer(tiny_network()).fit(theta, t.split("domain_2"), RUN) for t in (task, other)]
    for name in fits[0].weights:
        assert same(fits[0].weights[name], fits[1].weights[name])
    assert fits[0].record["checks"] == fits[1].record["checks"]


def test_the_device_is_chosen_or_refused_with_what_is_here():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "mps", "xpu")
    with pytest.raises(InputError, match="expected 'auto', 'cpu'"):
        choose_device("gpu")
    if not torch.accelerator.is_available():
        with pytest.raises(InputError, match="'cuda' is not available here"):
            choose_device("cuda")


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
def test_an_accelerator_gives_the_same_bits_twice(theta, split):
    train = Trainer(tiny_network())
    assert same(train(theta, split, RUN), train(theta, split, RUN))


def test_no_state_file_is_left_without_a_workspace(theta, split, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Trainer(tiny_network(), loop=Loop(save_every=0.0))(theta, split, RUN)
    assert not list(Path(tmp_path).iterdir())


def test_a_training_keeps_what_it_is_asked_to_and_what_the_run_names(theta, split):
    run = RUN.with_(swad_start_patience=1)
    every = ("best", "last", "moving_average", "ema", "swad", "swad_released", "snapshots")
    whole = Trainer(tiny_network(), keep=every).fit(theta, split, run)
    assert set(whole.weights) == set(every)
    for keep, collect, expected in (
        (("last",), "best", {"last", "best"}),
        (("ema",), "ema", {"ema"}),
        ((), "swad", {"swad"}),
        (("best", "last"), "snapshots", {"best", "last", "snapshots"}),
    ):
        fit = Trainer(tiny_network(), keep=keep).fit(theta, split, run.with_(collect=collect))
        assert set(fit.weights) == expected
        for name in expected:  # whatever is kept beside it
            assert same(fit.weights[name], whole.weights[name])
        assert fit.record["checks"] == whole.record["checks"]
    assert set(whole.record) >= {"swad", "swad_released"}
    assert set(whole.record["swad"]) == {"window", "threshold", "ended"}


def test_an_unknown_collector_is_refused():
    with pytest.raises(InputError, match=r"keep: expected some of best, last, .*, got 'first'"):
        Trainer(tiny_network(), keep=("best", "first"))


def test_the_exponential_average_along_a_run_is_that_of_its_iterates(theta, split):
    run = RUN.with_(ema_decay=0.5, collect="ema", check_every=1)
    iterates, _ = slow_training(theta, split, run)
    fit = Trainer(tiny_network(), loop=Loop(device="cpu")).fit(theta, split, run)
    averages = []
    for first in (theta, iterates[0]):  # it may begin with the start or with the first iterate
        average = {name: value.double() for name, value in first.items()}
        for iterate in iterates if first is theta else iterates[1:]:
            average = {name: 0.5 * average[name] + 0.5 * iterate[name].double() for name in average}
        averages.append(average)
    gaps = [max((fit.weights["ema"][n] - a[n]).abs().max().item() for n in a) for a in averages]
    assert min(gaps) < 1e-5


def test_what_is_kept_and_what_is_watched_is_part_of_what_a_trainer_is_made_of():
    base = Trainer(tiny_network())
    others = [Trainer(tiny_network(), keep=("best",)), Trainer(tiny_network(), watch_left_out=True)]
    assert len({key_of(trainer.made_of()) for trainer in (base, *others)}) == 3
    shuffled = Trainer(tiny_network(), keep=("last", "moving_average", "best", "best"))
    assert shuffled.made_of() == base.made_of()


def test_watching_the_left_out_domains_changes_the_record_alone(theta):
    split = tiny_task(domains=4).split("domain_2", without=("domain_0",), data_seed=1)
    run = RUN.with_(collect="last")
    plain = Trainer(tiny_network()).fit(theta, split, run)
    watched = Trainer(tiny_network(), watch_left_out=True).fit(theta, split, run)
    for name in plain.weights:
        assert same(plain.weights[name], watched.weights[name])
    for one, other in zip(plain.record["checks"], watched.record["checks"], strict=True):
        assert "left_out" not in one
        assert one == {key: value for key, value in other.items() if key != "left_out"}
    # The parts are those into which the domain would be divided, were it a source.
    sources = tiny_task(domains=4).split("domain_1", data_seed=1)
    model = tiny_network().build()
    model.load_state_dict(watched.weights["last"])
    model.eval()
    last = watched.record["checks"][-1]["left_out"]
    assert set(last) == {"domain_0", "domain_2"}
    for part, subsets in (("train", sources.train), ("validation", sources.validation)):
        for subset in subsets:
            if subset.name in last:
                images = split.task.transform.plain(subset.domain.images.read(subset.indices))
                right = model(images).logits.argmax(1) == torch.as_tensor(subset.labels)
                assert last[subset.name][part] == pytest.approx(right.double().mean().item())


def test_watching_with_nothing_left_out_records_nothing(theta):
    fit = Trainer(tiny_network(), watch_left_out=True).fit(theta, tiny_task().split(None), RUN)
    assert all("left_out" not in check for check in fit.record["checks"])


def test_augmented_validation_draws_anew_at_every_check_and_leaves_the_training_alone():
    random = np.random.default_rng(0)
    domains = [
        Domain(name, ArrayImages(random.integers(0, 256, (30, 3, 12, 12), dtype=np.uint8)), np.arange(30) % 3)
        for name in ("a", "b", "c")
    ]
    task = make_task("colours", ["x", "y", "z"], domains, Transform(12), image_digests=["1", "2", "3"])
    network = NetworkSpec(name="mnist_cnn", classes=3, channels=3, width=8)
    split, theta, run = task.split("c"), initial_weights(network), RUN.with_(collect="last", check_every=1)
    runs = (run, run.with_(augment_validation=True), run.with_(augment_validation=True))
    plain, augmented, again = (Trainer(network).fit(theta, split, each) for each in runs)
    assert same(plain.weights["last"], augmented.weights["last"])
    assert augmented.record["checks"] == again.record["checks"]
    losses = [[check["loss"] for check in fit.record["checks"]] for fit in (plain, augmented)]
    assert all(one != other for one, other in zip(*losses, strict=True))
    still = run.with_(learning_rate=1e-30, augment_validation=True)  # the weights stay, the images do not
    drawn = {check["loss"] for check in Trainer(network).fit(theta, split, still).record["checks"]}
    assert len(drawn) == run.steps
    # A left-out domain is looked at as the test looks at it.
    watched = Trainer(network, watch_left_out=True).fit(theta, split, still).record["checks"]
    assert len({str(check["left_out"]) for check in watched}) == 1
