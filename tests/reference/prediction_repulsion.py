"""StarSSE-CE, sample by sample."""

import torch
from tests.reference.later import logits, risk
from tests.reference.plain import cross_entropy


def prediction_repulsion(theta, member, images, labels, *, alpha, samples, target, reduction, cap):
    total, chosen = torch.zeros((), dtype=torch.float64), 0
    for image, label in zip(images, labels, strict=True):
        own, theirs = logits(theta, image), logits(member, image)
        predicted = max(range(len(theirs)), key=lambda k: theirs[k].item())
        if samples == "wrong" and predicted == label:
            continue
        chosen += 1
        if target == "hard":
            value = cross_entropy(own, predicted)
        else:
            exponentials = [torch.exp(z) for z in theirs]
            value = sum(e / sum(exponentials) * cross_entropy(own, k) for k, e in enumerate(exponentials))
        total = total + (value if cap is None or value.item() < cap else torch.as_tensor(cap))
    repelled = total / (max(chosen, 1) if reduction == "subset" else len(labels))
    nll = risk(theta, images, labels)
    share = torch.tensor(chosen / len(labels), dtype=torch.float64)
    return nll - alpha * repelled, {"nll": nll, "repelled": repelled, "repelled_share": share}
