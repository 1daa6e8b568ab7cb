"""RDM from its formula: every sum a loop, in double precision."""

from tests.reference.mmd import Adam, cross_entropies, mean, squared_mmd


def variance(values):
    center = mean(values)
    return sum((value - center) ** 2 for value in values) / (len(values) - 1)


def parts(model, batches):
    """Mean risk, discrepancy, and variances, without their weights."""
    losses = [cross_entropies(model, batch) for batch in batches]
    together = [loss for domain in losses for loss in domain]
    risks = [mean(domain) for domain in losses]
    worst = losses[risks.index(max(risks))]
    matching = squared_mmd([[loss] for loss in worst], [[loss] for loss in together], range(-4, 4))
    return mean(risks), matching, variance(together) + variance(worst)


class Rdm:
    """The updates of a model, with their counter and the moments of Adam."""

    def __init__(self, model, weight, anneal, variance_weight, own_rate, rate):
        self.model, self.weight, self.anneal, self.variance_weight = model, weight, anneal, variance_weight
        self.own_rate, self.rate = own_rate, rate
        self.counter = 0
        self.adam = Adam(model)

    def update(self, batches):
        risk, matching, variances = parts(self.model, batches)
        if self.counter == self.anneal:
            self.adam.forget()
            self.rate = self.own_rate
        on = 1 if self.counter >= self.anneal else 0
        loss = risk + on * (self.weight * matching + self.variance_weight * variances)
        self.adam.step(loss, self.rate)
        self.counter += 1
        return loss.item()
