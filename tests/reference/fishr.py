"""Fishr, sample by sample and entry by entry, from the formulas: gradients by autograd, everything else by loops."""

import torch
import torch.nn.functional as F


def gradient(model, image, label, names):
    """Of the loss of one sample in the weights named, one after the other; differentiable."""
    logits = model(image[None]).logits
    if logits.shape[1] == 1:
        loss = F.binary_cross_entropy_with_logits(logits[0, 0], label.to(logits.dtype))
    else:
        loss = -torch.log_softmax(logits[0], 0)[label]
    weights = [weight for name, weight in model.named_parameters() if name in names]
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, weights, create_graph=True)])


def variance(model, batch, names, centred=True, unbiased=False):
    gradients = [gradient(model, x, y, names) for x, y in zip(batch.images, batch.labels, strict=True)]
    count = len(gradients)
    mean = sum(gradients) / count if centred else torch.zeros_like(gradients[0])
    total = sum((one - mean) ** 2 for one in gradients)
    return total / (count - 1 if unbiased else count)


def penalty(variances, reduction):
    domains, entries = len(variances), len(variances[0])
    mean = sum(variances) / domains
    total = sum(((one - mean) ** 2).sum() for one in variances)
    return {"sum": total, "norm": total / domains, "mean": total / domains / entries}[reduction]


class Reference:
    """One update after another, with its own copy of the state."""

    def __init__(
        self,
        names,
        *,
        lambda_,
        anneal,
        ema,
        centred=True,
        unbiased=False,
        reduction="mean",
        initial_lambda=0.0,
        l2=0.0,
        divide=False,
        reset=True,
        rate=1e-2,
    ):
        self.__dict__.update(
            {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        )
        self.count, self.memory, self.optimizer = 0, None, None

    def update(self, model, batches):
        if self.optimizer is None or (self.reset and self.count == self.anneal):
            self.optimizer = torch.optim.Adam(model.parameters(), self.rate)
        weight = self.lambda_ if self.count >= self.anneal else self.initial_lambda
        losses = []
        for batch in batches:
            for image, label in zip(batch.images, batch.labels, strict=True):
                logits = model(image[None]).logits[0]
                if len(logits) == 1:
                    losses.append(F.binary_cross_entropy_with_logits(logits[0], label.to(logits.dtype)))
                else:
                    losses.append(-torch.log_softmax(logits, 0)[label])
        nll = sum(losses) / len(losses)
        found = [variance(model, batch, self.names, self.centred, self.unbiased) for batch in batches]
        before = self.memory or [torch.zeros_like(one) for one in found]
        used = [
            (self.ema * old + (1 - self.ema) * new) / (1 - self.ema)
            for old, new in zip(before, found, strict=True)
        ]
        self.memory = [
            self.ema * old + (1 - self.ema) * new.detach() for old, new in zip(before, found, strict=True)
        ]
        distance = penalty(used, self.reduction)
        loss = nll + weight * distance
        loss = loss + self.l2 * sum((weights**2).sum() for weights in model.parameters())
        if self.divide and weight > 1:
            loss = loss / weight
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.count += 1
        return {"loss": loss.item(), "nll": nll.item(), "penalty": distance.item()}
