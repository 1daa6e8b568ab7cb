"""One update of marginal transfer learning, domain by domain, and a prediction."""

import torch
from tests.reference.plain import adam_step, cross_entropy, mean, outputs


def logits(theta, image, embedding):
    """The features and then the embedding go through one wide linear layer."""
    features, _ = outputs(theta, image)
    wide = [*features, *embedding]
    rows = [[*own, *other] for own, other in zip(theta["last"], theta["weight"], strict=True)]
    return torch.stack([sum(w * v for w, v in zip(row, wide, strict=True)) for row in rows])


def mean_feature(theta, images):
    return mean(outputs(theta, image)[0] for image in images)


def update(theta, state, given, *, mtl_ema, noise=None):
    """``noise`` has one vector per domain, in place of its embedding."""
    width = len(theta["first"])
    embeddings = state.setdefault("embeddings", [torch.zeros(width, dtype=torch.float64) for _ in given])
    loss = 0.0
    for e, batch in enumerate(given):
        embedding = mtl_ema * mean_feature(theta, batch.images) + (1 - mtl_ema) * embeddings[e]
        embeddings[e] = embedding.detach().clone()
        if noise is not None:
            embedding = noise[e]
        loss = loss + mean(
            cross_entropy(logits(theta, image, embedding), int(label))
            for image, label in zip(batch.images, batch.labels, strict=True)
        )
    return adam_step(theta, loss, state["adam"]), {"loss": loss}


def predict(theta, images):
    embedding = mean_feature(theta, images)
    return torch.stack([logits(theta, image, embedding) for image in images])
