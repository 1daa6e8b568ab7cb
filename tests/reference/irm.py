"""One update of invariant risk minimisation, with the derivative by the factor on the logits as it is defined."""

import torch
from tests.reference.plain import adam_step, cross_entropy, mean, new_adam, outputs, risk


def slope(theta, samples):
    """d/ds of the mean cross-entropy at s times the logits, where s is 1."""
    factor = torch.ones((), dtype=torch.float64, requires_grad=True)
    loss = mean(cross_entropy(factor * outputs(theta, image)[1], int(label)) for image, label in samples)
    return torch.autograd.grad(loss, factor, create_graph=True)[0]


def penalty(theta, given, estimate):
    values = []
    for batch in given:
        samples = list(zip(batch.images, batch.labels, strict=True))
        if estimate == "square":
            values.append(slope(theta, samples) ** 2)
        else:
            even = [sample for position, sample in enumerate(samples) if position % 2 == 0]
            odd = [sample for position, sample in enumerate(samples) if position % 2 == 1]
            values.append(slope(theta, even) * slope(theta, odd))
    return mean(values)


def update(theta, state, given, *, irm_lambda, irm_penalty_anneal_iters, irm_estimate="product"):
    count = state.setdefault("updates", 0)
    if count == irm_penalty_anneal_iters:
        state["adam"] = new_adam()
    nll = mean(risk(theta, batch) for batch in given)
    invariance = penalty(theta, given, irm_estimate)
    weight = irm_lambda if count >= irm_penalty_anneal_iters else 1
    loss = nll + weight * invariance
    state["updates"] += 1
    return adam_step(theta, loss, state["adam"]), {"loss": loss, "nll": nll, "penalty": invariance}
