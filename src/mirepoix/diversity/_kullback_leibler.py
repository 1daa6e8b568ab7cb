"""Kullback-Leibler divergence between the probabilities of members, all pairs by one product of matrices."""

import torch
from jaxtyping import Float
from torch import Tensor

from mirepoix.diversity._blocks import Block, accumulator, blocks
from mirepoix.diversity._pairs import mean_over_pairs

__all__ = ["kullback_leibler", "kullback_leibler_matrix"]


def kullback_leibler(logits: Float[Tensor, "members samples classes"]) -> Float[Tensor, ""]:
    r"""The divergence between the probabilities of two members, the mean of both directions, in nats.

    .. math:: \frac1N \sum_n \frac12 \big[ \mathrm{KL}(p_{in} \| p_{jn}) + \mathrm{KL}(p_{jn} \| p_{in}) \big],
              \qquad \mathrm{KL}(p \| q) = \sum_k p_k \log \frac{p_k}{q_k},

    averaged over pairs; half of the divergence of Jeffreys. Higher is more diverse. In :math:`[0, \infty]`. A class
    with probability 0 counts nothing by itself; where one member of a pair gives 0 (a logit of minus infinity) and
    the other does not, the result is infinite. Unlike `jensen_shannon` it has no bound, and a few confident
    contradictions can make most of it.

    Args:
        logits: A score per class.

    Returns:
        The mean over pairs, in the dtype of the logits and in float32 at least.

    Raises:
        InputError: With fewer than two members, or without samples; for logits whose largest is not finite.

    Example:
        >>> logits = torch.tensor([[[0.75, 0.25]], [[0.25, 0.75]]]).log()
        >>> kullback_leibler(logits)  # log(3) / 2
        tensor(0.5493)

    References:
        Kullback and Leibler (1951), On information and sufficiency, where the two directions are added.
    """
    return mean_over_pairs(kullback_leibler_matrix(logits))


def kullback_leibler_matrix(
    logits: Float[Tensor, "members samples classes"],
) -> Float[Tensor, "members members"]:
    """The divergence between each pair of members, symmetric; 0 on the diagonal.

    Args:
        logits: A score per class.

    Raises:
        InputError: As in `kullback_leibler`.

    Example:
        >>> logits = torch.tensor([[[0.75, 0.25]], [[0.25, 0.75]]]).log()
        >>> kullback_leibler_matrix(logits)
        tensor([[0.0000, 0.5493],
                [0.5493, 0.0000]])
    """
    sums = KullbackLeiblerSums(len(logits))
    for block in blocks(logits):
        sums.add(block)
    return sums.result(logits)


class KullbackLeiblerSums:
    r"""What is kept of the samples that were seen.

    Both directions together are :math:`\langle p_i - p_j, \log p_i - \log p_j \rangle`, distances in a product, so
    one matrix of products :math:`G_{ij} = \langle p_i, \log p_j \rangle` has them all:
    :math:`G_{ii} + G_{jj} - G_{ij} - G_{ji}`.
    """

    def __init__(self, members: int) -> None:
        self.products = accumulator(members, members)
        self.infinite = torch.zeros(members, members, dtype=torch.bool)

    def add(self, block: Block) -> None:
        """Add the samples of a block."""
        # Differences do not see a common shift. Without it, members that are alike lose most of their digits.
        p = (block.p - block.p.mean(0)).flatten(1)  # (members, block * classes)
        log_p = (block.log_p - block.log_p.mean(0)).flatten(1)
        self.products += (p @ log_p.T).cpu().double()
        if block.missing is not None:
            # By where logits are, not by p > 0: a probability can be too small for its dtype and still be there.
            missing = block.missing.flatten(1).to(p.dtype)
            one_sided = ((1 - missing) @ missing.T).cpu() > 0
            self.infinite |= one_sided | one_sided.T

    def result(self, logits: Tensor) -> Tensor:
        """The divergences, where the logits are and as wide as they."""
        own = self.products.diagonal()
        both = own[:, None] + own - (self.products + self.products.T)
        # It is a sum of terms that are not negative; below 0 there is nothing but rounding.
        divergence = (both / (2 * logits.shape[1])).clamp(min=0).fill_diagonal_(0)
        divergence[self.infinite] = torch.inf
        return divergence.to(logits.device, torch.promote_types(logits.dtype, torch.float32))
