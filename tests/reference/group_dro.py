"""One update of group distributional robustness."""

import math

from tests.reference.plain import adam_step, risk


def update(theta, state, given, *, groupdro_eta):
    q = state.setdefault("q", [1.0] * len(given))
    losses = [risk(theta, batch) for batch in given]
    for e, value in enumerate(losses):
        q[e] = q[e] * math.exp(groupdro_eta * value.item())
    total = sum(q)
    for e in range(len(q)):
        q[e] = q[e] / total
    loss = sum(weight * value for weight, value in zip(q, losses, strict=True))
    return adam_step(theta, loss, state["adam"]), {"loss": loss}
