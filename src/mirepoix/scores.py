"""Scores: the value of weights on held-out data, for selections and connectivity.

A score is any function of weights (`mirepoix.types.Score`): one of your own, found by its name, or that of a known
network on a folder of images. What it is given may be lazy, NumPy's or torch's. Higher is better.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from mirepoix.checkpoints import fingerprint, read_json, write_json
from mirepoix.seeds import stream
from mirepoix.types import Batch, InputError, Score, Weights

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from mirepoix.data import Split, Subset, Task
    from mirepoix.models import NetworkSpec

__all__ = ["ClassificationScore", "cached_score", "load_score", "validation_folder"]

Metric: TypeAlias = Literal["accuracy", "nll"]


def load_score(name: str) -> Score:
    """A score of your own: a function of weights in a module, by its name.

    The module is imported as ``python -m`` would import it, so the current folder comes first, and stays on the
    path for what the function imports later. The file is run: name only modules that you trust.

    Args:
        name: ``module:function``, such as ``my_scores:robust_accuracy`` for the file ``my_scores.py``.

    Raises:
        InputError: For a name of another form; for a module that is not found or does not import; for a function
            that is not in it or cannot be called; later, when the function raises, with what and where.
    """
    module_name, colon, function = name.partition(":")
    if not (colon and module_name and function):
        raise InputError(f"score: expected 'module:function', got {name!r}, such as 'my_scores:accuracy'.")
    if module_name.endswith(".py") or "/" in module_name:
        stem = Path(module_name).stem
        raise InputError(
            f"score: expected the name of a module, got the path {module_name!r}. Name it {stem!r}."
        )
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # the module is a stranger's: it may raise anything
        parts = module_name.split(".")
        missing = {".".join(parts[: n + 1]) for n in range(len(parts))}
        if isinstance(error, ModuleNotFoundError) and error.name in missing:
            raise InputError(
                f"score: there is no module {error.name!r} in {here} or installed. Go to its folder, or install it."
            ) from None
        raise InputError(
            f"score: module {module_name!r} could not be imported: {type(error).__name__}: {error}."
        ) from error
    for part in function.split("."):
        if not hasattr(found, part):
            names = (
                [each for each in vars(found) if not each.startswith("_")]
                if hasattr(found, "__dict__")
                else []
            )
            near = get_close_matches(part, names, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise InputError(f"score: module {module_name!r} has no {function!r}.{hint}")
        found = getattr(found, part)
    if not callable(found):
        raise InputError(f"score: expected {name!r} to be a function of weights, got {type(found).__name__}.")

    def score(theta: Weights) -> Any:
        try:
            return found(theta)
        except InputError:
            raise
        except Exception as error:  # what a stranger's function raises is for its author, with the place
            own = getattr(getattr(found, "__code__", None), "co_filename", None)
            every = traceback.extract_tb(error.__traceback__)[1:]
            frames = [frame for frame in every if frame.filename == own] or every
            place = (
                f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}"
                if frames
                else "an unknown place"
            )
            where = getattr(theta, "path", None)
            on = f" on {where}" if where is not None else ""
            raise InputError(
                f"score: {name} failed{on}: {type(error).__name__}: {error} ({place})."
            ) from error

    return score


def cached_score(
    score: Callable[[Weights], Any], folder: str | os.PathLike[str], key: str
) -> Callable[[Weights], Any]:
    """The same score, with each result kept in a file, so that equal weights are evaluated once.

    Weights are recognised by `mirepoix.checkpoints.fingerprint`, for which all of them are read. Processes may share
    the folder.

    Args:
        score: Returns a number, or one number per sample.
        folder: Where results are kept, one JSON file each; it is created.
        key: Stands for the score: its name, its data, its version. Another score needs another key.

    Raises:
        InputError: When a file in the folder is damaged.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    def lookup(theta: Weights) -> Any:
        digest = fingerprint(theta)
        name = hashlib.sha256(json.dumps([key, digest]).encode()).hexdigest()[:32]
        path = folder / f"{name}.json"
        if not path.exists():
            result = np.asarray(_on_cpu(score(theta)), dtype=np.float64)
            # As texts: they keep every bit, and JSON has no NaN.
            values = np.vectorize(repr, otypes=[object])(result.astype(object)).tolist()
            write_json(path, {"key": key, "fingerprint": digest, "value": values})
        kept = read_json(path)
        if not isinstance(kept, dict) or (kept.get("key"), kept.get("fingerprint")) != (key, digest):
            raise InputError(
                f"{path}: expected the score {key!r} of {digest[:12]}, got another. Remove the file."
            )
        try:
            value = np.array(kept["value"], dtype=np.float64)
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{path}: expected numbers, got something else. Remove the file.") from None
        return float(value) if value.ndim == 0 else value

    return lookup


def _on_cpu(value: Any) -> Any:
    return value.detach().cpu() if hasattr(value, "detach") else value


class ClassificationScore:
    r"""Accuracy, or minus the negative log-likelihood, of a network's weights on labelled images.

    Called with weights, it returns one number of which higher is better: the accuracy as a fraction, or minus the
    mean of :math:`-\log p(y)` in nats. The network is in evaluation mode and images are not augmented. Weights may
    have our names or those of timm, torchvision or the CIFAR files, with their classifier (see
    `mirepoix.models.load_pretrained`).

    Args:
        network: The architecture; its classes are those of the images.
        validation: A split, whose ID validation images are used, or a task, of which all images are used.
        metric: ``accuracy`` or ``nll``.
        batch_size: Images at a time; of `loss`, per step.
        device: ``auto`` is the accelerator if there is one.

    Attributes:
        higher_is_better: Of the values of `samples`: true for accuracy, false for nll.
        labels: The true classes.
        key: Stands for network, images and metric; for `cached_score`.

    Raises:
        InputError: For an unknown metric or device; when the classes of network and images are not as many.
    """

    def __init__(
        self,
        network: NetworkSpec,
        validation: Split | Task,
        *,
        metric: Metric = "accuracy",
        batch_size: int = 256,
        device: str = "auto",
    ) -> None:
        from mirepoix.data import Split, Subset
        from mirepoix.training import choose_device

        if metric not in get_args(Metric):
            raise InputError(f"metric: expected 'accuracy' or 'nll', got {metric!r}.")
        if isinstance(validation, Split):
            self.task, self.subsets = validation.task, validation.validation
        else:
            self.task = validation
            self.subsets = tuple(
                Subset(domain, number, np.arange(len(domain)))
                for number, domain in enumerate(validation.domains)
            )
        if network.classes != len(self.task.classes):
            raise InputError(
                f"network.classes: expected the {len(self.task.classes)} classes of {self.task.name}, "
                f"got {network.classes}."
            )
        self.network = network
        self.metric = metric
        self.higher_is_better = metric == "accuracy"
        self.batch_size = batch_size
        self.device = choose_device(device)
        self.labels = np.concatenate([subset.labels for subset in self.subsets])
        self.key = json.dumps([metric, validation.digest, network.to_dict()], sort_keys=True)
        self._model = network.build().to(self.device).eval()

    @staticmethod
    def of_folder(
        name: str,
        folder: str | os.PathLike[str],
        *,
        width: int | None = None,
        size: int | None = None,
        metric: Metric = "accuracy",
        batch_size: int = 256,
        device: str = "auto",
        skip_unreadable: bool = False,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> ClassificationScore:
        """The score of a named network on a folder of images.

        Args:
            name: Of the network, as in `mirepoix.models.NetworkSpec`: ``timm:resnet18``, ``cifar_resnet20``, ...
            folder: As for `validation_folder`.
            width: Of ``mnist_cnn`` alone.
            size: Side in pixels of what the network sees; by default, what it was designed for.
            metric: ``accuracy`` or ``nll``.
            batch_size: Images at a time.
            device: ``auto`` is the accelerator if there is one.
            skip_unreadable: Leave unreadable pictures out, with a note in the task, instead of raising.
            progress: Called with (done, total, "reading images").

        Raises:
            InputError: For an unknown network, or what `validation_folder` refuses.
        """
        from mirepoix.models import NetworkSpec, input_size_hint

        side = input_size_hint(NetworkSpec(name=name, classes=1, width=width)) if size is None else size
        task = validation_folder(folder, size=side, skip_unreadable=skip_unreadable, progress=progress)
        network = NetworkSpec(name=name, classes=len(task.classes), width=width)
        return ClassificationScore(network, task, metric=metric, batch_size=batch_size, device=device)

    def __call__(self, theta: Weights) -> float:
        """Higher is better: the accuracy, or minus the nll."""
        from mirepoix.metrics import accuracy, nll

        logits, labels = self._logits(theta)
        return float(accuracy(logits, labels)) if self.higher_is_better else -float(nll(logits, labels))

    def samples(self, theta: Weights) -> NDArray[np.float64]:
        """One value per image: whether it is classified correctly, or its nll."""
        from mirepoix.metrics import nll

        logits, labels = self._logits(theta)
        nll(logits, labels)  # refuses logits that are not numbers
        if self.higher_is_better:
            values = logits.argmax(1) == labels
        else:
            values = -logits.double().log_softmax(1).gather(1, labels[:, None])[:, 0]
        return values.numpy().astype(np.float64)

    def check(self, theta: Weights) -> None:
        """Raise unless these are whole weights of the network.

        Raises:
            InputError: With the tensors that are missing, unexpected or of another shape, and the classes.
        """
        self._load(theta)

    def refresh(self, theta: Weights) -> dict[str, Tensor]:
        """The weights with batch-norm statistics measured on the same images, whose labels play no part."""
        from mirepoix.merging import reestimate_batch_norm

        self._load(theta)
        return reestimate_batch_norm(self._model, self._batches())

    def loss(self, theta: Weights, step: int) -> Tensor:
        """The mean nll of one minibatch, with a gradient, for `mirepoix.selection.learned_coefficients`.

        Args:
            theta: Torch tensors by the names of our networks (``featurizer.``, ``classifier.``).
            step: Which minibatch: ``batch_size`` images drawn without replacement, from this number alone.

        Raises:
            InputError: For other names.
        """
        import torch
        from torch.func import functional_call
        from torch.nn.functional import cross_entropy

        if set(theta) != set(self._model.state_dict()):
            raise InputError(
                "loss: expected weights with the names of our networks (featurizer., classifier.). Convert them with "
                "mirepoix.models.load_pretrained(network, theta, keep_classifier=True)."
            )
        count = min(self.batch_size, len(self.labels))
        picks = np.sort(stream("loss", step).choice(len(self.labels), size=count, replace=False))
        batches = list(self._batches(picks))
        placed = {name: tensor.to(self.device) for name, tensor in theta.items()}
        outputs = functional_call(self._model, placed, (torch.cat([batch.images for batch in batches]),))
        return cross_entropy(outputs.logits, torch.cat([batch.labels for batch in batches]))

    def _load(self, theta: Weights) -> None:
        from mirepoix.models import load_pretrained

        try:
            self._model.load_state_dict(load_pretrained(self.network, theta, keep_classifier=True))
        except InputError as error:
            classes = self.task.classes
            some = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
            raise InputError(
                f"{error} The images of {self.task.name} have {len(classes)} classes ({some}); the classifier of "
                f"{self.network.name} needs the same ones, in this order."
            ) from None

    def _logits(self, theta: Weights) -> tuple[Tensor, Tensor]:
        import torch

        from mirepoix.predictions import predict

        self._load(theta)
        return predict(self._model, self._batches()), torch.from_numpy(self.labels)

    def _batches(self, picks: NDArray[np.int64] | None = None) -> Iterator[Batch]:
        """All images in order, or the picked ones."""
        from mirepoix.data import Subset, evaluation_batches

        subsets: list[Subset] = []
        first = 0
        for subset in self.subsets:
            indices = subset.indices
            if picks is not None:
                indices = indices[picks[(first <= picks) & (picks < first + len(subset))] - first]
            subsets.append(Subset(subset.domain, subset.number, indices))
            first += len(subset)
        return chain.from_iterable(
            evaluation_batches(subset, self.task.transform, batch_size=self.batch_size, device=self.device)
            for subset in subsets
        )


def validation_folder(
    path: str | os.PathLike[str],
    *,
    size: int,
    skip_unreadable: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> Task:
    """Labelled images in a folder with one sub-folder per class, or with domains that have them.

    Classes are the sub-folders, sorted by name, those of all domains together; an empty one counts, so that a class
    without images here moves no label.

    Args:
        path: ``<path>/<class>/<picture>`` or ``<path>/<domain>/<class>/<picture>``.
        size: Side in pixels of what the network sees.
        skip_unreadable: Leave unreadable pictures out, with a note, instead of raising.
        progress: Called with (done, total, "reading images").

    Raises:
        InputError: For a missing folder; when both forms are mixed; for fewer than two classes; without pictures,
            or when some cannot be read.
    """
    # The pieces of `folder_task`, which wants two domains, as it is for leaving one out.
    from mirepoix.data import Transform, _folder
    from mirepoix.data._cache import read_pictures
    from mirepoix.data._decode import FilePicture

    root = Path(path)
    domains = _domain_folders(root)
    listings = {domain.resolve().name: _folder._listing(domain).pictures for domain in domains}
    classes = _folder.check_classes(
        root, {folder.name for domain in domains for folder in _folder.subfolders(domain)}
    )
    shelves, notes = read_pictures(
        [
            [FilePicture(file) for label in classes for file in pictures.get(label, ())]
            for pictures in listings.values()
        ],
        size=size,
        key=None,
        skip_unreadable=skip_unreadable,
        progress=progress,
    )
    labels = [
        np.repeat(np.arange(len(classes)), [len(pictures.get(label, ())) for label in classes])
        for pictures in listings.values()
    ]
    transform = Transform(size, augmentation="none")
    return _folder.assemble(str(root), classes, list(listings), labels, shelves, transform, notes)


def _domain_folders(root: Path) -> list[Path]:
    """The folder itself if classes are in it, or else its sub-folders."""
    from mirepoix.data._folder import _listing, subfolders

    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise InputError(f"expected a folder of images, got {root}, which {what}. Check the path.")
    folders = subfolders(root)
    classes = [folder for folder in folders if _has_pictures(folder)]
    domains = [folder for folder in folders if folder not in classes and _listing(folder).pictures]
    if domains and classes:
        raise InputError(
            f"{root}: expected <class>/<picture> or <domain>/<class>/<picture> throughout, got pictures in "
            f"{classes[0].name} and sub-folders with pictures in {domains[0].name}. Move one of them."
        )
    if not domains and not classes:
        raise InputError(
            f"{root}: expected pictures in <class>/ or in <domain>/<class>/, got none. Check the path."
        )
    return folders if domains else [root]


def _has_pictures(folder: Path) -> bool:
    from mirepoix.data._folder import EXTENSIONS

    return any(file.suffix.lower() in EXTENSIONS and file.is_file() for file in folder.iterdir())
