"""The combination that keeps its members: an ensemble where an average would be one model."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from mirepoix.types import InputError, Weights

__all__ = ["Ensemble"]


class Ensemble:
    r"""Members kept as they are; their predictions are averaged, not their weights.

    .. math:: z(x) = \frac1M \sum_i f(x; \theta_i).

    It stands wherever `average` does, as the ``combine`` of a strategy. It costs as many predictions as there
    are members, which need not have the same architecture if ``predict`` knows how to run each.

    Args:
        thetas: The members; lazy ones stay lazy.

    Raises:
        InputError: Without members.

    Example:
        >>> ensemble = Ensemble([{"w": torch.tensor([[1.0, 0.0]])}, {"w": torch.tensor([[0.0, 3.0]])}])
        >>> ensemble.logits(lambda theta: torch.ones(1, 1) @ theta["w"])
        tensor([[0.5000, 1.5000]])
    """

    def __init__(self, thetas: Iterable[Weights]) -> None:
        self._thetas = tuple(thetas)
        if not self._thetas:
            raise InputError("an ensemble needs at least one member.")

    def __len__(self) -> int:
        return len(self._thetas)

    def __iter__(self) -> Iterator[Weights]:
        return iter(self._thetas)

    def __repr__(self) -> str:
        return f"Ensemble of {len(self)} members"

    def logits(self, predict: Callable[[Weights], Tensor]) -> Tensor:
        """The average of the logits of the members, one member at a time.

        Args:
            predict: From the weights of one member to logits, (samples, classes), for the same samples in
                the same order each time.

        Returns:
            As `average_logits` of all, (samples, classes), without holding them together; in float32 at
            least.

        Raises:
            InputError: When the logits of a member do not have the shape of those of the first.
        """
        total: Tensor | None = None
        for i, theta in enumerate(self._thetas):
            logits = predict(theta)
            if logits.ndim != 2 or (total is not None and logits.shape != total.shape):
                expected = "(samples, classes)" if total is None else f"{tuple(total.shape)}, as of member 0"
                raise InputError(
                    f"member {i} predicts logits of shape {tuple(logits.shape)}, not {expected}."
                )
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            total = logits if total is None else total + logits
        assert total is not None
        return total / len(self)
