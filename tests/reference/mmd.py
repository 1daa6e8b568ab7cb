"""MMD from its formula: every sum a loop, in double precision; and Adam from its formula."""

import torch


def cross_entropies(model, batch):
    """One number per sample, from one forward pass per sample."""
    losses = []
    for image, label in zip(batch.images, batch.labels, strict=True):
        logits = model(image[None]).logits[0]
        losses.append(sum(logit.exp() for logit in logits).log() - logits[label])
    return losses


def features(model, batch):
    return [model(image[None]).features[0] for image in batch.images]


def mean(values):
    return sum(values) / len(values)


def kernel(a, b, exponents=range(-3, 4)):
    square = sum((x - y) ** 2 for x, y in zip(a, b, strict=True))
    return sum(torch.exp(-(10.0**exponent) * square) for exponent in exponents)


def squared_mmd(one, other, exponents=range(-3, 4)):
    own = mean([kernel(a, b, exponents) for a in one for b in one])
    others = mean([kernel(a, b, exponents) for a in other for b in other])
    cross = mean([kernel(a, b, exponents) for a in one for b in other])
    return own + others - 2 * cross


def mmd(model, batches, gamma):
    risk = mean([mean(cross_entropies(model, batch)) for batch in batches])
    pairs = [(e, f) for e in range(len(batches)) for f in range(e + 1, len(batches))]
    if not pairs:
        return risk
    sets = [features(model, batch) for batch in batches]
    return risk + gamma * mean([squared_mmd(sets[e], sets[f]) for e, f in pairs])


class Adam:
    """Adam (Kingma and Ba, 2015), algorithm 1, with PyTorch's defaults; the learning rate comes with every step."""

    def __init__(self, model):
        self.parameters = list(model.parameters())
        self.forget()

    def forget(self):
        self.t = 0
        self.first = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.second = [torch.zeros_like(parameter) for parameter in self.parameters]

    def step(self, loss, learning_rate):
        gradients = torch.autograd.grad(loss, self.parameters)
        self.t += 1
        with torch.no_grad():
            for parameter, gradient, m, v in zip(
                self.parameters, gradients, self.first, self.second, strict=True
            ):
                m.copy_(0.9 * m + 0.1 * gradient)
                v.copy_(0.999 * v + 0.001 * gradient**2)
                corrected = (m / (1 - 0.9**self.t), v / (1 - 0.999**self.t))
                parameter -= learning_rate * corrected[0] / (corrected[1].sqrt() + 1e-8)
