"""One update of ADRMX, sample by sample, with the two players in turn and the pairs given."""

import torch
from tests.reference.dann import layers_of, perceptron
from tests.reference.plain import adam_step, cross_entropy, mean


def features_of(theta, prefix, image):
    """One linear layer with a tanh."""
    ((weight, bias),) = layers_of(theta, f"{prefix}.")
    pixels = image.flatten()
    return torch.tanh(
        torch.stack([sum(row * pixels) + offset for row, offset in zip(weight, bias, strict=True)])
    )


def cosine(one, other):
    return sum(one * other) / (sum(one**2) ** 0.5 * sum(other**2) ** 0.5)


def contrast(rows, labels, domains):
    total, counted = 0.0, 0
    for i in range(len(rows)):
        terms = {}
        for j in range(len(rows)):
            if j != i:
                weight = 0.5 if domains[i] == domains[j] else 1 - 0.5
                terms[j] = weight * torch.exp(cosine(rows[i], rows[j]) / 0.07)
        positives = [j for j in terms if labels[j] == labels[i]]
        if positives:
            whole = sum(terms.values()) + 1e-5
            total = total - mean(torch.log(terms[p] / whole + 1e-5) for p in positives)
            counted += 1
    return total / (counted + 1)


def pair_of_each_class(keys, labels, domains, classes):
    """Of all ordered pairs of a class across domains, the one with the largest key."""
    pairs = []
    for label in range(classes):
        best = None
        for a in range(len(labels)):
            for b in range(len(labels)):
                valid = labels[a] == labels[b] == label and domains[a] != domains[b]
                if valid and (best is None or keys[a][b] > keys[best[0]][best[1]]):
                    best = (a, b)
        if best is not None:
            pairs.append(best)
    return pairs


def released_pairs(labels, classes):
    """Draws from torch's global generator."""
    pairs = []
    for label in range(classes):
        count = sum(1 for other in labels if other == label)
        if count >= 2:
            a, b, *_ = torch.randperm(count).tolist()
            pairs.append((a, b))
    return pairs


def losses(theta, discriminator, batches, pairs, cnt, dclf, disc, rmxd):
    images = [image for batch in batches for image in batch.images]
    labels = [int(label) for batch in batches for label in batch.labels]
    domains = [domain for domain, batch in enumerate(batches) for _ in batch.labels]
    last = [(theta["network.classifier.weight"], theta["network.classifier.bias"])]

    def classify(row):
        return perceptron(last, row)

    z = [features_of(theta, "network.featurizer", image) for image in images]
    v = [features_of(theta, "objective.featurizer", image) for image in images]
    u = [one - other for one, other in zip(z, v, strict=True)]
    of_difference = layers_of(theta, "objective.difference_classifier.")
    of_domain = layers_of(theta, "objective.domain_classifier.")
    guesses = [perceptron(layers_of(discriminator, ""), row) for row in u]
    n = range(len(images))
    nll = mean(cross_entropy(classify(z[i]), labels[i]) for i in n)
    difference_nll = mean(cross_entropy(perceptron(of_difference, u[i]), labels[i]) for i in n)
    domain_nll = mean(cross_entropy(perceptron(of_domain, v[i]), domains[i]) for i in n)
    remix = torch.zeros((), dtype=torch.float64)
    if pairs:
        remix = mean(cross_entropy(classify(u[a] + v[b]), labels[a]) for a, b in pairs)
    contrasts = contrast(z, labels, domains) + contrast(u, labels, domains)
    told = mean(cross_entropy(guesses[i], domains[i]) for i in n)
    right = mean(
        1.0 if max(range(len(batches)), key=lambda d, i=i: guesses[i][d]) == domains[i] else 0.0 for i in n
    )
    loss = nll + difference_nll + dclf * domain_nll + rmxd * remix + cnt * contrasts - disc * told
    return {
        "loss": loss,
        "nll": nll,
        "difference_nll": difference_nll,
        "domain_nll": domain_nll,
        "remix": remix,
        "contrast": contrasts,
        "discriminator": told,
        "domain_accuracy": torch.tensor(right, dtype=torch.float64),
    }


def update(
    theta, discriminator, state, batches, pairs, *, cnt, dclf, disc, rmxd, k, beta1, lr, weight_decay, lr_d
):
    """``theta`` has the weights of the network and those of the objective that are trained with it."""
    state["counter"] += 1
    parts = losses(theta, discriminator, batches, pairs, cnt, dclf, disc, rmxd)
    betas = (beta1, 0.9)
    if state["counter"] % (1 + k) < k:
        discriminator = adam_step(
            discriminator,
            parts["discriminator"],
            state["discriminator"],
            lr=lr_d,
            weight_decay=0,
            betas=betas,
        )
    else:
        theta = adam_step(
            theta, parts["loss"], state["network"], lr=lr, weight_decay=weight_decay, betas=betas
        )
    return theta, discriminator, parts
