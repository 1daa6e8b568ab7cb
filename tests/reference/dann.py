"""One update of DANN and CDANN, sample by sample, with the two players in turn."""

import torch
from tests.reference.plain import adam_step, cross_entropy, mean, new_adam, outputs


def new_state():
    return {"counter": 0, "network": new_adam(), "discriminator": new_adam()}


def perceptron(layers, inputs):
    """Layers are pairs of a weight and a bias; all but the last end in a ReLU."""
    for place, (weight, bias) in enumerate(layers):
        values = []
        for row, offset in zip(weight, bias, strict=True):
            value = sum(row * inputs) + offset
            last = place == len(layers) - 1
            values.append(value if last or value > 0 else 0 * value)
        inputs = torch.stack(values)
    return inputs


def layers_of(theta, prefix):
    names = sorted(
        {int(name.removeprefix(prefix).split(".")[0]) for name in theta if name.startswith(prefix)}
    )
    return [(theta[f"{prefix}{n}.weight"], theta[f"{prefix}{n}.bias"]) for n in names]


def losses(theta, discriminator, batches, lambda_, grad_penalty):
    """Conditional where there is a table of vectors of classes among the weights of the discriminator."""
    table = discriminator.get("embedding.weight")
    layers = layers_of(discriminator, "perceptron.")
    samples = [
        (image, int(label), domain)
        for domain, batch in enumerate(batches)
        for image, label in zip(batch.images, batch.labels, strict=True)
    ]
    counts = {}
    for _, label, _ in samples:
        counts[label] = counts.get(label, 0) + 1
    risks, told, squares, right = [], [], [], []
    for image, label, domain in samples:
        features, logits = outputs(theta, image)
        risks.append(cross_entropy(logits, label))
        inputs = features if table is None else features + table[label]
        guess = perceptron(layers, inputs)
        error = cross_entropy(guess, domain)
        (slope,) = torch.autograd.grad(error, inputs, create_graph=True)
        squares.append(sum(slope**2))
        weight = 1 / len(samples) if table is None else 1 / (counts[label] * (1 + max(counts)))
        told.append(weight * error)
        right.append(1.0 if max(range(len(batches)), key=lambda d, guess=guess: guess[d]) == domain else 0.0)
    nll = mean(risks)
    told = sum(told) + grad_penalty * mean(squares)
    return {
        "loss": nll - lambda_ * told,
        "nll": nll,
        "discriminator": told,
        "domain_accuracy": torch.tensor(mean(right), dtype=torch.float64),
    }


def update(
    theta, discriminator, state, batches, *, lambda_, k, grad_penalty, beta1, lr, weight_decay, lr_d, wd_d
):
    state["counter"] += 1
    parts = losses(theta, discriminator, batches, lambda_, grad_penalty)
    betas = (beta1, 0.9)
    if state["counter"] % (1 + k) < k:
        discriminator = adam_step(
            discriminator,
            parts["discriminator"],
            state["discriminator"],
            lr=lr_d,
            weight_decay=wd_d,
            betas=betas,
        )
    else:
        theta = adam_step(
            theta, parts["loss"], state["network"], lr=lr, weight_decay=weight_decay, betas=betas
        )
    return theta, discriminator, parts
