"""Mutual information between the prediction and the member that makes it."""

import torch
from jaxtyping import Float
from torch import Tensor

from mirepoix.diversity._blocks import Block, accumulator, blocks

__all__ = ["mutual_information"]


def mutual_information(logits: Float[Tensor, "members samples classes"]) -> Float[Tensor, ""]:
    r"""How much more uncertain the mean of the members is than they are themselves, in nats.

    .. math:: \frac1N \sum_n \Big[ H(\bar p_n) - \frac1M \sum_i H(p_{in}) \Big], \qquad
              \bar p_n = \frac1M \sum_i p_{in},

    with the entropy :math:`H(p) = -\sum_k p_k \log p_k`: the Jensen-Shannon divergence of all members at once, and
    the part of the uncertainty that comes from their disagreement. Higher is more diverse. In
    :math:`[0, \log \min(M, K)]`: 0 for equal probabilities, :math:`\log M` if no class has a chance with two
    members. Always finite, logits of minus infinity included.

    Args:
        logits: A score per class.

    Returns:
        The mean over samples, in the dtype of the logits and in float32 at least. It is a difference of entropies: in
        float32, what is below about 1e-6 is rounding, which logits in float64 have not.

    Raises:
        InputError: With fewer than two members, or without samples; for logits whose largest is not finite.

    Example:
        >>> mutual_information(torch.tensor([[[0.0, -torch.inf]], [[-torch.inf, 0.0]]]))  # log 2
        tensor(0.6931)

    References:
        Houlsby et al. (2011), Bayesian active learning for classification and preference learning, equation 2;
        Depeweg et al. (2018).
    """
    sums = MutualInformationSums(len(logits))
    for block in blocks(logits):
        sums.add(block)
    return sums.result(logits)


class MutualInformationSums:
    """What is kept of the samples that were seen."""

    def __init__(self, members: int) -> None:
        self.members = members
        self.information = accumulator()

    def add(self, block: Block) -> None:
        """Add the samples of a block."""
        inside = -(block.p * block.log_p).sum(-1)  # (members, block)
        mean = block.p.mean(0)  # (block, classes)
        total = -torch.xlogy(mean, mean).sum(-1)
        self.information += (total - inside.sum(0) / self.members).sum().cpu().double()

    def result(self, logits: Tensor) -> Tensor:
        """The mean, where the logits are and as wide as they."""
        # It is never negative; below 0 there is nothing but rounding.
        mean = (self.information / logits.shape[1]).clamp(min=0)
        return mean.to(logits.device, torch.promote_types(logits.dtype, torch.float32))
