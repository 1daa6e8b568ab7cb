"""One update of Transfer, stage by stage, sample by sample."""

import torch
from tests.reference.plain import adam_step, cross_entropy, mean, new_adam


def features(theta, image):
    return torch.tanh(torch.stack([sum(row * image.flatten()) for row in theta["first"]]))


def logits(head, z):
    pairs = zip(head["weight"], head["bias"], strict=True)
    return torch.stack([sum(row * z) + offset for row, offset in pairs])


def head_of(theta):
    return {"weight": theta["classifier.weight"], "bias": theta["classifier.bias"]}


def losses(theta, head, batch):
    return [
        cross_entropy(logits(head, features(theta, image)), int(label))
        for image, label in zip(batch.images, batch.labels, strict=True)
    ]


def joint_risk(theta, given):
    return mean(loss for batch in given for loss in losses(theta, head_of(theta), batch))


def gap(theta, head, given):
    risks = [mean(losses(theta, head, batch)) for batch in given]
    largest = smallest = risks[0]
    for risk in risks[1:]:
        if risk > largest:
            largest = risk
        if risk < smallest:
            smallest = risk
    return largest - smallest


def constants(values):
    return {name: value.detach().clone().requires_grad_() for name, value in values.items()}


def gradient_step(theta, loss, lr, sign=-1.0, weight_decay=0.0):
    gradients = torch.autograd.grad(loss, list(theta.values()))
    pairs = zip(theta.items(), gradients, strict=True)
    return {
        name: (value + sign * lr * (gradient + weight_decay * value)).detach().requires_grad_()
        for (name, value), gradient in pairs
    }


def distance(one, other):
    return sum(float((one[name] - other[name]).detach().square().sum()) for name in one) ** 0.5


def update(theta, state, given, *, t_lambda, delta, d_steps_per_g, lr_d, gda=False, trained=True):
    """``state`` holds the adversary and two memories of Adam: that of the featurizer moves twice per update."""
    if "adversary" not in state:
        state.update(adversary=constants(head_of(theta)), phi=new_adam(), w=new_adam())

    def stepped(names, loss, memory):
        part = {name: theta[name] for name in names}
        if not trained:
            return part
        if gda:
            return gradient_step(part, loss, 0.05, weight_decay=0.01)
        return adam_step(part, loss, memory)

    # 1. The network down its risk.
    risk = joint_risk(theta, given)
    moved = stepped(["first"], risk, state["phi"])
    heads = stepped(["classifier.weight", "classifier.bias"], joint_risk(theta, given), state["w"])
    theta = {**moved, **heads}
    # 2. The featurizer down the gap.
    first_gap = gap(theta, state["adversary"], given)
    theta = {**theta, **stepped(["first"], t_lambda * first_gap, state["phi"])}
    # 3. and 4. The adversary up the gap.
    center = constants(head_of(theta))
    adversary = constants(center)
    for _ in range(d_steps_per_g):
        last_gap = gap(theta, adversary, given)
        adversary = gradient_step(adversary, t_lambda * last_gap, lr_d, sign=1.0)
        away = distance(adversary, center)
        if away > delta:
            adversary = constants(
                {name: center[name] + delta / away * (adversary[name] - center[name]) for name in center}
            )
    state["adversary"] = adversary
    loss = risk + t_lambda * first_gap
    return theta, {"loss": loss, "nll": risk, "gap": first_gap, "adversarial_gap": last_gap}
