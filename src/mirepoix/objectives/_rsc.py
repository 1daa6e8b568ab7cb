"""RSC: training without the features that the network relies on most."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirepoix.objectives._classifier import classifier_of
from mirepoix.objectives._joint import single
from mirepoix.objectives._objective import Objective
from mirepoix.types import Batch, InputError

__all__ = ["RSC"]


class RSC(Objective):
    r"""Representation self-challenging (Huang et al., 2020).

    For sample :math:`i` of the joint batch, with features :math:`z_i`, label :math:`y_i`, logits :math:`w(z_i)` and
    probabilities :math:`p(z_i)`, let :math:`g_i` be the gradient of the logit of :math:`y_i` in :math:`z_i`. Then

    .. math:: \frac{1}{n} \sum_i \mathrm{CE}(w(z_i m_i), y_i), \qquad m_i = m^f_i \lor m^b_i, \qquad
        m^f_{ik} = [g_{ik} < q_{1 - f}(g_i)], \qquad
        m^b_i = [c_i < q_{1 - b}(c)], \qquad
        c_i = p(z_i)_{y_i} - p(z_i m^f_i)_{y_i}

    where :math:`q_s` is the value below which the share :math:`s` of the entries lies, interpolated linearly: over the
    features of one sample for :math:`f`, over the samples of the joint batch for :math:`b`. So the share :math:`f` of
    the features, those that raise the right logit most, is muted in the share :math:`b` of the samples, those that lose
    most by it. The masks are constants.

    It addresses correlation shift: a network that must do without its dominant features learns others that predict.

    The features are those the classifier sees, after dropout, in one joint forward pass, so that domains weigh by their
    batch size. Neither the order of samples nor that of domains matters. Inequalities are strict: even at 0 the largest
    entry is muted, and so are all entries of a sample whose gradient is the same everywhere, as at a classifier of
    zeros. Missing classes, one source domain and a batch of one need no special case: the only sample is always
    challenged. Where a share falls on an entry, as 1 - 1/3 of 3 steps does, that entry is the threshold, whatever the
    rounding. Masks are computed in single precision at least, also under autocast.

    There is no state. An update costs one joint forward and one backward pass, and three more passes of the classifier.

    The paper mutes positions or channels of feature maps; this is the version of DomainBed, on the features themselves.

    Args:
        rsc_f_drop_factor: The share :math:`f` of features that are muted. Default as in DomainBed, where random trials
            draw U(0, 0.5).
        rsc_b_drop_factor: The share :math:`b` of samples in which they are. Default and random trials as above.

    Raises:
        InputError: If an option is no share; in a step, if the model has no ``classifier`` that makes logits of
            features.

    References:
        Huang et al. (2020), Self-challenging improves cross-domain generalization.
    """

    def __init__(self, *, rsc_f_drop_factor: float = 1 / 3, rsc_b_drop_factor: float = 1 / 3) -> None:
        super().__init__()
        for name, value in (
            ("rsc_f_drop_factor", rsc_f_drop_factor),
            ("rsc_b_drop_factor", rsc_b_drop_factor),
        ):
            if not 0 <= value <= 1:
                raise InputError(f"RSC needs {name} to be a share in [0, 1], got {value}; 1/3 is usual.")
        self.rsc_f_drop_factor = float(rsc_f_drop_factor)
        self.rsc_b_drop_factor = float(rsc_b_drop_factor)

    def configuration(self) -> Mapping[str, Any]:
        """The shares of features and of samples."""
        return {"rsc_f_drop_factor": self.rsc_f_drop_factor, "rsc_b_drop_factor": self.rsc_b_drop_factor}

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The mean cross-entropy of the joint batch with muted features, a scalar in nats."""
        classifier = classifier_of("RSC", model)
        features = model(torch.cat([batch.images for batch in batches])).features
        labels = torch.cat([batch.labels for batch in batches])
        mask = self._mask(classifier, features.detach(), labels)
        return F.cross_entropy(single(classifier(features * mask.to(features.dtype))), labels)

    def _mask(self, classifier: nn.Module, features: Tensor, labels: Tensor) -> Tensor:
        """1 for what is kept, 0 for what is muted."""
        with torch.autocast(features.device.type, enabled=False):
            precision = next((weight.dtype for weight in classifier.parameters()), torch.float32)
            features = features.to(torch.promote_types(features.dtype, precision))
            with torch.enable_grad():
                features.requires_grad_()
                logits = classifier(features)
                (gradients,) = torch.autograd.grad(_of(logits, labels).sum(), features)
            with torch.no_grad():
                muting = gradients < _quantile(gradients, 1 - self.rsc_f_drop_factor)  # (samples, features)
                muted = classifier(features * muting)
                change = _of(single(logits).softmax(1), labels) - _of(single(muted).softmax(1), labels)
                whole = change < _quantile(change, 1 - self.rsc_b_drop_factor)  # (samples,)
                return muting | whole[:, None]


def _of(values: Tensor, labels: Tensor) -> Tensor:
    """The entry of each row that belongs to its label."""
    return values.gather(1, labels[:, None]).squeeze(1)


def _quantile(values: Tensor, share: float) -> Tensor:
    """The value below which a share of the last axis lies, interpolated linearly, the axis kept."""
    place = share * (values.shape[-1] - 1)
    if math.isclose(place, round(place), rel_tol=1e-12, abs_tol=1e-12):
        place = round(place)  # else 1 - 1/3, rounded up, would fall behind the entry it means
    below, above = math.floor(place), math.ceil(place)
    ordered = values.sort(-1).values
    return torch.lerp(ordered[..., below : below + 1], ordered[..., above : above + 1], place - below)
