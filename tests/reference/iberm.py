"""One update of empirical risk minimisation with an information bottleneck."""

from tests.reference.plain import adam_step, mean, new_adam, outputs, risk


def penalty(theta, given):
    """The variance of every feature in every domain, one after the other."""
    values = []
    for batch in given:
        rows = [outputs(theta, image)[0] for image in batch.images]
        variances = []
        for k in range(len(rows[0])):
            centre = mean(row[k] for row in rows)
            variances.append(sum((row[k] - centre) ** 2 for row in rows) / (len(rows) - 1))
        values.append(mean(variances))
    return mean(values)


def update(theta, state, given, *, ib_lambda, ib_penalty_anneal_iters):
    count = state.setdefault("updates", 0)
    if count == ib_penalty_anneal_iters:
        state["adam"] = new_adam()
    nll = mean(risk(theta, batch) for batch in given)
    variance = penalty(theta, given)
    loss = nll + (ib_lambda if count >= ib_penalty_anneal_iters else 0) * variance
    state["updates"] += 1
    return adam_step(theta, loss, state["adam"]), {"loss": loss, "nll": nll, "penalty": variance}
