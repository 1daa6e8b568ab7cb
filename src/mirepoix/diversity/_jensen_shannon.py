"""Jensen-Shannon divergence between the probabilities of two members."""

import torch
from jaxtyping import Float
from torch import Tensor

from mirepoix.diversity._blocks import Block, accumulator, blocks
from mirepoix.diversity._pairs import mean_over_pairs

__all__ = ["jensen_shannon", "jensen_shannon_matrix"]


def jensen_shannon(logits: Float[Tensor, "members samples classes"]) -> Float[Tensor, ""]:
    r"""The divergence of two members from their mean, in nats.

    .. math:: \frac1N \sum_n \Big[ H(m_n) - \frac{H(p_{in}) + H(p_{jn})}{2} \Big], \qquad
              m_n = \frac{p_{in} + p_{jn}}{2},

    averaged over pairs. Higher is more diverse. In [0, log 2]: 0 for equal probabilities, log 2 if no class has a
    chance with both. Always finite, logits of minus infinity included. For two members it is `mutual_information`.

    Every pair needs a logarithm per sample and class: the time grows with the square of the members, as that of
    `kullback_leibler` does, but with a much larger constant.

    Args:
        logits: A score per class.

    Returns:
        The mean over pairs, in the dtype of the logits and in float32 at least. It is a difference of entropies: in
        float32, what is below about 1e-6 is rounding, which logits in float64 have not.

    Raises:
        InputError: With fewer than two members, or without samples; for logits whose largest is not finite.

    Example:
        >>> jensen_shannon(torch.tensor([[[0.0, -torch.inf]], [[-torch.inf, 0.0]]]))  # log 2
        tensor(0.6931)

    References:
        Lin (1991), Divergence measures based on the Shannon entropy; here with equal weights.
    """
    return mean_over_pairs(jensen_shannon_matrix(logits))


def jensen_shannon_matrix(
    logits: Float[Tensor, "members samples classes"],
) -> Float[Tensor, "members members"]:
    """The divergence between each pair of members, symmetric; 0 on the diagonal.

    Args:
        logits: A score per class.

    Raises:
        InputError: As in `jensen_shannon`.

    Example:
        >>> jensen_shannon_matrix(torch.tensor([[[0.0, -torch.inf]], [[-torch.inf, 0.0]]]))
        tensor([[0.0000, 0.6931],
                [0.6931, 0.0000]])
    """
    sums = JensenShannonSums(len(logits))
    for block in blocks(logits):
        sums.add(block)
    return sums.result(logits)


class JensenShannonSums:
    """What is kept of the samples that were seen."""

    def __init__(self, members: int) -> None:
        self.divergences = accumulator(members, members)

    def add(self, block: Block) -> None:
        """Add the samples of a block."""
        entropies = -(block.p * block.log_p).sum(-1)  # (members, block)
        tiny = torch.finfo(block.p.dtype).tiny
        for i in range(len(block.p) - 1):
            mean = (block.p[i] + block.p[i + 1 :]) / 2  # (members - i - 1, block, classes)
            entropy = -(mean.clamp(min=tiny).log_().mul_(mean)).sum(-1)
            divergence = entropy - (entropies[i] + entropies[i + 1 :]) / 2
            self.divergences[i, i + 1 :] += divergence.sum(1).cpu().double()

    def result(self, logits: Tensor) -> Tensor:
        """The divergences, where the logits are and as wide as they."""
        # It is never negative; below 0 there is nothing but rounding.
        divergence = (self.divergences / logits.shape[1]).clamp(min=0)
        divergence = divergence + divergence.T
        return divergence.to(logits.device, torch.promote_types(logits.dtype, torch.float32))
