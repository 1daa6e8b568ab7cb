"""Conditional CAD: features from whose neighbours in the same class the domain cannot be told."""

from __future__ import annotations

import torch
from torch import Tensor

from mirepoix.objectives._cad import Bottleneck, log_share

__all__ = ["CondCAD"]


class CondCAD(Bottleneck):
    r"""Conditional contrastive adversarial domain bottleneck (Ruan, Dubois and Maddison, 2022).

    As `CAD`, but among samples of one class. With :math:`S_{ij} = z_i \cdot z_j / \tau` the similarities of features,
    :math:`y` the labels and :math:`d` the domains of the joint batch, whose risk is :math:`R`,

    .. math:: R + \lambda \frac{\tau}{0.07} \frac{1}{|I|} \sum_{i \in I} b_i, \qquad
        b_i = -\log \frac{\sum_{j : y_j = y_i, d_j \neq d_i} e^{S_{ij}}}{\sum_{k \neq i : y_k = y_i} e^{S_{ik}}}

    over the samples :math:`I` with one of their class in another domain. Turned the other way, ``is_flipped=False``,

    .. math:: b_i = \log \frac{\sum_{j \neq i : y_j = y_i, d_j = d_i} e^{S_{ij}}}
        {\sum_{k \neq i : y_k = y_i} e^{S_{ik}}}

    over the samples with another one of their class in their own domain.

    It addresses diversity shift also where classes are not as frequent in every domain: features of a class are to look
    alike, not those of whole domains.

    Where :math:`I` is empty, so with one source domain if flipped, there is no penalty; turned the other way, one
    domain has :math:`b_i = 0`. Everything else, the options, the head, state, cost and corner cases, is as in `CAD`.

    Args:
        lmbda: Weight :math:`\lambda` of the penalty. Random trials of DomainBed draw it from {1e-4, 1e-3, ..., 1e2}.
        temperature: :math:`\tau`. Random trials draw it from {0.05, 0.1}.
        is_normalized: Divide :math:`z` by its norm. Random trials leave this and the next two as they are.
        is_project: Put a head before it: linear, ReLU, linear to 128.
        is_flipped: The first form above; otherwise the second.
        features: Number of features, for ``is_project``.
        seed: Of the weights of the head.

    Raises:
        InputError: If an option is out of its range; in a step, if the features are not as many as was said.

    References:
        Ruan, Dubois and Maddison (2022), Optimal representations for covariate shift, section 4.
    """

    def contrast(self, similarity: Tensor, labels: Tensor, domains: Tensor) -> tuple[Tensor, Tensor]:
        """How little of the neighbourhood in the class is of other domains, or how much of it is of the own."""
        itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        companions = (labels[:, None] == labels) & ~itself
        elsewhere = domains[:, None] != domains
        part = companions & (elsewhere if self.is_flipped else ~elsewhere)
        rows = part.any(1)
        share = log_share(similarity, part, companions, rows)
        return (-share if self.is_flipped else share), rows
