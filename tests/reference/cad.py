"""CAD and conditional CAD, pair by pair, from the formulas."""

import torch


def value(i, similarity, labels, domains, conditional, flipped):
    """The term of sample i, or None if it has none."""
    others = [j for j in range(len(labels)) if j != i]
    if conditional:
        others = [j for j in others if labels[j] == labels[i]]
    elif not any(labels[j] == labels[i] for j in others):
        return None
    same = [j for j in others if domains[j] == domains[i]]
    different = [j for j in others if domains[j] != domains[i]]
    if conditional and not (different if flipped else same):
        return None
    whole = sum(torch.exp(similarity[i, k]) for k in others)
    if flipped:
        share = sum(torch.exp(similarity[i, j]) / whole for j in different)
        return -torch.log(share) if different else None
    part = sum(torch.exp(similarity[i, j]) for j in same) + (0 if conditional else 1)
    return torch.log(torch.as_tensor(part)) - torch.log(whole)


def loss(model, batches, *, conditional, lmbda, temperature, normalized, flipped, head=None):
    features, labels, domains, risks = [], [], [], []
    for place, batch in enumerate(batches):
        for image, label in zip(batch.images, batch.labels.tolist(), strict=True):
            outputs = model(image[None])
            risks.append(-torch.log_softmax(outputs.logits[0], 0)[label])
            z = outputs.features[0]
            if head is not None:
                z = head[2] @ torch.clamp(head[0] @ z + head[1], min=0) + head[3]
            if normalized:
                z = z / torch.sqrt((z * z).sum())
            features.append(z)
            labels.append(label)
            domains.append(place)
    count = len(labels)
    similarity = torch.stack(
        [
            torch.stack([(features[i] * features[j]).sum() / temperature for j in range(count)])
            for i in range(count)
        ]
    )
    found = [value(i, similarity, labels, domains, conditional, flipped) for i in range(count)]
    found = [one for one in found if one is not None]
    penalty = temperature / 0.07 * sum(found) / len(found) if found else 0.0
    return sum(risks) / count + lmbda * penalty
