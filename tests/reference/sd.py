"""One update of spectral decoupling."""

from tests.reference.plain import adam_step, cross_entropy, mean, outputs


def update(theta, state, given, *, sd_reg):
    losses, squares = [], []
    for batch in given:
        for image, label in zip(batch.images, batch.labels, strict=True):
            logits = outputs(theta, image)[1]
            losses.append(cross_entropy(logits, int(label)))
            squares.extend(logit**2 for logit in logits)
    loss = mean(losses) + sd_reg * mean(squares)
    return adam_step(theta, loss, state["adam"]), {"loss": loss}
