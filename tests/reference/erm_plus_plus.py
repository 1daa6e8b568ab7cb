"""One update of ERM++, sample by sample: first the classifier, later everything, each with an Adam of its own."""

from tests.reference.plain import adam_step, cross_entropy, mean
from tests.reference.sagnet import featurize, head

CLASSIFIER = ["classifier.weight", "classifier.bias"]


def risk(theta, batches):
    samples = [(x, int(y)) for b in batches for x, y in zip(b.images, b.labels, strict=True)]
    return mean(cross_entropy(head(theta, "classifier", featurize(theta, x)), y) for x, y in samples)


def update(theta, number, adams, batches, *, linear_lr, linear_steps, lr):
    """``number`` is that of the update, from 1; ``adams`` are those of the classifier and of everything."""
    loss = risk(theta, batches)
    if number <= linear_steps + 1:
        moved = adam_step({name: theta[name] for name in CLASSIFIER}, loss, adams[0], lr=linear_lr)
    else:
        moved = adam_step(theta, loss, adams[1], lr=lr)
    return {**theta, **moved}, loss
