import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from mirepoix.checkpoints import open_weights, write_weights
from mirepoix.data import digits_task, evaluation_batches
from mirepoix.merging import reestimate_batch_norm
from mirepoix.models import NetworkSpec, initial_weights
from mirepoix.scores import ClassificationScore, cached_score, load_score, validation_folder
from mirepoix.types import InputError
from tests.cli.conftest import make_folder
from tests.tiny import tiny_network, tiny_task

# A score by its name.


@pytest.fixture
def module(monkeypatch, tmp_path):
    """Writes a module into a current folder of its own; both are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)

    def write(text, name="own_scores"):
        (tmp_path / f"{name}.py").write_text(text)

    yield write
    for name in set(sys.modules) - before:
        if name.startswith("own_"):
            del sys.modules[name]


def test_a_score_is_found_in_the_current_folder(module):
    module("import own_other\ndef score(theta):\n    return own_other.SHIFT + theta['w']")
    module("SHIFT = 1", "own_other")
    assert load_score("own_scores:score")({"w": 2}) == 3


def test_a_score_is_found_in_what_is_installed_and_inside_of_classes():
    assert load_score("math:sqrt")(2.0) == math.sqrt(2.0)
    assert load_score("collections:OrderedDict.fromkeys")("ab") == {"a": None, "b": None}


def test_what_a_score_raises_is_told_with_its_place(module):
    module("def score(theta):\n    x = 1\n    return theta['w']")
    with pytest.raises(InputError, match=r"own_scores:score failed: KeyError: 'w' \(own_scores.py, line 3\)"):
        load_score("own_scores:score")({})


def test_what_is_no_score_is_an_error_that_says_why(module, tmp_path):
    module("def accuracy(theta):\n    return 1\nvalue = 3")
    module("import own_nowhere", "own_broken")
    module("1 / 0", "own_raising")
    for name, match in (
        ("own_scores", "expected 'module:function', got 'own_scores'"),
        (":f", "expected 'module:function', got ':f'"),
        ("own_scores:", "expected 'module:function', got 'own_scores:'"),
        ("own_scores.py:accuracy", "got the path 'own_scores.py'. Name it 'own_scores'"),
        ("own_missing:f", f"there is no module 'own_missing' in {tmp_path} or installed"),
        ("own_scores:acuracy", "has no 'acuracy'. Did you mean 'accuracy'?"),
        ("own_scores:value", "expected 'own_scores:value' to be a function of weights, got int"),
        ("own_broken:f", "could not be imported: ModuleNotFoundError: No module named 'own_nowhere'"),
        ("own_raising:f", "could not be imported: ZeroDivisionError: division by zero"),
    ):
        with pytest.raises(InputError) as error:
            load_score(name)
        assert match in str(error.value)


def test_selections_scores_and_the_landscape_load_torch_only_when_they_need_it():
    code = (
        "import sys, mirepoix.selection, mirepoix.scores, mirepoix.landscape; print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


# The score of a network.


@pytest.fixture(scope="module")
def split():
    return tiny_task(domains=3, images=30).split("domain_1")


def logits_by_hand(spec, theta, split):
    network = spec.build().eval()
    network.load_state_dict(theta)
    parts = [
        network(batch.images).logits
        for subset in split.validation
        for batch in evaluation_batches(subset, split.task.transform, batch_size=1)
    ]
    labels = np.concatenate([subset.labels for subset in split.validation])
    return torch.cat(parts).detach(), torch.from_numpy(labels)


def test_scores_and_samples_are_those_of_a_loop_over_images(split):
    spec = tiny_network()
    theta = initial_weights(spec, seed=3)
    logits, labels = logits_by_hand(spec, theta, split)
    right = (logits.argmax(1) == labels).numpy()
    nll = torch.nn.functional.cross_entropy(logits, labels, reduction="none").numpy()
    assert 0 < right.mean() < 1

    accuracy = ClassificationScore(spec, split, batch_size=7, device="cpu")
    assert accuracy.higher_is_better
    assert accuracy(theta) == pytest.approx(right.mean())
    assert accuracy.samples(theta).tolist() == right.astype(float).tolist()
    assert accuracy.labels.tolist() == labels.tolist()

    loss = ClassificationScore(spec, split, metric="nll", batch_size=7, device="cpu")
    assert not loss.higher_is_better
    assert loss(theta) == pytest.approx(-nll.mean(), rel=1e-5)
    assert loss.samples(theta) == pytest.approx(nll, rel=1e-4)


def test_all_images_of_a_task_are_used():
    task = tiny_task(domains=2, images=10)
    score = ClassificationScore(tiny_network(), task, device="cpu")
    assert len(score.samples(initial_weights(tiny_network()))) == 20
    assert score.labels.tolist() == [0, 1] * 10


def test_the_accelerator_gives_the_scores_of_the_processor(split):
    """On a machine without one, both are the processor."""
    spec = tiny_network()
    theta = initial_weights(spec, seed=3)
    here = ClassificationScore(spec, split, metric="nll")
    there = ClassificationScore(spec, split, metric="nll", device="cpu")
    assert here.samples(theta) == pytest.approx(there.samples(theta), rel=1e-3)
    assert float(here.loss(theta, 0)) == pytest.approx(float(there.loss(theta, 0)), rel=1e-3)
    assert here.refresh(theta)["classifier.bias"].device.type == "cpu"


def test_weights_may_be_lazy_arrays_of_half_precision_or_have_other_names(split, tmp_path):
    spec = tiny_network()
    score = ClassificationScore(spec, split, metric="nll", device="cpu")
    theta = initial_weights(spec, seed=3)
    expected = score(theta)
    write_weights(tmp_path / "a.safetensors", theta)
    assert score(open_weights(tmp_path / "a.safetensors")) == expected
    assert score(open_weights(tmp_path / "a.safetensors", framework="numpy")) == expected
    bare = {
        name.replace("classifier.", "fc.").removeprefix("featurizer."): tensor
        for name, tensor in theta.items()
    }
    assert score(bare) == expected
    assert score({name: tensor.bfloat16() for name, tensor in theta.items()}) == pytest.approx(
        expected, rel=0.05
    )


def test_weights_that_do_not_fit_are_an_error_with_the_classes(split):
    score = ClassificationScore(tiny_network(), split, device="cpu")
    other = initial_weights(tiny_network(classes=5))
    with pytest.raises(InputError) as error:
        score(other)
    assert "classifier.weight, expected shape (2, 16), got shape (5, 16)" in str(error.value)
    assert "The images of tiny have 2 classes (0, 1); the classifier of mnist_cnn needs the same" in str(
        error.value
    )
    with pytest.raises(InputError, match="missing: featurizer"):
        score.check({"w": torch.zeros(2)})
    score.check(initial_weights(tiny_network()))


def test_the_options_are_checked(split):
    with pytest.raises(InputError, match="metric: expected 'accuracy' or 'nll', got 'f1'"):
        ClassificationScore(tiny_network(), split, metric="f1")
    with pytest.raises(InputError, match=r"network.classes: expected the 2 classes of tiny, got 3"):
        ClassificationScore(tiny_network(classes=3), split)
    with pytest.raises(InputError, match="device: expected"):
        ClassificationScore(tiny_network(), split, device="toaster")
    score = ClassificationScore(tiny_network(), split, device="cpu")
    broken = {name: tensor * math.nan for name, tensor in initial_weights(tiny_network()).items()}
    for call in (score, score.samples):
        with pytest.raises(InputError, match="logits must be numbers"):
            call(broken)


def test_the_loss_of_all_images_is_the_nll_and_has_its_gradient(split):
    spec = tiny_network()
    score = ClassificationScore(spec, split, metric="nll", batch_size=1000, device="cpu")
    leaves = {name: tensor.requires_grad_() for name, tensor in initial_weights(spec, seed=3).items()}
    loss = score.loss(leaves, 0)
    assert float(loss.detach()) == pytest.approx(-score(leaves), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, [leaves["classifier.bias"]])
    logits, labels = logits_by_hand(spec, leaves, split)
    expected = (logits.softmax(1) - torch.nn.functional.one_hot(labels, 2)).mean(0)
    assert gradient.tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_the_minibatch_of_the_loss_depends_on_the_step_alone(split):
    score = ClassificationScore(tiny_network(), split, batch_size=3, device="cpu")
    theta = initial_weights(tiny_network(), seed=3)
    losses = [float(score.loss(theta, step)) for step in (0, 1, 2, 0)]
    assert losses[0] == losses[3]
    assert len(set(losses)) == 3
    with pytest.raises(InputError, match="expected weights with the names of our networks"):
        score.loss({"fc.weight": torch.zeros(2)}, 0)


def test_refreshed_weights_have_the_statistics_of_the_images():
    spec = NetworkSpec(name="cifar_resnet20", classes=2, channels=1)
    task = tiny_task(domains=2, images=20)
    score = ClassificationScore(spec, task, batch_size=8, device="cpu")
    theta = initial_weights(spec, seed=1)
    network = spec.build()
    network.load_state_dict(theta)
    batches = [
        batch
        for subset in score.subsets
        for batch in evaluation_batches(subset, task.transform, batch_size=8)
    ]
    expected, got = reestimate_batch_norm(network, batches), score.refresh(theta)
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert not torch.equal(got["featurizer.bn1.running_mean"], theta["featurizer.bn1.running_mean"])
    assert score.samples(got).shape == (40,)


def test_keys_tell_metric_network_and_images_apart(split):
    spec = tiny_network()
    keys = {
        ClassificationScore(spec, split, device="cpu").key,
        ClassificationScore(spec, split, metric="nll", device="cpu").key,
        ClassificationScore(spec, split.task, device="cpu").key,
        ClassificationScore(spec, split.task.split("domain_2"), device="cpu").key,
        ClassificationScore(
            NetworkSpec(name="mnist_cnn", classes=2, channels=1, width=16), split, device="cpu"
        ).key,
    }
    assert len(keys) == 5
    assert ClassificationScore(spec, split, device="cpu", batch_size=1).key in keys


def test_digits_are_scored_on_id_validation():
    split = digits_task(size=8).split("rotated_0")
    spec = NetworkSpec(name="mnist_cnn", classes=10, channels=1, width=8)
    score = ClassificationScore(spec, split, device="cpu")
    assert len(score.labels) == sum(len(subset) for subset in split.validation)
    assert 0 <= score(initial_weights(spec)) < 0.5


# A folder of images.


def make_classes(path, classes=("cat", "dog"), images=4):
    """``path/<class>/<picture>``."""
    make_folder(path.parent / "made", domains=("only",), classes=classes, images=images)
    (path.parent / "made" / "only").rename(path)
    return path


def test_one_folder_per_class(tmp_path):
    task = validation_folder(make_classes(tmp_path / "images", ("dog", "ant", "cat")), size=8)
    assert task.classes == ("ant", "cat", "dog")
    assert task.domain_names == ("images",)
    assert task.domains[0].labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    batch = next(iter(evaluation_batches(task.split(None).validation[0], task.transform)))
    assert batch.images.shape[1:] == (3, 8, 8)


def test_domains_with_one_folder_per_class(tmp_path):
    folder = make_folder(tmp_path / "images", domains=("a", "b"), images=3)
    task = validation_folder(folder, size=8)
    assert task.domain_names == ("a", "b")
    assert [domain.labels.tolist() for domain in task.domains] == [[0] * 3 + [1] * 3] * 2
    one = validation_folder(make_folder(tmp_path / "one", domains=("a",), images=3), size=8)
    assert one.domain_names == ("a",)


def test_a_class_folder_without_pictures_keeps_its_place(tmp_path):
    folder = make_classes(tmp_path / "images")
    (folder / "bee").mkdir()
    (folder / ".hidden").mkdir()
    task = validation_folder(folder, size=8)
    assert task.classes == ("bee", "cat", "dog")
    assert task.domains[0].labels.tolist() == [1] * 4 + [2] * 4
    assert any("'bee' is missing" in note for note in task.notes)


def test_folders_that_cannot_be_scored(tmp_path):
    def refused(path, match):
        with pytest.raises(InputError, match=match):
            validation_folder(path, size=8)

    refused(tmp_path / "nowhere", "nowhere, which does not exist")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "file, which is not a folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "got none. Check the path")
    refused(make_classes(tmp_path / "one", ("cat",)), "expected at least 2 classes, got 1: cat")
    mixed = make_folder(tmp_path / "mixed", domains=("a", "b"), images=1)
    (mixed / "a" / "cat" / "0.png").rename(mixed / "a" / "0.png")
    refused(mixed, "got pictures in a and sub-folders with pictures in b. Move one")
    domains = make_folder(tmp_path / "domains", domains=("a", "b"), images=1)
    (domains / "c").mkdir()
    refused(domains, "domain 'c' .* expected pictures, got none")


def test_unreadable_pictures_are_an_error_or_left_out_with_a_note(tmp_path):
    folder = make_classes(tmp_path / "images")
    (folder / "cat" / "9.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="1 of 9 pictures cannot be read"):
        validation_folder(folder, size=8)
    task = validation_folder(folder, size=8, skip_unreadable=True)
    assert task.domains[0].labels.tolist() == [0] * 4 + [1] * 4
    assert "1 unreadable" in task.notes[0]


def test_the_score_of_a_folder_knows_classes_and_size(tmp_path):
    folder = make_classes(tmp_path / "images")
    score = ClassificationScore.of_folder("mnist_cnn", folder, width=8, size=16, metric="nll", device="cpu")
    assert score.network == NetworkSpec(name="mnist_cnn", classes=2, channels=3, width=8)
    assert score.task.transform.size == 16
    assert score.task.transform.augmentation == "none"
    assert score(initial_weights(score.network)) < 0
    assert ClassificationScore.of_folder("cifar_resnet20", folder, device="cpu").task.transform.size == 32
    told = []
    ClassificationScore.of_folder(
        "mnist_cnn", folder, device="cpu", progress=lambda done, total, what: told.append((done, total))
    )
    assert told[-1] == (8, 8)


def test_pictures_are_seen_as_the_transform_sees_them(tmp_path):
    folder = tmp_path / "images"
    for label, value in (("a", 0), ("b", 255)):
        (folder / label).mkdir(parents=True)
        Image.new("L", (8, 8), value).save(folder / label / "0.png")
    task = validation_folder(folder, size=8)
    score = ClassificationScore(NetworkSpec(name="mnist_cnn", classes=2, width=8), task, device="cpu")
    black, white = next(iter(score._batches())).images[:, 0, 0, 0].tolist()
    assert (black, white) == pytest.approx((-0.485 / 0.229, 0.515 / 0.229), rel=1e-5)


# A score that remembers.


class Counted:
    def __init__(self, value):
        self.value, self.calls = value, 0

    def __call__(self, theta):
        self.calls += 1
        return self.value


@pytest.mark.parametrize("value", [0.1, -3, math.inf, -math.inf, 1e-300])
def test_equal_weights_are_scored_once_whatever_they_are_kept_in(value, tmp_path):
    score = Counted(value)
    theta = {"w": torch.tensor([1.0, 2.0])}
    cached = cached_score(score, tmp_path / "new" / "folder", "own")
    assert cached(theta) == value
    assert cached({"w": np.array([1, 2], np.float32)}) == value
    assert cached_score(score, tmp_path / "new" / "folder", "own")(theta) == value
    assert score.calls == 1
    cached({"w": torch.tensor([1.0, 3.0])})
    cached_score(score, tmp_path / "new" / "folder", "another")(theta)
    assert score.calls == 3
    assert len(list((tmp_path / "new" / "folder").iterdir())) == 3


def test_nan_and_values_per_sample_are_kept_bit_for_bit(tmp_path):
    assert math.isnan(cached_score(Counted(math.nan), tmp_path, "a")({"w": np.zeros(1)}))
    values = np.random.default_rng(0).normal(size=20)
    score = Counted(torch.from_numpy(values).requires_grad_())
    cached = cached_score(score, tmp_path, "b")
    for _ in range(2):
        assert np.array_equal(cached({"w": np.zeros(1)}), values)
    assert score.calls == 1


def test_a_damaged_or_foreign_file_is_an_error_that_names_it(tmp_path):
    cached = cached_score(Counted(1.0), tmp_path, "a")
    cached({"w": np.zeros(1)})
    (path,) = tmp_path.iterdir()
    kept = json.loads(path.read_text())
    for content, match in (
        ("{", "expected JSON"),
        ("[]", "expected the score 'a' of .* got another"),
        (json.dumps({**kept, "key": "b"}), "expected the score 'a' of .* got another"),
        (json.dumps({**kept, "value": "high"}), "expected numbers, got something else"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=match) as error:
            cached({"w": np.zeros(1)})
        assert str(path) in str(error.value)


def test_a_score_that_fails_leaves_no_file(tmp_path):
    def score(theta):
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        cached_score(score, tmp_path, "a")({"w": np.zeros(1)})
    assert not list(tmp_path.iterdir())
