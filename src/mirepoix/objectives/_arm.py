"""ARM: a network that sees, beside each image, what a small network makes of a group of images of its domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirepoix.objectives._joint import single
from mirepoix.objectives._objective import Objective
from mirepoix.types import Batch, InputError, Outputs

__all__ = ["ARM"]


class ARM(Objective):
    r"""Adaptive risk minimization with a context network (Zhang et al., 2021, ARM-CML).

    A small network :math:`h` makes one more channel of every image. Its mean over a group :math:`G` of images is the
    context that each of them gets as its last channel. With :math:`G(i)` the group of image :math:`i`,

    .. math:: \frac{1}{n} \sum_{i=1}^{n} -\log p_\theta(y_i \mid [x_i, c_{G(i)}]), \qquad
        c_G = \frac{1}{|G|} \sum_{j \in G} h(x_j)

    over the images of all source domains in one joint forward pass, so that domains weigh by their batch size. In
    training the minibatch of a domain is a group. :math:`h` is a 5x5 convolution to 64 channels, batch norm, ReLU,
    another to 64 channels, batch norm, ReLU, and one to 1 channel, all of the size of the image.

    It addresses a shift that a few unlabelled images of the new domain tell, such as another style or corruption.

    **The network takes one channel more than the images have**: ``NetworkSpec(..., channels=C + 1)`` for images of C
    channels. Weights from a file or a hub that were trained on 3 channels start the fourth as a copy of the first.

    **Predictions depend on the batch.** The domain of a test image is unknown, so `predict` takes consecutive images as
    groups, ``support_size`` of them each where that divides their number, otherwise all as one. Give it images of one
    domain; where they are sorted by class, so are the groups. The weights of the network alone, which are what a
    training returns, predict nothing without the context network.

    **A correction.** In released code :math:`h` is in no optimizer, so it stays as it was drawn. Here its weights are
    parameters of the objective, which the trainer trains with those of the network; with ``parity=True`` they are not
    trained.

    The order of samples within a domain does not matter, nor does that of domains. Missing classes, one source domain
    and a batch of one need no special case: its context is its own. The mean of a group is in single precision at
    least, also under autocast. There is no randomness.

    State: the weights of the context network and the statistics of its batch norm, which come from the joint batch in
    training and are not moved by `predict`. An update costs one joint forward and one backward pass, and those of the
    context network: 5.5 billion multiplications for an image of 224 x 224, where ResNet-50 makes 4.1.

    The paper has groups of test images of one size; the rule for what cannot be divided is DomainBed's.

    Args:
        channels: The number C of channels of the images.
        support_size: The number of images in a group at prediction. DomainBed takes the batch size of the training, of
            each domain, and fixes that to 8 at 224 x 224, also in random trials.
        parity: Leave the context network as it was drawn, as released.
        seed: Of the weights of the context network, which depend on nothing else: two equal objectives give equal
            results.

    Raises:
        InputError: If an option is out of its range; in a step or a prediction, if the images do not have as many
            channels as was said.

    References:
        Zhang et al. (2021), Adaptive risk minimization: learning to adapt to domain shift.
    """

    def __init__(self, *, channels: int, support_size: int = 8, parity: bool = False, seed: int = 0) -> None:
        super().__init__()
        for name, value, of in (
            ("channels", channels, "channels"),
            ("support_size", support_size, "images in support_size"),
        ):
            if isinstance(value, bool) or value != int(value) or value < 1:
                raise InputError(f"ARM needs a whole number of {of} from 1, got {name}={value!r}.")
        self.channels, self.support_size = int(channels), int(support_size)
        self.parity, self.seed = bool(parity), int(seed)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            self.context = nn.Sequential(
                nn.Conv2d(self.channels, 64, 5, padding=2),
                nn.BatchNorm2d(64),
                nn.ReLU(),
                nn.Conv2d(64, 64, 5, padding=2),
                nn.BatchNorm2d(64),
                nn.ReLU(),
                nn.Conv2d(64, 1, 5, padding=2),
            )
        self.context.requires_grad_(not self.parity)

    def configuration(self) -> Mapping[str, Any]:
        """The channels of the images, the size of a group, whether the context network is untrained, and its seed."""
        return {
            "channels": self.channels,
            "support_size": self.support_size,
            "parity": self.parity,
            "seed": self.seed,
        }

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The mean cross-entropy of the joint batch, each domain with its context, a scalar in nats."""
        images = torch.cat([batch.images for batch in batches])
        labels = torch.cat([batch.labels for batch in batches])
        inputs = self._with_context(images, [len(batch.labels) for batch in batches])
        return F.cross_entropy(single(model(inputs).logits), labels)

    def predict(self, model: nn.Module, images: Tensor) -> Outputs:
        """The outputs for images with the context of their group: they depend on the whole group."""
        groups = self.support_size if len(images) % self.support_size == 0 else len(images)
        training = self.context.training
        self.context.eval()
        try:
            inputs = self._with_context(images, groups)
        finally:
            self.context.train(training)
        outputs: Outputs = model(inputs)
        return outputs

    def _with_context(self, images: Tensor, groups: int | list[int]) -> Tensor:
        """Images with one more channel, the mean map of consecutive groups of these sizes."""
        if images.ndim != 4 or images.shape[1] != self.channels:
            advice = f"; make it with channels={images.shape[1]}" if images.ndim == 4 else ""
            raise InputError(
                f"ARM was made for images of {self.channels} channels, (samples, {self.channels}, height, width), "
                f"got {tuple(images.shape)}{advice}. The network takes one channel more than the images have."
            )
        maps = torch.split(single(self.context(images)), groups)
        contexts = torch.cat([group.mean(0, keepdim=True).expand_as(group) for group in maps])
        return torch.cat([images, contexts.to(images.dtype)], 1)
