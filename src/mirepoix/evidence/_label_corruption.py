r"""Wrong labels that an ensemble remembers and an average of weights forgets.

A model that was trained on a few wrong labels until it fits them repeats them. Combined with a model that was trained
on the right ones, does the mistake stay? An ensemble of predictions votes with the confidence that memorisation has; an
average of weights leaves the place where the mistake was stored. `corrupt_labels` makes the wrong labels,
`forgetting_curve` follows them from one model to the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from mirepoix.metrics import accuracy
from mirepoix.seeds import stream
from mirepoix.types import InputError, Weights
from mirepoix.weights import interpolate

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

__all__ = ["corrupt_labels", "forgetting_curve", "memorisation", "recovery"]


def corrupt_labels(
    labels: Int[Tensor, " samples"], classes: int, fraction: float, seed: int
) -> Int[Tensor, " samples"]:
    r"""Labels of which a share is wrong, each wrong class as likely as any other.

    The nearest whole number of samples to ``fraction`` times all is drawn without replacement, and each of them gets
    one of the ``classes - 1`` other classes. So where the result differs from ``labels`` is what was corrupted, and
    nothing else need be kept.

    Args:
        labels: The true classes.
        classes: How many classes there are.
        fraction: The share, from 0 to 1.
        seed: Of the samples and of their classes.

    Returns:
        New labels, in the dtype and on the device of the old.

    Raises:
        InputError: For a fraction outside [0, 1], fewer than two classes, or labels that are no classes.

    Example:
        >>> labels = torch.arange(10)
        >>> noisy = corrupt_labels(labels, 10, 0.2, seed=0)
        >>> int((noisy != labels).sum())
        2
    """
    _check_labels(labels, "labels")
    if not 0 <= fraction <= 1 or classes < 2:
        raise InputError(f"expected a fraction from 0 to 1 and two classes, got {fraction} and {classes}.")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        low, high = int(labels.min()), int(labels.max())
        raise InputError(f"labels: expected 0 to {classes - 1} for {classes} classes, got {low} to {high}.")
    random = stream("corrupt_labels", seed)
    count = math.floor(fraction * len(labels) + 0.5)
    where = torch.as_tensor(random.permutation(len(labels))[:count], device=labels.device)
    shift = torch.as_tensor(random.integers(1, classes, size=count), device=labels.device)
    noisy = labels.clone()
    noisy[where] = ((labels[where].long() + shift) % classes).to(labels.dtype)
    return noisy


def memorisation(
    predicted: Int[Tensor, " samples"], labels: Int[Tensor, " samples"], corrupted: Int[Tensor, " samples"]
) -> float:
    r"""How often the wrong label is repeated, among the samples that have one.

    .. math:: P(\hat y = \tilde y \mid \tilde y \ne y).

    In [0, 1]; a model that has not seen the wrong labels repeats about its share of other mistakes. NaN where no label
    is wrong.

    Args:
        predicted: The predicted classes.
        labels: The true classes, y.
        corrupted: The classes trained on, :math:`\tilde y`, from `corrupt_labels`.

    Raises:
        InputError: For numbers of samples that differ, or what is no class.

    Example:
        >>> predicted, labels = torch.tensor([0, 1, 1, 2]), torch.tensor([0, 0, 0, 0])
        >>> memorisation(predicted, labels, corrupted=torch.tensor([0, 1, 2, 1]))  # of the last three, the first
        0.3333333333333333
    """
    return _share(predicted, labels, corrupted, corrupted)


def recovery(
    predicted: Int[Tensor, " samples"], labels: Int[Tensor, " samples"], corrupted: Int[Tensor, " samples"]
) -> float:
    r"""How often the true label is predicted all the same, among the samples that have a wrong one.

    .. math:: P(\hat y = y \mid \tilde y \ne y).

    In [0, 1]. With `memorisation` it sums to at most one: a third class may be predicted. NaN where no label is wrong.

    Args:
        predicted: The predicted classes.
        labels: The true classes, y.
        corrupted: The classes trained on, :math:`\tilde y`, from `corrupt_labels`.

    Raises:
        InputError: As in `memorisation`.

    Example:
        >>> predicted, labels = torch.tensor([0, 1, 0, 0]), torch.tensor([0, 0, 0, 0])
        >>> recovery(predicted, labels, corrupted=torch.tensor([0, 1, 2, 1]))  # of the last three, two
        0.6666666666666666
    """
    return _share(predicted, labels, corrupted, labels)


def forgetting_curve(
    theta_a: Weights,
    theta_b: Weights,
    predict: Callable[[Weights], Float[Tensor, "samples classes"]],
    labels: Int[Tensor, " samples"],
    corrupted: Int[Tensor, " samples"],
    *,
    test_predict: Callable[[Weights], Float[Tensor, "others classes"]] | None = None,
    test_labels: Int[Tensor, " others"] | None = None,
    lambdas: Sequence[float] = tuple(k / 10 for k in range(11)),
) -> dict[str, Any]:
    r"""What is left of A's wrong labels between A and B, in weights and in predictions.

    For each :math:`\lambda`, three models that are A at 0 and B at 1:

    .. math::
        \text{average}&: f\big((1 - \lambda) \theta_A + \lambda \theta_B\big), \\
        \text{logits}&: (1 - \lambda) f(\theta_A) + \lambda f(\theta_B), \\
        \text{probabilities}&: (1 - \lambda) \operatorname{softmax} f(\theta_A) + \lambda \operatorname{softmax}
        f(\theta_B).

    Args:
        theta_a: Trained on ``corrupted`` until it fits them.
        theta_b: Trained on ``labels`` from the same start, or on other wrong labels.
        predict: The logits of weights on the training samples, without augmentation. Networks with batch norm may
            re-estimate its statistics here.
        labels: The true classes of these samples.
        corrupted: What A was given for them.
        test_predict: The same for samples that no model was trained on.
        test_labels: Their true classes.
        lambdas: The coefficients of B, from 0 to 1.

    Returns:
        ``samples`` and ``wrong_labels``, two counts, and ``average``, ``logits`` and ``probabilities``: for each
        :math:`\lambda` a point with ``lambda``, `memorisation`, `recovery`, ``accuracy``, of the true labels on the
        samples that were not corrupted, and ``test_accuracy``. What is not defined is None.

    Raises:
        InputError: For coefficients outside [0, 1]; for a test without labels or the other way round; for predictions,
            labels or weights that do not fit each other.

    Example:
        >>> a, b = {"w": torch.tensor([[0.0, 3.0]])}, {"w": torch.tensor([[2.0, 0.0]])}
        >>> found = forgetting_curve(a, b, lambda theta: theta["w"], torch.tensor([0]), torch.tensor([1]))
        >>> [point["memorisation"] for point in found["average"]]
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]

    References:
        The idea: Ramé et al. (2024), WARM: on the benefits of weight averaged reward models. The measures are defined
        here; ``examples/label_corruption.py`` uses them.
    """
    _check_triple(labels, labels, corrupted)
    shares = [float(share) for share in lambdas]
    if not shares or not all(0 <= share <= 1 for share in shares):
        raise InputError(f"lambdas: expected numbers from 0 to 1, got {shares}.")
    if (test_predict is None) != (test_labels is None):
        raise InputError("expected test_predict and test_labels together, got one of them.")
    clean = corrupted == labels
    models = [(predict, labels)]
    if test_predict is not None and test_labels is not None:
        models.append((test_predict, test_labels))

    def point(share: float, outputs: Sequence[Tensor]) -> dict[str, Any]:
        predicted = outputs[0].argmax(-1)
        return {
            "lambda": share,
            "memorisation": _known(memorisation(predicted, labels, corrupted)),
            "recovery": _known(recovery(predicted, labels, corrupted)),
            "accuracy": float(accuracy(outputs[0][clean], labels[clean])) if clean.any() else None,
            "test_accuracy": None if test_labels is None else float(accuracy(outputs[1], test_labels)),
        }

    named = (("A", theta_a), ("B", theta_b))
    ends = [[_outputs(f(theta), y, name) for f, y in models] for name, theta in named]
    found: dict[str, Any] = {"samples": len(labels), "wrong_labels": int((~clean).sum())}
    averaged, by_logits, by_probabilities = [], [], []
    for share in shares:
        if share in (0, 1):
            outputs = ends[int(share)]
        else:
            theta = interpolate([theta_a, theta_b], [1 - share, share])
            outputs = [_outputs(f(theta), y, f"the average at {share}") for f, y in models]
        averaged.append(point(share, outputs))
        pairs = list(zip(*ends, strict=True))
        by_logits.append(point(share, [_mix(a, b, share) for a, b in pairs]))
        log_mixtures = [_mix(a.softmax(-1), b.softmax(-1), share).log() for a, b in pairs]
        by_probabilities.append(point(share, log_mixtures))
    return found | {"average": averaged, "logits": by_logits, "probabilities": by_probabilities}


def _mix(a: Tensor, b: Tensor, share: float) -> Tensor:
    """At an end, that end: infinity times zero is no number."""
    if share in (0, 1):
        return b if share else a
    return (1 - share) * a + share * b


def _share(predicted: Tensor, labels: Tensor, corrupted: Tensor, wanted: Tensor) -> float:
    """How often the wanted class is predicted where the label is wrong."""
    _check_triple(predicted, labels, corrupted)
    wrong = corrupted != labels
    count = int(wrong.sum())
    return int((predicted == wanted)[wrong].sum()) / count if count else math.nan


def _outputs(logits: Tensor, labels: Tensor, where: str) -> Tensor:
    if logits.ndim != 2 or len(logits) != len(labels):
        raise InputError(
            f"predict: expected logits of shape ({len(labels)}, classes) for {where}, got {tuple(logits.shape)}."
        )
    return logits.detach().double()


def _check_triple(predicted: Tensor, labels: Tensor, corrupted: Tensor) -> None:
    for name, classes in (("predicted", predicted), ("labels", labels), ("corrupted", corrupted)):
        _check_labels(classes, name)
        if len(classes) != len(labels):
            raise InputError(
                f"{name}: expected {len(labels)} classes, one for each label, got {len(classes)}."
            )


def _check_labels(labels: Tensor, name: str) -> None:
    if labels.ndim != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
        raise InputError(
            f"{name}: expected classes of shape (samples,), got {labels.dtype} of shape {tuple(labels.shape)}."
        )


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
