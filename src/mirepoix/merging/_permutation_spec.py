"""Which channels of a network may change places: found by watching one forward pass.

Hidden units have no order. Where a layer writes its channels in another order, and all that reads them follows,
the function of the network stays the same. A *group* is a set of units that may change places, with every
(tensor, axis) they act on. Groups are not listed by hand but read from the operations that one sample runs
through, so any Python code in ``forward`` will do:

1. Every position along an axis of a tensor is a node. What an operation identifies (an addition, a
   contraction, the channels of a normalisation) becomes an edge between two nodes; what it stacks (a head and
   its entries, a channel and its pixels after a flatten) becomes an edge from parent to child.
2. The network's input and output, all spatial axes, and every tensor under an operation that is not known here
   are fixed. An unknown operation costs freedom, never correctness.
3. Nodes joined by edges are one unit. Units that look the same from everywhere (their colours agree after
   refinement, as in tests of graph isomorphism) may change places; a unit without an equal stays.

Attention falls out of this: heads are parents, the entries of queries and keys one kind of children, those of
values another. So do shortcuts padded with zeros (option A), whose channels split into old ones and new ones.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from mirepoix.merging._channel_graph import Axis, Graph, Trace, evaluating, tensors_in, watching
from mirepoix.types import InputError, Outputs

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Act", "PermutationGroup", "PermutationSpec", "permutation_spec"]

Array: TypeAlias = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False, slots=True)
class Act:
    """One axis of one tensor that a group permutes.

    Attributes:
        tensor: Its name in the weights.
        axis: The axis.
        index: ``(*units, roles)``: the positions along the axis that belong to each unit. A channel that was
            flattened with its 49 pixels has 49 roles; a channel of a convolution has one.
    """

    tensor: str
    axis: int
    index: Array


@dataclass(frozen=True, eq=False, slots=True)
class PermutationGroup:
    """Units that may change places with each other.

    Attributes:
        name: After the first weight that has them, ``:blocks`` for heads, ``:within`` for what is inside.
        shape: ``(units,)``, or ``(blocks, units)`` for the units inside the blocks of ``parent``, where each
            block has a permutation of its own.
        acts: Where they are.
        parent: The group of the blocks, if these units move with blocks.
    """

    name: str
    shape: tuple[int, ...]
    acts: tuple[Act, ...]
    parent: str | None = None


@dataclass(frozen=True, eq=False, slots=True)
class PermutationSpec:
    """All permutations of hidden units under which a network stays the same function.

    A permutation of a group is an integer array of the group's shape: entry ``i`` of the result is entry
    ``permutation[i]`` of what came in. For a group inside blocks, row ``h`` orders the units that end in block
    ``h``, and the permutation of the blocks says which block they come from.

    Attributes:
        groups: By name.
        shapes: Of all tensors of the network's weights.
        notices: What was left in its order though it might have moved, and why.
    """

    groups: Mapping[str, PermutationGroup]
    shapes: Mapping[str, tuple[int, ...]]
    notices: tuple[str, ...] = ()

    def identity(self) -> dict[str, Array]:
        """The permutations that change nothing."""
        return {
            name: np.broadcast_to(np.arange(group.shape[-1]), group.shape).copy()
            for name, group in self.groups.items()
        }

    def random(self, rng: np.random.Generator) -> dict[str, Array]:
        """Independent uniform permutations."""
        return {name: rng.permuted(array, axis=-1) for name, array in self.identity().items()}

    def inverse(self, permutations: Mapping[str, Array]) -> dict[str, Array]:
        """The permutations that undo others: ``permute`` by both changes nothing."""
        inverses = {}
        for name, group in self.groups.items():
            undone = np.argsort(permutations[name], axis=-1)
            inverses[name] = undone[np.argsort(permutations[group.parent])] if group.parent else undone
        return inverses


def permutation_spec(model: nn.Module, example_input: Tensor) -> PermutationSpec:
    """The permutations of hidden units that leave a network the same function.

    The model runs once, on one sample, in evaluation mode. Outputs of linear and convolutional layers form
    groups with all that consumes the same channels; additions unify groups; scales, shifts and running
    statistics of a normalisation belong to the group. The input and the output of the network stay (of
    `mirepoix.types.Outputs` the logits: features may change their order). Depthwise convolutions and
    flattening propagate a group; attention has one permutation of heads, one inside each head shared by queries
    and keys, and one shared by values and the output layer; group normalisation permutes whole groups, and
    channels inside each.

    Left in their order, with a notice: channels of a grouped convolution; channels mixed by a reshape or by an
    operation that is not known here; a group that would act on two axes of one tensor (``x + W x``, or tied
    weights), for which matching is not an assignment problem. Weights that one evaluation does not
    use, as auxiliary classifiers, stay as they are too.

    Permutations have not, so far, made averages of networks from *one shared start* more accurate: such networks
    are aligned already. They are for networks trained apart.

    Args:
        model: The network; its weights and modes are left as they were.
        example_input: A batch of inputs; only the first sample is used.

    Raises:
        InputError: Without a sample.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
        >>> spec = permutation_spec(model, torch.zeros(1, 2))
        >>> [(act.tensor, act.axis) for act in spec.groups["0"].acts]
        [('0.weight', 0), ('0.bias', 0), ('2.weight', 1)]

    References:
        Ainsworth, Hayase and Srinivasa, Git Re-Basin, 2023, section 3.
    """
    import torch

    if not isinstance(example_input, torch.Tensor) or example_input.ndim < 1 or len(example_input) == 0:
        shape = tuple(getattr(example_input, "shape", ()))
        raise InputError(f"example_input: expected a batch with at least one sample, got shape {shape}.")
    tensors = model.state_dict(keep_vars=True)
    trace = Trace()
    names: dict[int, list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        names[id(tensor)].append(name)
        trace.set(tensor, [Axis(trace.graph.fresh(n)) for n in tensor.shape])
    sample = example_input[:1].detach()
    trace.set(sample, trace.fixed(sample.shape))
    with evaluating(model), torch.no_grad(), watching(trace):
        outputs = model(sample)
    for tensor in tensors_in(outputs.logits if isinstance(outputs, Outputs) else outputs):
        trace.fix(tensor)

    acts: dict[tuple[str, int], Array] = {}
    unused = []
    for key, known in names.items():
        tensor, layout = trace.layouts[key]
        if key not in trace.used:
            unused += known if tensor.ndim else []
            trace.fix(tensor)
        for name in known:  # tied tensors have several names
            acts |= {(name, i): axis.nodes for i, axis in enumerate(layout) if axis.size > 1}
    order = {name: i for i, name in enumerate(tensors)}
    acts = dict(sorted(acts.items(), key=lambda item: (order[item[0][0]], item[0][1])))
    groups, notices = _solve(trace.graph, acts)
    if unused:
        notices.append(f"{_some(unused)}: stays as it is, because the forward pass does not use it.")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return PermutationSpec({group.name: group for group in groups}, shapes, tuple(notices))


def _some(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more


# From the graph to groups.

_UP, _DOWN = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)


def _mix(x: Array) -> Array:
    """A hash of 64 bits (the finaliser of SplitMix64), so that sums of hashes tell multisets apart."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Array = x ^ (x >> np.uint64(31))
    return mixed


def _joined(pairs: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    if not pairs:
        return np.empty(0, int), np.empty(0, int)
    return np.concatenate([a for a, _ in pairs]), np.concatenate([b for _, b in pairs])


@dataclass(slots=True)
class _Units:
    """The state of the solution: units, their colours, and who may change places with whom."""

    unit: Array  # of each node
    color: Array  # of each node
    kind: Array  # of each unit; equal kinds look alike
    size: Array  # of each unit: how many units are of its kind
    parent: Array  # of each unit: the unit it moves with, or -1
    holder: Array  # of each unit: the unit it is a part of, mostly itself
    several: Array  # (2, pairs): two parents of one unit


def _units(graph: Graph) -> _Units:
    from scipy.sparse import coo_array  # type: ignore[import-untyped]
    from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

    a, b = _joined(graph.edges)
    child, parent = _joined(graph.parents)
    shape = (graph.count, graph.count)
    total, unit = connected_components(coo_array((np.ones(len(a)), (a, b)), shape=shape), directed=False)

    color = np.zeros(graph.count, np.uint64)
    for nodes, tokens in graph.tokens:
        np.add.at(color, nodes, _mix(tokens))
    classes = 0
    while (found := len(np.unique(color))) > classes:
        classes = found
        mixed = _mix(color)
        new = color.copy()
        for to, values in (
            (a, mixed[b]),
            (b, mixed[a]),
            (child, _mix(mixed[parent] ^ _UP)),
            (parent, _mix(mixed[child] ^ _DOWN)),
        ):
            np.add.at(new, to, values)
        color = _mix(new)

    signature = np.zeros(total, np.uint64)
    np.add.at(signature, unit, _mix(color))
    _, kind, counts = np.unique(signature, return_inverse=True, return_counts=True)
    size = counts[kind]
    # A parent that stays is no reason for its children to move, so only those that move count.
    movable = size[unit[parent]] > 1
    links = np.unique(np.stack([unit[child[movable]], unit[parent[movable]]]), axis=1)
    up = np.full(total, -1)
    up[links[0]] = links[1]
    # Where a parent has one child of a kind, the child is a part of the parent: a role, as a pixel is.
    children = np.flatnonzero(up >= 0)
    _, place, counts = np.unique(
        np.stack([up[children], kind[children]]), axis=1, return_inverse=True, return_counts=True
    )
    holder = np.arange(total)
    alone = children[counts[place.ravel()] == 1]
    holder[alone] = up[alone]
    while (holder != holder[holder]).any():
        holder = holder[holder]
    doubled = np.flatnonzero(np.diff(links[0]) == 0)
    several = np.stack([links[1, doubled], links[1, doubled + 1]])
    return _Units(unit, color, kind, size, up, holder, several)


def _solve(graph: Graph, acts: Mapping[tuple[str, int], Array]) -> tuple[list[PermutationGroup], list[str]]:
    """Refine until every unit has one place and one parent, then read off the groups."""
    while True:
        units = _units(graph)
        bad, reason = _obstacle(graph, units, acts)
        if bad is None:
            break
        if reason is not None:
            graph.fix(np.flatnonzero(np.isin(units.unit, bad)), reason)
    return _groups(units, acts), _notices(graph, units, acts)


def _obstacle(
    graph: Graph, units: _Units, acts: Mapping[tuple[str, int], Array]
) -> tuple[Array | None, str | None]:
    """Units that must stay, and why; without a reason the graph was mended instead."""
    moving = units.size[units.unit] > 1
    pairs = np.stack([units.unit[moving].astype(np.uint64), units.color[moving]])
    found, counts = np.unique(pairs, axis=1, return_counts=True)
    if (counts > 1).any():
        return found[0, counts > 1].astype(int), "they stand twice in the same place"

    if units.several.size:
        # Group norms in a row stack the same channels twice: parents with the same children are one.
        child, parent = _joined(graph.parents)
        links = np.unique(np.stack([units.unit[child], units.unit[parent]]), axis=1)
        family = np.zeros(len(units.kind), np.uint64)
        np.add.at(family, links[1], _mix(links[0].astype(np.uint64)))
        one, two = units.several
        if (family[one] == family[two]).all():
            order = np.lexsort((units.color, units.unit))
            first = order[np.searchsorted(units.unit[order], np.arange(len(units.kind)))]
            graph.link(first[one], first[two])
            return one, None
        return units.several.ravel(), "a reshape or two group normalisations mix them"

    up = units.parent
    blocks = up[(up >= 0) & (units.holder == np.arange(len(up)))]
    if (up[units.holder[blocks]] >= 0).any():
        return up[units.holder[blocks]][up[units.holder[blocks]] >= 0], "they hold blocks of blocks"

    top = np.where(up[units.holder] >= 0, units.holder[up[units.holder]], units.holder)
    family_kind = units.kind[top]
    seen: dict[str, Array] = {}
    for (name, _), nodes in acts.items():
        unit = units.unit[nodes]
        kinds = np.unique(family_kind[unit[units.size[unit] > 1]])
        before = seen.get(name, kinds[:0])
        if len(both := np.intersect1d(kinds, before)):
            return np.flatnonzero(np.isin(family_kind, both)), f"they would act on two axes of {name!r}"
        seen[name] = np.union1d(kinds, before)
    return None, None


def _groups(units: _Units, acts: Mapping[tuple[str, int], Array]) -> list[PermutationGroup]:
    up, holder = units.parent, units.holder
    found: dict[int, list[_Part]] = defaultdict(list)  # by kind, in the order of the weights
    for (name, axis), nodes in acts.items():
        unit = holder[units.unit[nodes]]
        moving = units.size[unit] > 1
        for kind in dict.fromkeys(units.kind[unit[moving]].tolist()):
            at = np.flatnonzero(moving & (units.kind[unit] == kind))
            found[kind].append(_Part(name, axis, at, units.color[nodes[at]], unit[at]))

    inner = {kind: int(units.kind[up[parts[0].units[0]]]) for kind, parts in found.items()}
    inner = {kind: parent for kind, parent in inner.items() if up[found[kind][0].units[0]] >= 0}
    groups: dict[str, PermutationGroup] = {}
    for top in dict.fromkeys(inner.get(kind, kind) for kind in found):
        kinds = [kind for kind, parent in inner.items() if parent == top]
        parts = found.get(top, [])
        blocks = _first_seen(parts[0].units if parts else up[found[kinds[0]][0].units])
        name = _name((parts or found[kinds[0]])[0].tensor, "blocks" if kinds else "", groups)
        groups[name] = PermutationGroup(name, blocks.shape, _acts(parts, blocks))
        for kind in kinds:
            seen = found[kind][0].units
            rows = np.stack([_first_seen(seen[up[seen] == block]) for block in blocks])
            child = _name(found[kind][0].tensor, "within", groups)
            groups[child] = PermutationGroup(child, rows.shape, _acts(found[kind], rows), name)
    return list(groups.values())


@dataclass(frozen=True, slots=True)
class _Part:
    """Where the units of one kind lie along one axis."""

    tensor: str
    axis: int
    positions: Array
    roles: Array  # the colour of each position, the same for units of one kind
    units: Array


def _first_seen(units: Array) -> Array:
    _, first = np.unique(units, return_index=True)
    return units[np.sort(first)]


def _acts(parts: Sequence[_Part], units: Array) -> tuple[Act, ...]:
    rank = {unit: i for i, unit in enumerate(units.ravel().tolist())}
    acts = []
    for part in parts:
        order = np.lexsort((part.roles, np.array([rank[unit] for unit in part.units.tolist()])))
        acts.append(Act(part.tensor, part.axis, part.positions[order].reshape(*units.shape, -1)))
    return tuple(acts)


def _name(tensor: str, suffix: str, taken: Mapping[str, object]) -> str:
    base = ":".join(filter(None, (tensor.rpartition(".")[0] or tensor, suffix)))
    return next(name for i in itertools.count(1) if (name := base if i == 1 else f"{base}#{i}") not in taken)


def _notices(graph: Graph, units: _Units, acts: Mapping[tuple[str, int], Array]) -> list[str]:
    """One sentence for each reason, with the weights whose channels stay because of it."""
    natural = np.zeros(len(units.kind), bool)
    for nodes, reason in graph.frozen:
        if reason is None:
            natural[units.unit[nodes]] = True
    child, parent = _joined(graph.parents)
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for nodes, reason in graph.frozen:
        if reason is None:
            continue
        stays = np.zeros(len(units.kind), bool)
        stays[units.unit[nodes]] = True
        stays[units.unit[child[stays[units.unit[parent]]]]] = True
        stays &= ~natural
        for (name, _), places in acts.items():
            if stays[units.unit[places]].any():
                found[reason][name] = None
    return [
        f"channels of {_some(list(names))} keep their order: {reason}." for reason, names in found.items()
    ]
