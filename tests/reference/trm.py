"""One update of TRM, stage by stage: gradients and the Hessian by automatic differentiation, the Hessian in full."""

import math

import torch
from tests.reference.plain import adam_step, cross_entropy, mean


def features(theta, image, scale):
    return scale * torch.tanh(torch.stack([sum(row * image.flatten()) for row in theta["first"]]))


def logits(weight, bias, z):
    return torch.stack([sum(row * z) + offset for row, offset in zip(weight, bias, strict=True)])


def risk(weight, bias, samples):
    return mean(cross_entropy(logits(weight, bias, z), label) for z, label in samples)


def constants(samples):
    return [(z.detach(), label) for z, label in samples]


def hessian(weight, bias, samples):
    """Of the risk in the weights, as a matrix over all of them."""
    weight = weight.detach().requires_grad_()
    (slopes,) = torch.autograd.grad(risk(weight, bias, samples), weight, create_graph=True)
    rows = [torch.autograd.grad(slope, weight, retain_graph=True)[0].flatten() for slope in slopes.flatten()]
    return torch.stack(rows)


def neumann(matrix, vector, parity):
    """Terms added one by one, until the sum is large; with ``parity``, 2 u_1 in place of u_0 + u_1."""
    term, total, count = vector, vector, 0
    for k in range(1, 11):
        term = term - matrix @ term
        total = 2 * term if parity and k == 1 else total + term
        count = k
        if max(abs(x) for x in total.tolist()) > 10:
            break
    return total, count


def update(
    theta,
    state,
    given,
    *,
    scale=1.0,
    cos_lambda,
    iters,
    groupdro_eta,
    class_balanced=False,
    parity=False,
):
    """``state`` has the heads (weight and bias), the rows of alpha, the count, Adam, and how many terms were used."""
    domains = [
        [(features(theta, x, scale), int(y)) for x, y in zip(b.images, b.labels, strict=True)] for b in given
    ]
    together = [sample for domain in domains for sample in domain]
    nll = risk(theta["classifier.weight"], theta["classifier.bias"], together)
    loss, logged = nll, nll
    if state["updates"] >= iters:
        number = range(len(domains))
        if class_balanced:
            for head in state["heads"]:
                head["weight"] = theta["classifier.weight"].detach().clone()
        for _ in range(30):
            for head, domain in zip(state["heads"], domains, strict=True):
                weight, bias = (head[name].detach().requires_grad_() for name in ("weight", "bias"))
                slopes = torch.autograd.grad(risk(weight, bias, constants(domain)), (weight, bias))
                head["weight"], head["bias"] = (
                    weight.detach() - 0.1 * slopes[0],
                    bias.detach() - 0.1 * slopes[1],
                )
        state["terms"] = []
        for q in number:
            row = [value / sum(state["alpha"][q]) for value in state["alpha"][q]]
            weight, bias = state["heads"][q]["weight"].requires_grad_(), state["heads"][q]["bias"]
            own = risk(weight, bias, domains[q])
            (own_slope,) = torch.autograd.grad(own, weight, create_graph=True)
            others = {i: risk(weight, bias, domains[i]) for i in number if i != q}
            elsewhere = sum(row[i] * others[i] for i in others)
            (slope,) = torch.autograd.grad(elsewhere, weight, retain_graph=True)
            solution, count = neumann(
                hessian(weight, bias, constants(domains[q])), slope.detach().flatten(), parity
            )
            state["terms"].append(count)
            new = [
                row[i] * math.exp(groupdro_eta * row[i] * others[i].item()) if i != q else 0.0 for i in number
            ]
            state["alpha"][q] = new
            followed = cos_lambda * (solution.detach() * own_slope.flatten()).sum()
            used = sum((new if parity else row)[i] * others[i] for i in others)
            loss = loss + (used - followed) / len(domains)
            logged = logged + (elsewhere - followed).detach() / len(domains)
    state["updates"] += 1
    return adam_step(theta, loss, state["adam"]), {"loss": logged, "nll": nll, "penalty": logged - nll}
