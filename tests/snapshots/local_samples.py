"""A tiny network after a short training, and the images that it was trained on: where local ensembles begin."""

import functools

import torch
from tests.tiny import tiny_network, tiny_task

from mirepoix.data import draw
from mirepoix.models import initial_weights
from mirepoix.runs import Run
from mirepoix.training import Loop, Trainer

SPEC = tiny_network(4)
SPLIT = tiny_task(images=24, classes=4, noise=60).split("domain_2")
RUN = Run(steps=40, learning_rate=3e-3, batch_size=12, check_every=40, collect="last")


def trained(theta, run=RUN, spec=SPEC, objective=None):
    options = {} if objective is None else {"objective": objective}
    return Trainer(spec, loop=Loop(device="cpu"), keep=(), **options)(theta, SPLIT, run)


@functools.cache
def first_member():
    return trained(initial_weights(SPEC))


def batches():
    """Some 48 training images of each domain."""
    return draw(SPLIT, 0, batch_size=48, seed=0, augment=False)


def loss_and_accuracy(theta, spec=SPEC):
    """On these images, in evaluation mode."""
    model = spec.build().eval()
    model.load_state_dict(dict(theta))
    images, labels = (torch.cat([getattr(b, part) for b in batches()]) for part in ("images", "labels"))
    with torch.no_grad():
        logits = model(images).logits
    loss = torch.nn.functional.cross_entropy(logits, labels)
    return loss.item(), (logits.argmax(1) == labels).double().mean().item()
