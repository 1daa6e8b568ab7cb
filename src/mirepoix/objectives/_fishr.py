"""Fishr: the same variance of gradients in every source domain."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from mirepoix.objectives._joint import single
from mirepoix.objectives._scheduled import Scheduled, check_count
from mirepoix.types import Batch, InputError

__all__ = ["Fishr"]


class Fishr(Scheduled):
    r"""Invariant gradient variances (Ramé, Dancette and Cord, 2022), against correlation shift.

    With :math:`g_e^i` the gradient of the cross-entropy of sample :math:`i` of domain :math:`e` and :math:`n_e` the
    samples of the domain in the batch, the update :math:`t` minimises the risk :math:`R` of the joint batch plus

    .. math:: \lambda_t \frac{1}{E} \sum_e \frac{1}{P} \lVert \tilde v_e - \tilde v \rVert_2^2, \qquad
        \tilde v_e = v_e + \frac{\beta}{1 - \beta} a_e, \qquad
        v_e = \frac{1}{n_e} \sum_i (g_e^i - \bar g_e)^2

    where squares are taken entry by entry, :math:`P` is their number, bars are means over samples and :math:`\tilde v`
    is the mean over domains. The memory becomes :math:`a_e \leftarrow \beta a_e + (1 - \beta) v_e` at every update,
    from zero and from the first one on; no gradient flows through it. It makes the penalty larger: in the long run
    :math:`\tilde v_e` is :math:`1 / (1 - \beta)` times a variance. :math:`\lambda_t` is ``initial_lambda`` before
    update ``penalty_anneal_iters`` and ``lambda_`` from then on; at that update, if it is not the first, Adam forgets
    its moments.

    Where gradients vary alike, so do risks and curvatures: what predicts in one domain alone, a colour or a background,
    is given up.

    By default the gradients are those of the classifier alone, whose variance has a closed form. With :math:`z` the
    features and :math:`r = p - 1_y` the residual, the gradient of sample :math:`i` is the outer product of
    :math:`r^i` and :math:`(z^i, 1)`, and its variance a few products of matrices: nothing of the size samples times
    weights is ever held. An update costs one forward and one backward pass, as ERM. Any other ``layers`` take
    per-sample gradients: a second forward and backward pass, sample by sample in single precision without autocast, and
    a backward pass through it, which holds samples times weights; dropout draws anew in it. If these layers are all
    linear, applied once to one vector per sample, they are outer products too, from the first pass.

    A network with a single logit :math:`s` is read as a binary one with logits :math:`(0, s)`. Two logits would give
    each entry of the variance twice.

    The state is the memory, one row per position in the list of batches, and the number of updates. The memory moves in
    training mode only. A domain of one sample has variance 0. One domain has penalty 0.

    Deviations from the paper are those of the released code: a variance over :math:`n` (equation E.2 of the thesis has
    :math:`n - 1`: ``unbiased``), a mean over entries (E.3 has the squared norm: ``reduction``), and the memory.

    Args:
        domains: Number of source domains; the same at every update.
        lambda_: Weight of the penalty. Default as in DomainBed, where random trials draw 10^U(1, 4).
        penalty_anneal_iters: Update at which the weight jumps; random trials draw int U(0, 5000).
        ema: Decay :math:`\beta` of the memory, 0 for none; random trials draw U(0.90, 0.99).
        layers: ``classifier``; ``all`` for all weights; or beginnings of names of weights, such as
            ``("featurizer",)``, which count whether they are trained or not.
        bias: Whether the classifier has a bias, for ``classifier`` alone.
        centred: Take variances; otherwise mean squares, the diagonal of the empirical Fisher information.
        unbiased: Divide a variance by :math:`n - 1`.
        reduction: ``mean`` over entries and domains, as above; ``norm``, without :math:`1 / P`, as in the thesis;
            ``sum``, without :math:`1 / E` either, as in the released experiment on ColoredMNIST.
        initial_lambda: Weight before it jumps.
        l2: Weight of the sum of all squared weights of the model, added to the loss.
        divide: Divide the whole loss, ``l2`` included, by the weight of the penalty while that is above 1.
        reset: Forget the optimizer's moments when the weight jumps.

    The last four serve the two-stage schedule of IRM, under which the paper reports ColoredMNIST; see
    ``examples/fishr_colored_mnist.py``.

    Raises:
        InputError: For an option out of range; in a step, for another number of domains, for a domain of one sample
            with ``unbiased``, for ``layers`` that name no weight, and for per-sample gradients of a network whose batch
            norm is not frozen, as a sample has then no gradient of its own.

    References:
        Ramé, Dancette and Cord (2022), Fishr, equations 2 to 4 and algorithm 1; thesis, equations E.2 to E.4.
    """

    variances: Tensor

    def __init__(
        self,
        *,
        domains: int,
        lambda_: float = 1000.0,
        penalty_anneal_iters: int = 1500,
        ema: float = 0.95,
        layers: str | Sequence[str] = "classifier",
        bias: bool = True,
        centred: bool = True,
        unbiased: bool = False,
        reduction: Literal["mean", "norm", "sum"] = "mean",
        initial_lambda: float = 0.0,
        l2: float = 0.0,
        divide: bool = False,
        reset: bool = True,
    ) -> None:
        super().__init__()
        if isinstance(domains, bool) or domains != int(domains) or domains < 1:
            raise InputError(f"Fishr needs the number of source domains, at least 1, got {domains!r}.")
        for name, value in (("lambda_", lambda_), ("initial_lambda", initial_lambda), ("l2", l2)):
            if not 0 <= value < math.inf:
                raise InputError(f"Fishr needs a finite {name} of 0 or more, got {value}.")
        if not 0 <= ema < 1:
            raise InputError(f"Fishr needs an ema of at least 0 and below 1, got {ema}; 0 keeps no memory.")
        if reduction not in ("mean", "norm", "sum"):
            raise InputError(f"Fishr needs a reduction that is mean, norm or sum, got {reduction!r}.")
        if not layers or not all(layers):
            raise InputError(f"Fishr needs layers: classifier, all, or beginnings of names, got {layers!r}.")
        if unbiased and not centred:
            raise InputError("Fishr with unbiased=True needs centred=True: mean squares have no bias.")
        self.domains = int(domains)
        self.lambda_ = float(lambda_)
        self.penalty_anneal_iters = check_count("Fishr", "penalty_anneal_iters", penalty_anneal_iters)
        self.ema = float(ema)
        self.layers = layers if layers in ("classifier", "all") else _names(layers)
        self.bias = bool(bias)
        self.centred = bool(centred)
        self.unbiased = bool(unbiased)
        self.reduction = reduction
        self.initial_lambda = float(initial_lambda)
        self.l2 = float(l2)
        self.divide = bool(divide)
        self.reset = bool(reset)
        self.register_buffer("variances", torch.zeros(self.domains, 0))  # as wide as the first gradient

    def configuration(self) -> Mapping[str, Any]:
        """All options."""
        return {
            "domains": self.domains,
            "lambda_": self.lambda_,
            "penalty_anneal_iters": self.penalty_anneal_iters,
            "ema": self.ema,
            "layers": self.layers if isinstance(self.layers, str) else list(self.layers),
            "bias": self.bias,
            "centred": self.centred,
            "unbiased": self.unbiased,
            "reduction": self.reduction,
            "initial_lambda": self.initial_lambda,
            "l2": self.l2,
            "divide": self.divide,
            "reset": self.reset,
        }

    def begins(self) -> int:
        """The update at which the weight jumps."""
        return self.penalty_anneal_iters

    def resets(self) -> Collection[int]:
        """The update at which the weight jumps, unless it is the first."""
        return (self.penalty_anneal_iters,) if self.reset and self.penalty_anneal_iters > 0 else ()

    def forward(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """The risk of the joint batch plus the weighted distance of gradient variances, a scalar."""
        self._check(batches)
        weight = self.lambda_ if self.updates >= self.penalty_anneal_iters else self.initial_lambda
        # Without a weight, variances are for the memory and the log alone.
        differentiable = weight > 0 and torch.is_grad_enabled()
        images = torch.cat([batch.images for batch in batches])
        labels = torch.cat([batch.labels for batch in batches])
        sizes = [len(batch.labels) for batch in batches]
        if self.layers == "classifier":
            outputs = model(images)
            with torch.autocast(images.device.type, enabled=False), torch.set_grad_enabled(differentiable):
                layer = _residuals(outputs.logits, labels), single(outputs.features), self.bias
                variances = self._of_outer_products([layer], sizes)
        else:
            network = getattr(model, "_orig_mod", model)  # hooks and transforms are not for compiled networks
            _check_batch_norm(network)
            chosen = _chosen(network, self.layers)
            linear = _linear_layers(network, chosen)
            with _recorded(linear) as seen:
                outputs = (network if linear else model)(images)
            with torch.autocast(images.device.type, enabled=False):
                if linear and _usable(seen, linear, images.device.type):
                    loss = _cross_entropy(outputs.logits, labels, "sum")
                    layers = _outer_products(loss, seen, linear, differentiable)
                    with torch.set_grad_enabled(differentiable):
                        variances = self._of_outer_products(layers, sizes)
                else:
                    with torch.set_grad_enabled(differentiable):
                        variances = self._of_samples(network, chosen, images, labels, sizes)
        risk = _cross_entropy(outputs.logits, labels)
        with torch.set_grad_enabled(differentiable):
            penalty = self._penalty(self._remembered(variances))
        self.parts = {"nll": risk.detach(), "penalty": penalty.detach()}
        loss = risk + weight * penalty if weight > 0 else risk
        if self.l2 > 0:
            loss = loss + self.l2 * torch.stack([p.square().sum() for p in model.parameters()]).sum()
        return loss / weight if self.divide and weight > 1 else loss

    def _check(self, batches: Sequence[Batch]) -> None:
        if len(batches) != self.domains:
            raise InputError(
                f"Fishr was made for {self.domains} source domains, of which it remembers the variances, got "
                f"{len(batches)} batches; give domains={len(batches)}."
            )
        for batch in batches:
            if self.unbiased and len(batch.labels) < 2:
                raise InputError(
                    "Fishr with unbiased=True needs at least 2 samples per domain, got "
                    f"{len(batch.labels)} of domain {batch.domains.tolist()}; use a larger batch size."
                )

    def _of_outer_products(
        self, layers: Sequence[tuple[Tensor, Tensor, bool]], sizes: Sequence[int]
    ) -> Tensor:
        """One row of variances per domain, from the two factors of each layer's gradients."""
        rows = []
        for place, size in enumerate(sizes):
            part = slice(sum(sizes[:place]), sum(sizes[:place]) + size)
            moments = [
                _outer_product_variance(left[part], right[part], bias, self.centred)
                for left, right, bias in layers
            ]
            rows.append(torch.cat(moments) * self._correction(size))
        return torch.stack(rows)

    def _of_samples(
        self, network: nn.Module, chosen: Sequence[str], images: Tensor, labels: Tensor, sizes: Sequence[int]
    ) -> Tensor:
        """One row of variances per domain, from one gradient per sample."""
        parameters = dict(network.named_parameters())
        theta = {name: parameters[name] for name in chosen}

        def loss(theta: Mapping[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
            logits = functional_call(network, dict(theta), (image[None],)).logits
            return _cross_entropy(logits, label[None])

        per_sample = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")
        rows = []
        for some, theirs in zip(
            torch.split(images, list(sizes)), torch.split(labels, list(sizes)), strict=True
        ):
            gradients = per_sample(theta, some, theirs).values()  # each (samples, *shape)
            moments = [
                (single(g).var(0, correction=0) if self.centred else single(g).square().mean(0))
                for g in gradients
            ]
            rows.append(torch.cat([moment.flatten() for moment in moments]) * self._correction(len(theirs)))
        return torch.stack(rows)

    def _correction(self, samples: int) -> float:
        return samples / (samples - 1) if self.unbiased else 1.0

    def _remembered(self, variances: Tensor) -> Tensor:
        """Variances with what is remembered of earlier ones; remembers them."""
        if self.ema == 0:
            return variances
        memory = self.variances if self.variances.shape[1] else torch.zeros_like(variances)
        if memory.shape != variances.shape:
            raise InputError(
                f"Fishr remembers {memory.shape[1]:,} variances per domain, got {variances.shape[1]:,}: another "
                "network or other layers. Make a new Fishr for it."
            )
        if self.training:
            self.variances = self.ema * memory + (1 - self.ema) * variances.detach()
        return variances + self.ema / (1 - self.ema) * memory

    def _penalty(self, variances: Tensor) -> Tensor:
        squares = (variances - variances.mean(0)).square()  # (domains, entries)
        match self.reduction:
            case "mean":
                return squares.mean()
            case "norm":
                return squares.sum(1).mean()
            case _:
                return squares.sum()

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """The memory takes the width of the one loaded."""
        saved = state_dict.get(f"{prefix}variances")
        if saved is not None and saved.shape[:1] == self.variances.shape[:1]:
            self.variances = torch.empty_like(saved, device=self.variances.device)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _two_logits(logits: Tensor) -> Tensor:
    """Logits of two classes, where a network has one."""
    return F.pad(logits, (1, 0)) if logits.shape[1] == 1 else logits


def _cross_entropy(logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    return F.cross_entropy(_two_logits(logits), labels, reduction=reduction)


def _residuals(logits: Tensor, labels: Tensor) -> Tensor:
    """The gradients of each sample's cross-entropy in its logits."""
    every = _two_logits(single(logits))
    residuals = every.softmax(1) - F.one_hot(labels, every.shape[1])
    return residuals[:, -logits.shape[1] :]


def _outer_product_variance(left: Tensor, right: Tensor, bias: bool, centred: bool) -> Tensor:
    r"""The variance of each entry of outer products, without the products.

    With :math:`r = \bar r + \delta` and :math:`z = \bar z + \zeta`, the entry is
    :math:`rz = \bar r \bar z + \delta z + \bar r \zeta`, of mean :math:`\bar r \bar z + E[\delta \zeta]`. So its
    variance is :math:`E[\delta^2 z^2] + \bar r^2 E[\zeta^2] + 2 \bar r E[\delta \zeta z] - E[\delta \zeta]^2`.
    The shorter :math:`E[r^2 z^2] - E[rz]^2` loses all digits where features hardly vary.
    """
    samples = len(left)
    if not centred:
        entries = left.square().T @ right.square() / samples
        return torch.cat([entries.flatten(), left.square().mean(0)]) if bias else entries.flatten()
    mean = left.mean(0)[:, None]  # (left, 1)
    delta, zeta = left - left.mean(0), right - right.mean(0)
    entries = (
        (delta.square().T @ right.square() + 2 * mean * (delta.T @ (zeta * right))) / samples
        + mean.square() * zeta.square().mean(0)
        - (delta.T @ zeta / samples).square()
    )
    return torch.cat([entries.flatten(), delta.square().mean(0)]) if bias else entries.flatten()


def _names(layers: str | Sequence[str]) -> tuple[str, ...]:
    return (layers,) if isinstance(layers, str) else tuple(layers)


def _chosen(network: nn.Module, layers: str | Sequence[str]) -> list[str]:
    """The names of the weights, in the order of the network."""
    names = [name for name, _ in network.named_parameters()]
    if layers == "all":
        return names
    for layer in layers:
        if not any(f"{name}.".startswith(f"{layer}.") for name in names):
            raise InputError(
                f"Fishr: expected layers to be beginnings of names of weights, such as {names[0]!r}, got {layer!r}."
            )
    return [name for name in names if any(f"{name}.".startswith(f"{layer}.") for layer in layers)]


def _check_batch_norm(network: nn.Module) -> None:
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm) and module.training:
            raise InputError(
                f"Fishr with per-sample gradients needs frozen batch norm, but {name!r} mixes the samples of a batch. "
                "Freeze it, or take layers='classifier'."
            )


# Linear layers see their inputs and the gradients in their outputs: the two factors of each sample's gradient.

_Seen = dict[nn.Module, list[tuple[Tensor, Tensor]]]


def _linear_layers(network: nn.Module, chosen: Sequence[str]) -> list[nn.Linear] | None:
    """The linear layers that these weights make up, if they do."""
    layers = [
        (name, module)
        for name, module in network.named_modules()
        if type(module) is nn.Linear and f"{name}.weight".removeprefix(".") in chosen
    ]
    made = [
        f"{name}.{part}".removeprefix(".") for name, layer in layers for part, _ in layer.named_parameters()
    ]
    return [layer for _, layer in layers] if sorted(made) == sorted(chosen) else None


@contextmanager
def _recorded(layers: Sequence[nn.Linear] | None) -> Iterator[_Seen]:
    """Inputs and outputs of these layers."""
    seen: _Seen = {}

    def record(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if torch.is_grad_enabled() and not output.requires_grad:  # a frozen layer
            output = output.detach().requires_grad_()
        seen.setdefault(layer, []).append((inputs[0], output))
        return output

    hooks = [layer.register_forward_hook(record) for layer in layers or ()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _usable(seen: _Seen, layers: Sequence[nn.Linear], device: str) -> bool:
    """Whether each layer was applied once, to one vector per sample, in full precision, and can be differentiated."""
    once = all(len(seen.get(layer, ())) == 1 and seen[layer][0][0].dim() == 2 for layer in layers)
    return once and torch.is_grad_enabled() and not torch.is_autocast_enabled(device)


def _outer_products(
    loss: Tensor, seen: _Seen, layers: Sequence[nn.Linear], differentiable: bool
) -> list[tuple[Tensor, Tensor, bool]]:
    """The factors of the gradients of a sum over samples."""
    inputs, outputs = zip(*(seen[layer][0] for layer in layers), strict=True)
    gradients = torch.autograd.grad(loss, outputs, create_graph=differentiable, retain_graph=True)
    return [
        (single(gradient), single(given), layer.bias is not None)
        for gradient, given, layer in zip(gradients, inputs, layers, strict=True)
    ]
