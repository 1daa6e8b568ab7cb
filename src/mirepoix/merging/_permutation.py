r"""Weights of one network with their hidden units in the order of another's.

Two networks trained apart may have learned the same things in another order, and then the average of their
weights is nothing. `align` finds, by matching weights, a permutation :math:`P` that brings one near the other,

.. math:: \max_P \; \langle \theta_{ref}, P \theta \rangle,

which is the same as least distance. One group at a time this is a linear assignment problem, solved exactly;
all groups together are not, so the result is a local optimum. Batch norm then needs its statistics measured again
(`reestimate_batch_norm`); without batch norm, see `repair`.

So far, permutations have not made averages of networks from *one shared start* more accurate: such networks are
aligned already, and the average of their weights works as they are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from mirepoix.merging._permutation_spec import PermutationGroup, PermutationSpec
from mirepoix.types import Batch, InputError, Weights

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Alignment", "activation_costs", "align", "permute"]

Array: TypeAlias = np.ndarray[Any, Any]

# Less than this part of a cost matrix's norm is rounding, not a gain.
_NEGLIGIBLE = 1e-12


@dataclass(frozen=True, slots=True)
class Alignment:
    r"""Weights in the order of a reference, and how they got there.

    Attributes:
        theta: The weights, permuted.
        permutations: One per group, as `permute` takes them.
        before: :math:`\langle \theta_{ref}, \theta \rangle` over all tensors that move, but running statistics;
            with costs given, their sum.
        after: The same for the permuted weights; the gain is ``after - before``.
        sweeps: How many times every group was matched, in the best of the starts.
        converged: Whether no group could gain any more.
        notices: Of the spec: what could not be permuted.
    """

    theta: dict[str, Any]
    permutations: dict[str, Array]
    before: float
    after: float
    sweeps: int
    converged: bool
    notices: tuple[str, ...]


def permute(theta: Weights, spec: PermutationSpec, permutations: Mapping[str, Array]) -> dict[str, Any]:
    """Weights of the same function, with hidden units in another order.

    Entry ``i`` of the result is entry ``permutation[i]`` of ``theta``, along every axis of the group.

    Args:
        theta: Weights of the network that the spec was made of, torch or NumPy; they are copied.
        spec: Its groups.
        permutations: An integer array for each group; see `PermutationSpec`.

    Raises:
        InputError: When names or shapes are not those of the spec, or something is no permutation.

    Example:
        >>> import torch
        >>> from mirepoix.merging import permutation_spec
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
        >>> spec = permutation_spec(model, torch.zeros(1, 1))
        >>> swapped = permute(model.state_dict(), spec, {"0": [1, 0]})
        >>> bool((swapped["0.weight"] == model[0].weight[[1, 0]]).all())
        True
    """
    _check_weights("theta", theta, spec)
    orders = _orders(spec, _checked(spec, permutations))
    return {name: _taken(theta[name], orders.get(name, {})) for name in theta}


def align(
    theta: Weights,
    reference: Weights,
    spec: PermutationSpec,
    *,
    seed: int = 0,
    sweeps: int = 100,
    restarts: int = 0,
    costs: Mapping[str, Array] | None = None,
) -> Alignment:
    r"""Permute the hidden units of a network so that its weights come near a reference.

    Coordinate ascent: for one group at a time, all others as they are, entry :math:`(i, j)` of the matrix

    .. math:: C = \sum_{(tensor, axis)} A \, B^\top

    says how well unit ``j`` of ``theta`` (:math:`B`, units in rows) fits in place ``i`` of the reference
    (:math:`A`), and the best assignment is taken if it gains more than rounding. Heads and what is inside
    them are matched together: for every pair of heads the best inner assignment, then the best assignment of
    heads. Running statistics of batch norm are permuted with their channels but not matched: their scale is
    that of the activations.

    The ascent starts from the identity or, if that is nearer, from one pass through the network that matches
    each group by the weights that lead to it from groups matched before. Of a network and a permuted copy of
    it, that pass alone recovers the permutation, where no two units are alike.

    The result is never farther from the reference than ``theta`` was, in the weights that are matched. It
    depends on the seed, as there are many local optima. Afterwards, average it with the reference and measure
    batch norm again.

    Args:
        theta: The weights to permute.
        reference: The weights to come near to; they stay.
        spec: The groups of the network.
        seed: Of the order in which groups are visited in each sweep, and of the restarts.
        sweeps: At most so many visits of every group.
        restarts: Further starts, from random permutations; the best of all is returned.
        costs: For each group a matrix to use instead of :math:`C`, as from `activation_costs`. Groups are then
            independent of each other, and neither sweeps nor restarts matter.

    Returns:
        The permuted weights, with the dtypes and the device they had, and a report.

    Raises:
        InputError: When names or shapes are not those of the spec; for weights that are not finite; for costs
            of the wrong groups or shapes.

    Example:
        >>> import numpy as np, torch
        >>> from mirepoix.merging import permutation_spec
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
        >>> spec = permutation_spec(model, torch.zeros(1, 2))
        >>> shuffled = permute(model.state_dict(), spec, spec.random(np.random.default_rng(0)))
        >>> alignment = align(shuffled, model.state_dict(), spec)
        >>> all(torch.equal(alignment.theta[name], value) for name, value in model.state_dict().items())
        True

    References:
        Ainsworth, Hayase and Srinivasa, Git Re-Basin, 2023, algorithm 1. Ramé et al., Model Ratatouille, 2023,
        average networks that share their pre-trained start as they are.
    """
    if sweeps < 1 or restarts < 0:
        raise InputError(f"expected sweeps >= 1 and restarts >= 0, got {sweeps} and {restarts}.")
    for owner, weights in (("theta", theta), ("reference", reference)):
        _check_weights(owner, weights, spec)
    matching = _Matching(theta, reference, spec) if costs is None else _Given(spec, costs)
    rng = np.random.default_rng(seed)
    best: tuple[float, dict[str, Array], int, bool] | None = None
    before = matching.value(spec.identity())
    for start in range(1 if costs is not None else restarts + 1):
        initial = spec.random(rng) if start else spec.identity()
        if isinstance(matching, _Matching) and start == 0:
            forward = _forward(matching)
            initial = forward if matching.value(forward) > before else initial
        permutations, count, converged = _ascend(matching, initial, rng, sweeps)
        value = matching.value(permutations)
        if best is None or value > best[0]:
            best = (value, permutations, count, converged)
    assert best is not None
    after, permutations, count, converged = best
    moved = permute(theta, spec, permutations)
    return Alignment(moved, permutations, before, after, count, converged, spec.notices)


def activation_costs(
    model: nn.Module, theta: Weights, reference: Weights, spec: PermutationSpec, batches: Iterable[Batch]
) -> dict[str, Array]:
    """Correlations of activations, as costs for `align` instead of weights.

    Entry ``(i, j)`` of a group's matrix is the correlation, over samples and pixels, of unit ``i`` under the
    reference and unit ``j`` under ``theta``, summed over the linear and convolutional layers that write the
    group. A unit that never varies correlates with nothing (0).

    Args:
        model: The network, to run weights in; it is not changed.
        theta: The weights to be permuted.
        reference: The weights to come near to.
        spec: The groups of the network; none inside blocks (attention, group normalisation).
        batches: Some hundred samples; each batch is used twice.

    Raises:
        InputError: Without batches; for groups inside blocks; when no module writes a group.

    References:
        Li et al., Convergent Learning, 2016; Ainsworth et al., 2023, section 3.1.
    """
    import copy

    import torch
    from torch import nn

    first, second = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
    first.load_state_dict(as_tensors(reference))
    second.load_state_dict(as_tensors(theta))
    writers: dict[str, list[tuple[str, Array]]] = {}
    for name, group in spec.groups.items():
        if group.parent is not None or any(other.parent == name for other in spec.groups.values()):
            raise InputError(f"group {name!r} lies in blocks, which activations do not match; use weights.")
        layers = {
            f"{layer}.weight": layer
            for layer, module in model.named_modules()
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
        }
        writers[name] = [
            (layers[act.tensor], act.index[:, 0])
            for act in group.acts
            if act.axis == 0 and act.tensor in layers and act.index.shape[1] == 1
        ]
        if not writers[name]:
            raise InputError(
                f"no linear or convolutional layer writes group {name!r}; match weights instead."
            )
    wanted = {layer for found in writers.values() for layer, _ in found}
    sums = {layer: _Moments() for layer in wanted}
    seen: dict[str, list[Tensor]] = {layer: [] for layer in wanted}
    for network in (first, second):
        for layer in wanted:
            network.get_submodule(layer).register_forward_hook(
                lambda module, _, out, layer=layer: seen[layer].append(_channels(module, out))
            )
    count = 0
    with torch.no_grad():
        for batch in batches:
            first(batch.images)
            second(batch.images)
            count += len(batch.images)
            for layer, outputs in seen.items():
                half = len(outputs) // 2
                sums[layer].add(torch.cat(outputs[:half], 1).numpy(), torch.cat(outputs[half:], 1).numpy())
                outputs.clear()
    if count == 0:
        raise InputError("batches: expected at least one batch to run, got none.")
    return {
        name: sum((sums[layer].correlation()[np.ix_(at, at)] for layer, at in found), np.zeros(()))
        for name, found in writers.items()
    }


class _Moments:
    """Sums of two networks' activations, ``(channels, values)`` each, and of their products."""

    def __init__(self) -> None:
        self.count = 0
        self.x: Any = 0.0
        self.y: Any = 0.0
        self.xx: Any = 0.0
        self.yy: Any = 0.0
        self.xy: Any = 0.0

    def add(self, x: Array, y: Array) -> None:
        self.count += x.shape[1]
        self.x, self.y = self.x + x.sum(1), self.y + y.sum(1)
        self.xx, self.yy = self.xx + (x**2).sum(1), self.yy + (y**2).sum(1)
        self.xy = self.xy + x @ y.T

    def correlation(self) -> Array:
        n = self.count
        covariance = self.xy / n - np.outer(self.x, self.y) / n**2
        scales = [
            np.sqrt(np.maximum(s / n - (m / n) ** 2, 0)) for s, m in ((self.xx, self.x), (self.yy, self.y))
        ]
        product = np.outer(*scales)
        correlation: Array = np.divide(covariance, product, out=np.zeros_like(product), where=product > 0)
        return correlation


def _channels(module: nn.Module, out: Tensor) -> Tensor:
    """Activations as ``(channels, values)`` in float64."""
    from torch import nn

    axis = out.ndim - 1 if isinstance(module, nn.Linear) else 1
    return out.detach().movedim(axis, 0).flatten(1).cpu().double()


# Matching.


class _Matching:
    """The inner products of two networks' weights, by tensor and axis, in float64."""

    def __init__(self, theta: Weights, reference: Weights, spec: PermutationSpec) -> None:
        self.spec = spec
        # Statistics have the scale of activations, not of weights.
        names = {
            act.tensor
            for group in spec.groups.values()
            for act in group.acts
            if not act.tensor.endswith(("running_mean", "running_var"))
        }
        self.a = {name: _wide("reference", reference, name) for name in sorted(names)}
        self.b = {name: _wide("theta", theta, name) for name in sorted(names)}

    def value(self, permutations: Mapping[str, Array]) -> float:
        orders = _orders(self.spec, permutations)
        return sum(float(np.vdot(a, _taken(self.b[name], orders[name]))) for name, a in self.a.items())

    def cost(
        self,
        group: PermutationGroup,
        permutations: Mapping[str, Array],
        unknown: frozenset[tuple[str, int]] = frozenset(),
    ) -> Array:
        """``(units, units)``: what each unit of ``theta`` is worth in each place of the reference.

        Tensors with another axis whose order is unknown say nothing.
        """
        # Nothing on the group's own axes is permuted: a group and what it holds lie on one axis of a tensor.
        tensors = {act.tensor for act in group.acts}
        orders = _orders(self.spec, permutations, tensors)
        size = int(np.prod(group.shape))
        total = np.zeros((size, size))
        for act in group.acts:
            others = {axis: order for axis, order in orders[act.tensor].items() if axis != act.axis}
            if act.tensor not in self.a or any((act.tensor, axis) in unknown for axis in others):
                continue
            rows = [
                np.moveaxis(tensor, act.axis, 0)[act.index.reshape(size, -1)].reshape(size, -1)
                for tensor in (self.a[act.tensor], _taken(self.b[act.tensor], others))
            ]
            total += rows[0] @ rows[1].T
        return total


class _Given:
    """Costs that a caller computed: each group has its own, whatever the others do."""

    def __init__(self, spec: PermutationSpec, costs: Mapping[str, Array]) -> None:
        self.spec = spec
        wanted = {name for name, group in spec.groups.items() if group.acts}
        if set(costs) != wanted:
            raise InputError(f"costs: expected one matrix for each of {sorted(wanted)}, got {sorted(costs)}.")
        self.costs: dict[str, Array] = {}
        for name, cost in costs.items():
            size = int(np.prod(spec.groups[name].shape))
            matrix = np.asarray(cost, dtype=np.float64)
            if matrix.shape != (size, size) or not np.isfinite(matrix).all():
                raise InputError(
                    f"costs: group {name!r} needs a finite matrix of shape {(size, size)}, got {matrix.shape}."
                )
            self.costs[name] = matrix

    def value(self, permutations: Mapping[str, Array]) -> float:
        total = 0.0
        for name, cost in self.costs.items():
            source = _flat(self.spec.groups[name], permutations)
            total += float(cost[np.arange(len(source)), source].sum())
        return total

    def cost(self, group: PermutationGroup, *_: object) -> Array:
        size = int(np.prod(group.shape))
        return self.costs.get(group.name, np.zeros((size, size)))


def _families(spec: PermutationSpec) -> dict[str, list[PermutationGroup]]:
    """Groups that are matched at once: one, or blocks and what is inside them."""
    families: dict[str, list[PermutationGroup]] = {}
    for name, group in spec.groups.items():
        families.setdefault(group.parent or name, []).append(group)
    return families


def _forward(matching: _Matching) -> dict[str, Array]:
    """Each group matched once, from the input on, by what lies between it and groups matched before."""
    spec = matching.spec
    permutations = spec.identity()
    left = _families(spec)
    places = {name: {(a.tensor, a.axis) for group in left[name] for a in group.acts} for name in left}

    def unknown(name: str) -> frozenset[tuple[str, int]]:
        return frozenset().union(*(places[other] for other in left if other != name))

    def judged(name: str) -> bool:
        """Whether some matrix leads from what is known to this group."""
        hidden = {tensor for tensor, _ in unknown(name)}
        return any(len(spec.shapes[tensor]) > 1 and tensor not in hidden for tensor, _ in places[name])

    while left:
        name = next((name for name in left if judged(name)), next(iter(left)))
        _match(matching, left[name], permutations, unknown(name))
        del left[name]
    return permutations


def _ascend(
    matching: _Matching | _Given, permutations: dict[str, Array], rng: np.random.Generator, sweeps: int
) -> tuple[dict[str, Array], int, bool]:
    """Sweep over all groups until no group gains."""
    families = _families(matching.spec)
    names = list(families)
    # What a group is matched to changes only when a group beside it, on another axis of a tensor, does.
    tensors = {name: {act.tensor for group in families[name] for act in group.acts} for name in names}
    stale = set(names)
    for sweep in range(1, sweeps + 1):
        for i in rng.permutation(len(names)):
            name = names[i]
            if name in stale:
                stale.remove(name)
                if _match(matching, families[name], permutations):
                    stale |= {other for other in names if other != name and tensors[other] & tensors[name]}
        if not stale:
            return permutations, sweep, True
    return permutations, sweeps, False


def _match(
    matching: _Matching | _Given,
    family: list[PermutationGroup],
    permutations: dict[str, Array],
    unknown: frozenset[tuple[str, int]] = frozenset(),
) -> bool:
    """The best permutation of one group and of what is inside it, if it is better than the present one."""
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

    head, *inside = sorted(family, key=lambda group: group.parent is not None)
    costs = {group.name: matching.cost(group, permutations, unknown) for group in family}
    worth = costs[head.name].copy()  # (blocks, blocks)
    present = sum(
        float(cost[np.arange(len(cost)), _flat(matching.spec.groups[name], permutations)].sum())
        for name, cost in costs.items()
    )
    inner: dict[str, Array] = {}
    for group in inside:
        blocks, units = group.shape
        tiles = costs[group.name].reshape(blocks, units, blocks, units).swapaxes(1, 2)
        inner[group.name] = np.empty((blocks, blocks, units), dtype=int)
        for i, j in np.ndindex(blocks, blocks):
            rows, columns = linear_sum_assignment(tiles[i, j], maximize=True)
            inner[group.name][i, j] = columns
            worth[i, j] += tiles[i, j][rows, columns].sum()
    rows, columns = linear_sum_assignment(worth, maximize=True)
    scale = sum(float(np.linalg.norm(cost)) for cost in costs.values())
    if worth[rows, columns].sum() - present <= _NEGLIGIBLE * max(1.0, scale):
        return False
    permutations[head.name] = columns
    for name, choices in inner.items():
        permutations[name] = choices[rows, columns]
    return True


# Permutations as orders of axes.


def _flat(group: PermutationGroup, permutations: Mapping[str, Array]) -> Array:
    """For every unit of a group, the unit that comes in its place."""
    own = permutations[group.name]
    if group.parent is None:
        return own
    flat: Array = (permutations[group.parent][:, None] * group.shape[1] + own).ravel()
    return flat


def _orders(
    spec: PermutationSpec, permutations: Mapping[str, Array], tensors: set[str] | None = None
) -> dict[str, dict[int, Array]]:
    """By tensor and axis, which position comes in the place of each."""
    orders: dict[str, dict[int, Array]] = defaultdict(dict)
    for group in spec.groups.values():
        source = _flat(group, permutations)
        for act in group.acts:
            if tensors is not None and act.tensor not in tensors:
                continue
            axes = orders[act.tensor]
            if act.axis not in axes:
                axes[act.axis] = np.arange(spec.shapes[act.tensor][act.axis])
            index = act.index.reshape(len(source), -1)
            axes[act.axis][index] = index[source]
    return orders


def _taken(x: Any, orders: Mapping[int, Array]) -> Any:
    """A copy with axes in another order."""
    if isinstance(x, np.ndarray | np.generic):
        x = np.array(x)
        for axis, order in orders.items():
            x = x.take(order, axis=axis)
        return x
    import torch

    x = x.detach().clone(memory_format=torch.contiguous_format)
    for axis, order in orders.items():
        x = x.index_select(axis, torch.from_numpy(order).to(x.device))
    return x


def _wide(owner: str, theta: Weights, name: str) -> Array:
    value = theta[name]
    array = (
        np.asarray(value)
        if isinstance(value, np.ndarray | np.generic)
        else value.detach().double().cpu().numpy()
    )
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise InputError(f"{name!r} of {owner} holds NaN or infinity; such weights cannot be matched.")
    return array


def as_tensors(theta: Weights) -> dict[str, Tensor]:
    """Weights as a module loads them."""
    import torch

    return {
        name: torch.from_numpy(np.array(x)) if isinstance(x, np.ndarray | np.generic) else x
        for name, x in theta.items()
    }


def _check_weights(owner: str, theta: Weights, spec: PermutationSpec) -> None:
    # A lazy mapping knows its shapes without reading.
    shapes = dict(getattr(theta, "shapes", None) or {name: theta[name].shape for name in theta})
    missing = [name for name in spec.shapes if name not in shapes]
    unexpected = [name for name in shapes if name not in spec.shapes]
    if missing or unexpected:
        raise InputError(
            f"{owner}: expected the {len(spec.shapes)} tensors of the network that the spec was made of, got "
            f"{len(shapes)}; missing {_some(missing)}; unexpected {_some(unexpected)}."
        )
    for name, shape in spec.shapes.items():
        if tuple(shapes[name]) != shape:
            raise InputError(
                f"{owner}: {name!r} has shape {tuple(shapes[name])}, and {shape} in the network that the spec was "
                "made of. Make a spec of this network."
            )


def _checked(spec: PermutationSpec, permutations: Mapping[str, Any]) -> dict[str, Array]:
    if set(permutations) != set(spec.groups):
        raise InputError(
            f"permutations: expected one for each of {_some(list(spec.groups))}, got {_some(list(permutations))}."
        )
    checked = {}
    for name, group in spec.groups.items():
        array = np.asarray(permutations[name])
        expected = np.broadcast_to(np.arange(group.shape[-1]), group.shape)
        if array.shape != group.shape or not np.array_equal(np.sort(array, axis=-1), expected):
            raise InputError(
                f"permutations: group {name!r} needs each of 0..{group.shape[-1] - 1} once, in shape "
                f"{group.shape}, got an array of shape {array.shape}."
            )
        checked[name] = array.astype(np.intp)
    return checked


def _some(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(map(repr, names[:most])) or "none") + more
