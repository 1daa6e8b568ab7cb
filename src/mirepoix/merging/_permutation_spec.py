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

import dataclasses
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

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
        Ainsworth, Hayase and Srinivasa, Git Re-Basin, 2023, section 3 and appendix A.
    """
    import torch

    if not isinstance(example_input, torch.Tensor) or example_input.ndim < 1 or len(example_input) == 0:
        shape = tuple(getattr(example_input, "shape", ()))
        raise InputError(f"example_input: expected a batch with at least one sample, got shape {shape}.")
    tensors = model.state_dict(keep_vars=True)
    trace = _Trace()
    names: dict[int, list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        names[id(tensor)].append(name)
        trace.set(tensor, [_Axis(trace.graph.fresh(n)) for n in tensor.shape])
    sample = example_input[:1].detach()
    trace.set(sample, trace.fixed(sample.shape))
    with _evaluating(model), torch.no_grad(), _watch(trace):
        outputs = model(sample)
    for tensor in _tensors(outputs.logits if isinstance(outputs, Outputs) else outputs):
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


# The graph: nodes, what joins them, and what keeps them apart.


class _Graph:
    """Nodes with tokens (initial colours), edges of identity, and edges from child to parent."""

    def __init__(self) -> None:
        self.count = 0
        self._token = 0
        self.tokens: list[tuple[Array, Array]] = []  # nodes, token of each
        self.edges: list[tuple[Array, Array]] = []
        self.parents: list[tuple[Array, Array]] = []  # children, parents
        self.frozen: list[tuple[Array, str | None]] = []
        self.still: set[int] = set()  # nodes fixed so far

    def fresh(self, *shape: int) -> Array:
        """New nodes that nothing tells apart yet, but that differ from all others."""
        count = math.prod(shape)
        nodes = np.arange(self.count, self.count + count).reshape(shape)
        self.count += count
        self.mark(nodes)
        return nodes

    def mark(self, nodes: Array) -> None:
        """Tell these nodes from those that were like them."""
        self._token += 1
        self.tokens.append((nodes.ravel(), np.full(nodes.size, self._token, np.uint64)))

    def fix(self, nodes: Array, reason: str | None = None) -> None:
        """Keep nodes where they are; without a reason it is in their nature, and nobody needs to know."""
        nodes = np.unique(nodes)
        self.tokens.append((nodes, nodes.astype(np.uint64) + np.uint64(1 << 40)))
        self.frozen.append((nodes, reason))
        self.still.update(nodes.tolist())

    def is_fixed(self, nodes: Array) -> bool:
        return self.still.issuperset(nodes.ravel().tolist())

    def link(self, a: Array, b: Array) -> None:
        if a is not b:
            self.edges.append((a.ravel(), b.ravel()))

    def stack(self, children: Array, parents: Array) -> None:
        children, parents = np.broadcast_arrays(children, parents)
        self.parents.append((children.ravel(), parents.ravel()))


@dataclass(frozen=True, slots=True)
class _Axis:
    """One axis of a tensor: a node for each position, for each position of the axes it is ``given``."""

    nodes: Array  # (sizes of the given axes ..., size)
    given: tuple[int, ...] = ()
    parts: tuple[_Axis, ...] = ()  # the axes it was merged from

    @property
    def size(self) -> int:
        return int(self.nodes.shape[-1])


_Layout: TypeAlias = "list[_Axis]"


class _Opaque(Exception):
    """This operation cannot be followed; all it touches stays in its order."""


# The operations. Names are those of torch's ATen; what is missing here is opaque.

_SAME = {
    "alias", "clone", "contiguous", "detach", "dropout", "hardswish", "hardswish_",
    "lift_fresh", "_to_copy", "_softmax", "_log_softmax", "native_dropout",
}  # fmt: skip
_VIEWS = {"view", "_unsafe_view", "reshape", "_reshape_alias"}
_REDUCTIONS = {"mean", "sum", "amax", "amin", "var", "std", "var_mean", "logsumexp", "linalg_vector_norm"}
_CONSTANT = {
    "empty", "empty_like", "full", "full_like", "new_empty", "new_full", "new_ones", "new_zeros", "ones",
    "ones_like", "zeros", "zeros_like",
}  # fmt: skip
_BATCH_NORM = {"native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "_native_batch_norm_legit"}
_BATCH_NORM |= {"_native_batch_norm_legit_no_training", "_batch_norm_no_update", "batch_norm"}


class _Trace:
    """The axes of every tensor that a forward pass has made so far."""

    def __init__(self) -> None:
        self.graph = _Graph()
        self.layouts: dict[int, tuple[Tensor, _Layout]] = {}  # keeps tensors alive, so that ids stay theirs
        self.used: set[int] = set()

    def set(self, tensor: Tensor, layout: _Layout) -> None:
        self.layouts[id(tensor)] = (tensor, layout)

    def of(self, tensor: Tensor) -> _Layout:
        if id(tensor) not in self.layouts:  # not made from weights or input: a constant
            self.set(tensor, self.fixed(tensor.shape))
        self.used.add(id(tensor))
        return self.layouts[id(tensor)][1]

    def fixed(self, shape: Sequence[int]) -> _Layout:
        axes = [_Axis(self.graph.fresh(n)) for n in shape]
        for axis in axes:
            self.graph.fix(axis.nodes)
        return axes

    def free(self, shape: Sequence[int]) -> _Layout:
        return [_Axis(self.graph.fresh(n)) for n in shape]

    def fix(self, tensor: Tensor, reason: str | None = None) -> None:
        for axis in self.of(tensor):
            self.graph.fix(axis.nodes, reason)

    def follow(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
        """Take note of one operation."""
        import torch

        schema = func._schema
        given = dict(zip((argument.name for argument in schema.arguments), args, strict=False))
        a = {x.name: given.get(x.name, kwargs.get(x.name, x.default_value)) for x in schema.arguments}
        name = schema.name.partition("::")[2]
        outs = list(_tensors(out))
        try:
            layouts = self._layouts(name, torch.Tag.pointwise in func.tags, a, outs)
            for x, layout in zip(outs, layouts, strict=False):
                if [axis.size for axis in layout] != list(x.shape):
                    raise _Opaque
                self.set(x, layout)
        except _Opaque:
            for tensor in _tensors(a):
                self.fix(tensor, f"the operation {name!r} mixes them, or is not known here")
            for x in outs:
                if not any(x is tensor for tensor in _tensors(a)):
                    self.set(x, self.fixed(x.shape))

    def _layouts(self, name: str, pointwise: bool, a: dict[str, Any], outs: list[Tensor]) -> list[_Layout]:
        a["out shape"] = shape = tuple(outs[0].shape) if outs else ()
        if 0 in shape:
            raise _Opaque
        x = a.get("self", a.get("input"))
        rule: Callable[[dict[str, Any]], _Layout] | None = getattr(self, f"_do_{name.rstrip('_')}", None)
        if rule is not None:
            return [rule(a)]
        if name in _VIEWS and ("size" in a or "shape" in a):
            return [self._reshape(self.of(x), shape)]
        if name in _CONSTANT:
            return [self.free(shape)]
        if name in _BATCH_NORM:
            weights = [a.get(key) for key in ("weight", "bias", "running_mean", "running_var")]
            return [self._normalise(self.of(x), [1], weights)]
        if name.startswith("_scaled_dot_product"):
            return [self._attention(a)]
        if "pool" in name or name.startswith("upsample"):
            return [self._spatial(self.of(x), shape, name)] * len(outs)
        if name in _REDUCTIONS:
            return [self._reduce(self.of(x), a.get("dim"), bool(a.get("keepdim")))] * len(outs)
        if name in ("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes"):
            return self._pieces(self.of(x), a["dim"], [y.shape[a["dim"]] for y in outs])
        if name == "unbind":
            return [self._select(self.of(x), a["dim"], i) for i in range(len(outs))]
        if name in _SAME:
            return [self.of(x)]
        if pointwise or name == "copy_":
            return [self._pointwise([self.of(tensor) for tensor in _tensors(a)], shape)]
        if not list(_tensors(a)):
            return [self.fixed(y.shape) for y in outs]
        raise _Opaque

    # Joining axes.

    def _join(self, x: _Axis, y: _Axis) -> None:
        """Two axes that an operation takes position by position."""
        if x.given == y.given and x.nodes.shape == y.nodes.shape:
            self.graph.link(x.nodes, y.nodes)
            if [p.nodes.shape for p in x.parts] == [p.nodes.shape for p in y.parts]:
                for p, q in zip(x.parts, y.parts, strict=True):
                    self._join(p, q)
        elif x.given and y.given:
            for axis in (x, y):
                self.graph.fix(axis.nodes, "blocks of different kinds meet")
        else:
            inner, shared = (x, y) if x.given else (y, x)
            self.graph.fix(shared.nodes, "one weight serves all heads or blocks")
            for j in range(inner.size):  # blocks still move, each with its entries in their order
                self.graph.mark(inner.nodes[..., j])

    def _pointwise(self, layouts: Sequence[_Layout], shape: tuple[int, ...]) -> _Layout:
        out = []
        for i, size in enumerate(shape):
            found = []
            for layout in layouts:
                shift = len(shape) - len(layout)
                if i >= shift and layout[i - shift].size == size:
                    axis = layout[i - shift]
                    found.append(dataclasses.replace(axis, given=tuple(g + shift for g in axis.given)))
            if size == 1 or not found:
                out.append(_Axis(self.graph.fresh(size)))
                continue
            found.sort(key=lambda axis: -len(axis.given))
            for other in found[1:]:
                self._join(found[0], other)
            out.append(found[0])
        return out

    # Layers.

    def _do_mm(self, a: dict[str, Any]) -> _Layout:
        (rows, inner), (outer, columns) = self.of(a["self"]), self.of(a["mat2"])
        if rows.given or inner.given or outer.given or columns.given:
            raise _Opaque
        self._join(inner, outer)
        return [rows, columns]

    def _do_addmm(self, a: dict[str, Any]) -> _Layout:
        out = self._do_mm({"self": a["mat1"], "mat2": a["mat2"]})
        bias = self.of(a["self"])
        return self._pointwise([out, bias], tuple(axis.size for axis in out))

    def _do_linear(self, a: dict[str, Any]) -> _Layout:
        (columns, outer), x = self.of(a["weight"]), self.of(a["input"])
        self._join(x[-1], outer)
        if a.get("bias") is not None:
            self._join(columns, self.of(a["bias"])[0])
        return [*x[:-1], columns]

    def _do_bmm(self, a: dict[str, Any]) -> _Layout:
        (batch, rows, inner), (batch2, outer, columns) = self.of(a["self"]), self.of(a["mat2"])
        if any(not set(axis.given) <= {0} for axis in (rows, inner, outer, columns)):
            raise _Opaque
        self._join(batch, batch2)
        self._join(inner, outer)
        return [batch, rows, columns]

    def _do_baddbmm(self, a: dict[str, Any]) -> _Layout:
        out = self._do_bmm({"self": a["batch1"], "mat2": a["batch2"]})
        return self._pointwise([out, self.of(a["self"])], tuple(axis.size for axis in out))

    def _attention(self, a: dict[str, Any]) -> _Layout:
        q, k, v = (self.of(a[key]) for key in ("query", "key", "value"))
        mask = a.get("attn_mask", a.get("attn_bias"))
        heads = q[-3].size
        if any(len(x) != 4 or x[1].size != heads for x in (q, k, v)):  # also queries that share their keys
            raise _Opaque
        for x in (q, k, v):
            if any(not set(axis.given) <= {1} for axis in x):
                raise _Opaque
        for i in (0, 1, 3):
            self._join(q[i], k[i])
        for i in (0, 1, 2):
            self._join(k[i], v[i])
        if mask is not None:
            scores = [q[0], q[1], q[2], k[2]]
            self._pointwise([scores, self.of(mask)], tuple(axis.size for axis in scores))
        return [q[0], q[1], q[2], v[3]]

    def _do_convolution(self, a: dict[str, Any]) -> _Layout:
        x, weight = self.of(a["input"]), self.of(a["weight"])
        for axis in (*x[2:], *weight[2:]):
            self.graph.fix(axis.nodes)
        groups, out, inner = a["groups"], weight[0], weight[1]
        if a["transposed"]:
            out, inner = inner, out
        if groups == 1:
            self._join(x[1], inner)
        elif groups == x[1].size == weight[0].size and weight[1].size == 1:  # depthwise
            out = weight[0]
            self._join(x[1], out)
        else:
            for axis in (x[1], *weight[:2]):
                self.graph.fix(axis.nodes, f"a convolution of {groups} groups")
            if a["transposed"]:
                out = self.fixed([out.size * groups])[0]
        if a["bias"] is not None:
            self._join(out, self.of(a["bias"])[0])
        return [x[0], out, *self.fixed(a["out shape"][2:])]

    def _do_embedding(self, a: dict[str, Any]) -> _Layout:
        words, entries = self.of(a["weight"])
        self.graph.fix(words.nodes)
        return [*self.of(a["indices"]), entries]

    def _normalise(self, x: _Layout, axes: Sequence[int], weights: Sequence[Tensor | None]) -> _Layout:
        for weight in weights:
            if weight is not None and weight.numel():
                for i, axis in zip(axes, self.of(weight), strict=True):
                    self._join(x[i], axis)
        return x

    def _do_native_layer_norm(self, a: dict[str, Any]) -> _Layout:
        x = self.of(a["input"])
        axes = range(len(x) - len(a["normalized_shape"]), len(x))
        return self._normalise(x, axes, [a["weight"], a.get("bias")])

    _do__fused_rms_norm = _do_native_layer_norm

    def _do_native_group_norm(self, a: dict[str, Any]) -> _Layout:
        x, groups = self.of(a["input"]), a["group"]
        channels = x[1]
        if channels.given:
            raise _Opaque
        if 1 < groups < channels.size:
            parents = self.graph.fresh(groups)
            self.graph.stack(channels.nodes, np.repeat(parents, channels.size // groups))
        return self._normalise(x, [1], [a["weight"], a["bias"]])

    def _spatial(self, x: _Layout, shape: tuple[int, ...], name: str) -> _Layout:
        count = next((int(d) for d in "123" if f"{d}d" in name), None)
        if count is None or any(axis.given for axis in x):
            raise _Opaque
        for axis in x[-count:]:
            self.graph.fix(axis.nodes)
        return [*x[:-count], *self.fixed(shape[-count:])]

    def _reduce(self, x: _Layout, dims: Any, keep: bool) -> _Layout:
        dims = range(len(x)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
        gone = {d % len(x) for d in dims}
        if any(gone & set(axis.given) for i, axis in enumerate(x) if i not in gone):
            raise _Opaque
        if keep:
            return [_Axis(self.graph.fresh(1)) if i in gone else axis for i, axis in enumerate(x)]
        return _ordered(x, [i for i in range(len(x)) if i not in gone])

    # Views.

    def _do_as_strided(self, a: dict[str, Any]) -> _Layout:
        x = self.of(a["self"])
        if [axis.size for axis in x] != list(a["size"]) or sum(axis.size > 1 for axis in x) > 1:
            raise _Opaque
        return x

    def _do_roll(self, a: dict[str, Any]) -> _Layout:
        out = list(self.of(a["self"]))
        for d in a["dims"]:
            if not self.graph.is_fixed(out[d].nodes) or out[d].given:
                raise _Opaque
            out[d] = self.fixed([out[d].size])[0]
        return out

    _do_flip = _do_roll

    def _do_index(self, a: dict[str, Any]) -> _Layout:
        """Rows of a table."""
        x, indices = self.of(a["self"]), a["indices"]
        if any(index is None for index in indices):
            raise _Opaque
        for index in indices:
            for axis in self.of(index):
                self.graph.fix(axis.nodes)
        for axis in x[: len(indices)]:
            self.graph.fix(axis.nodes)
        rest = _ordered(x, range(len(indices), len(x)))
        new = len(a["out shape"]) - len(rest)
        moved = {i: i + new for i in range(len(rest))}
        return [*self.fixed(a["out shape"][:new]), *_renumbered(rest, moved)]

    def _do_t(self, a: dict[str, Any]) -> _Layout:
        x = self.of(a["self"])
        return _ordered(x, range(len(x))[::-1])

    def _do_transpose(self, a: dict[str, Any]) -> _Layout:
        x = self.of(a["self"])
        order = list(range(len(x)))
        i, j = a["dim0"], a["dim1"]
        order[i], order[j] = order[j], order[i]
        return _ordered(x, order)

    def _do_permute(self, a: dict[str, Any]) -> _Layout:
        x = self.of(a["self"])
        return _ordered(x, [d % len(x) for d in a["dims"]])

    def _do_unsqueeze(self, a: dict[str, Any]) -> _Layout:
        x = self.of(a["self"])
        return self._with_ones(x, [a["dim"] % (len(x) + 1)])

    def _do_squeeze(self, a: dict[str, Any]) -> _Layout:
        x, dims = self.of(a["self"]), a.get("dim")
        dims = range(len(x)) if dims is None else [dims] if isinstance(dims, int) else dims
        gone = {d % len(x) for d in dims if x[d].size == 1}
        return _ordered(x, [i for i in range(len(x)) if i not in gone])

    def _do_expand(self, a: dict[str, Any]) -> _Layout:
        x, sizes = self.of(a["self"]), a["size"]
        out = self._with_ones(x, range(len(sizes) - len(x)))
        for i, n in enumerate(sizes):
            if n not in (-1, out[i].size):
                out[i] = _Axis(self.graph.fresh(n))  # copies of one value have no order
        return out

    def _do_slice(self, a: dict[str, Any]) -> _Layout:
        x = self.of(a["self"])
        dim = a["dim"] % len(x)
        return self._pick(x, dim, range(x[dim].size)[slice(a["start"], a["end"], a["step"])])

    def _do_select(self, a: dict[str, Any]) -> _Layout:
        return self._select(self.of(a["self"]), a["dim"], a["index"])

    def _select(self, x: _Layout, dim: int, index: int) -> _Layout:
        dim %= len(x)
        picked = self._pick(x, dim, [index % x[dim].size])
        return _ordered(picked, [i for i in range(len(x)) if i != dim])

    def _pieces(self, x: _Layout, dim: int, sizes: Sequence[int]) -> list[_Layout]:
        ends = np.cumsum(sizes)
        return [self._pick(x, dim % len(x), range(e - n, e)) for n, e in zip(sizes, ends, strict=True)]

    def _pick(self, x: _Layout, dim: int, positions: Sequence[int]) -> _Layout:
        """Some positions along one axis, which are told from the others by that."""
        if len(positions) == x[dim].size and list(positions) == list(range(x[dim].size)):
            return x
        index = np.asarray(positions, dtype=int)
        out = list(x)
        out[dim] = _Axis(x[dim].nodes[..., index], x[dim].given)
        self.graph.mark(out[dim].nodes)
        for i, axis in enumerate(x):
            if dim in axis.given:
                out[i] = _Axis(axis.nodes.take(index, axis=axis.given.index(dim)), axis.given)
        return _without_trivial(out, dim) if len(index) == 1 else out

    def _do_cat(self, a: dict[str, Any]) -> _Layout:
        layouts = [self.of(x) for x in a["tensors"] if x.numel()]
        dim = a["dim"] % len(layouts[0])
        if any(dim in axis.given for layout in layouts for axis in layout):
            raise _Opaque
        if any(layout[dim].given != layouts[0][dim].given for layout in layouts):
            raise _Opaque
        out = list(layouts[0])
        for layout in layouts[1:]:
            for i, axis in enumerate(layout):
                if i != dim:
                    self._join(out[i], axis)
        pieces = [layout[dim].nodes for layout in layouts]
        nodes = np.concatenate(pieces, axis=-1)
        if len(np.unique(nodes)) < nodes.size:  # the same channels twice: which copy is which?
            copies = [self.graph.fresh(*piece.shape) for piece in pieces]
            for copy, piece in zip(copies, pieces, strict=True):
                self.graph.link(copy, piece)
            nodes = np.concatenate(copies, axis=-1)
        out[dim] = _Axis(nodes, layouts[0][dim].given)
        return out

    def _do_stack(self, a: dict[str, Any]) -> _Layout:
        layouts = [self.of(x) for x in a["tensors"]]
        for layout in layouts[1:]:
            for x, y in zip(layouts[0], layout, strict=True):
                self._join(x, y)
        dim = a["dim"] % (len(layouts[0]) + 1)
        out = self._with_ones(layouts[0], [dim])
        out[dim] = self.fixed([len(layouts)])[0]
        return out

    def _do_constant_pad_nd(self, a: dict[str, Any]) -> _Layout:
        out = list(self.of(a["self"]))
        for i, (before, after) in enumerate(zip(a["pad"][::2], a["pad"][1::2], strict=True)):
            dim = len(out) - 1 - i
            if before < 0 or after < 0:
                size = out[dim].size
                out = self._pick(out, dim, range(max(0, -before), size - max(0, -after)))
                before, after = max(0, before), max(0, after)
            if before or after:
                if out[dim].given or any(dim in axis.given for axis in out):
                    raise _Opaque
                new = self.graph.fresh(before + after)
                out[dim] = _Axis(np.concatenate([new[:before], out[dim].nodes, new[before:]]))
        return out

    def _with_ones(self, x: _Layout, places: Sequence[int]) -> _Layout:
        """New axes of length one, at these places of the result."""
        old = iter(range(len(x)))
        moved = {next(old): i for i in range(len(x) + len(places)) if i not in set(places)}
        out = _renumbered(x, moved)
        for place in places:
            out.insert(place, _Axis(self.graph.fresh(1)))
        return out

    def _reshape(self, x: _Layout, shape: tuple[int, ...]) -> _Layout:
        x = _ordered(x, [i for i, axis in enumerate(x) if axis.size != 1])
        target = [n for n in shape if n != 1]
        for i, j, k, m in reversed(_runs([axis.size for axis in x], target)):
            if j - i > 1:
                x = self._merge(x, i, j)
            if m - k > 1:
                x = self._split(x, i, target[k:m])
        return self._with_ones(x, [i for i, n in enumerate(shape) if n == 1])

    def _merge(self, x: _Layout, i: int, j: int) -> _Layout:
        """Axes ``i`` to ``j`` as one."""
        run = x[i:j]
        sizes = tuple(axis.size for axis in run)
        inside = set(range(i, j))
        if all(self.graph.is_fixed(axis.nodes) for axis in run):
            merged = self.fixed([math.prod(sizes)])[0]
        elif all(not axis.given for axis in run):
            nodes = self.graph.fresh(*sizes)
            for k, axis in enumerate(run):
                self.graph.stack(nodes, axis.nodes.reshape([-1 if m == k else 1 for m in range(len(run))]))
            merged = _Axis(nodes.ravel(), parts=tuple(run))
        elif run[-1].given == tuple(range(i, j - 1)) and all(set(axis.given) <= inside for axis in run):
            merged = _Axis(run[-1].nodes.ravel())  # a block and its entries, together again
        else:
            raise _Opaque
        out = list(x)
        for k, axis in enumerate(x):
            if k not in inside and inside & set(axis.given):
                if not set(axis.given) <= inside:
                    raise _Opaque
                full = [n if i + m in axis.given else 1 for m, n in enumerate(sizes)]
                nodes = np.broadcast_to(axis.nodes.reshape(*full, axis.size), (*sizes, axis.size))
                out[k] = _Axis(nodes.reshape(-1, axis.size), (i,))
        out[i:j] = [merged]
        moved = {k: k if k < j else k - (j - i - 1) for k in range(len(x)) if k not in inside or k == i}
        return [*_renumbered(out[:i], moved), merged, *_renumbered(out[i + 1 :], moved)]

    def _split(self, x: _Layout, i: int, sizes: Sequence[int]) -> _Layout:
        """Axis ``i`` as several: blocks, their blocks, and the entries of those."""
        axis = x[i]
        if axis.given:
            raise _Opaque
        if [part.size for part in axis.parts] == list(sizes):
            new = list(axis.parts)
        elif self.graph.is_fixed(axis.nodes):
            new = self.fixed(sizes)
        else:
            new = []
            for k in range(1, len(sizes) + 1):
                given = tuple(range(i, i + k - 1))
                last = k == len(sizes)
                nodes = axis.nodes.reshape(sizes) if last else self.graph.fresh(*sizes[:k])
                if given:
                    self.graph.stack(nodes, new[-1].nodes[..., None])
                new.append(_Axis(nodes, given))
        others = {}
        for k, other in enumerate(x):
            if i in other.given:
                if other.given != (i,):
                    raise _Opaque
                others[k] = _Axis(other.nodes.reshape(*sizes, other.size), tuple(range(i, i + len(sizes))))
        moved = {k: k if k < i else k + len(sizes) - 1 for k in range(len(x)) if k != i}
        out: _Layout = []
        for k, other in enumerate(x):
            if k == i:
                out += new
            else:
                out.append(_reduced(others[k]) if k in others else _renumbered([other], moved)[0])
        return out


def _ordered(x: _Layout, order: Sequence[int]) -> _Layout:
    """The axes in another order; those left out have length one or nobody depends on them."""
    moved = {old: new for new, old in enumerate(order)}
    return _renumbered([x[i] for i in order], moved)


def _renumbered(axes: Sequence[_Axis], moved: Mapping[int, int]) -> _Layout:
    out = []
    for axis in axes:
        given = [moved.get(g, -1) for g in axis.given]
        if -1 in given:
            raise _Opaque
        if given == sorted(given):
            out.append(dataclasses.replace(axis, given=tuple(given)))
        else:  # the axes it is given are kept in the order of the tensor
            order = np.argsort(given)
            out.append(_Axis(axis.nodes.transpose(*order, len(given)), tuple(sorted(given))))
    return out


def _without_trivial(x: _Layout, dim: int) -> _Layout:
    """An axis of length one is nothing to depend on."""
    out = []
    for axis in x:
        if dim in axis.given:
            place = axis.given.index(dim)
            axis = _Axis(axis.nodes.take(0, axis=place), axis.given[:place] + axis.given[place + 1 :])
        out.append(axis)
    return out


def _reduced(axis: _Axis) -> _Axis:
    """Without the given axes along which nothing changes."""
    for place in reversed(range(len(axis.given))):
        first = axis.nodes.take([0], axis=place)
        if (axis.nodes == first).all():
            axis = _Axis(first.squeeze(place), axis.given[:place] + axis.given[place + 1 :])
    return axis


def _runs(a: Sequence[int], b: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """The shortest stretches of two shapes that hold equally many entries."""
    runs = []
    i = k = 0
    while i < len(a) and k < len(b):
        j, m, p, q = i + 1, k + 1, a[i], b[k]
        while p != q:
            if p < q:
                p, j = p * a[j], j + 1
            else:
                q, m = q * b[m], m + 1
        runs.append((i, j, k, m))
        i, k = j, m
    return runs


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested containers."""
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for entry in dataclasses.fields(value):
            yield from _tensors(getattr(value, entry.name))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and each module's own mode again afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _watch(trace: _Trace) -> Iterator[None]:
    """Every operation is shown to the trace after it ran."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            trace.follow(func, args, kwargs or {}, out)
            return out

    # Attention of torch.nn has a fused kernel for evaluation, which would hide what is inside.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with Watch():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


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
    several: Array  # (2, pairs): two parents of one unit


def _units(graph: _Graph) -> _Units:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

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
    doubled = np.flatnonzero(np.diff(links[0]) == 0)
    several = np.stack([links[1, doubled], links[1, doubled + 1]])
    return _Units(unit, color, kind, size, up, several)


def _solve(graph: _Graph, acts: Mapping[tuple[str, int], Array]) -> tuple[list[PermutationGroup], list[str]]:
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
    graph: _Graph, units: _Units, acts: Mapping[tuple[str, int], Array]
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
        return units.several.ravel(), "a reshape mixes them"

    up = units.parent
    grand = up[up[up >= 0]]
    if (grand >= 0).any():
        return grand[grand >= 0], "they hold blocks of blocks"

    top = np.where(up >= 0, up, np.arange(len(up)))
    family_kind = units.kind[top]
    seen: dict[str, tuple[int, Array]] = {}
    for (name, axis), nodes in acts.items():
        unit = units.unit[nodes]
        kinds = np.unique(family_kind[unit[units.size[unit] > 1]])
        if name in seen and len(both := np.intersect1d(kinds, seen[name][1])):
            return np.flatnonzero(np.isin(family_kind, both)), f"they would act on two axes of {name!r}"
        seen[name] = (axis, np.union1d(kinds, seen[name][1]) if name in seen else kinds)
    return None, None


def _groups(units: _Units, acts: Mapping[tuple[str, int], Array]) -> list[PermutationGroup]:
    up = units.parent
    # Where a parent has one child of a kind, the child is a part of the parent: a role, as a pixel is.
    children = np.flatnonzero(up >= 0)
    _, place, counts = np.unique(
        np.stack([up[children], units.kind[children]]), axis=1, return_inverse=True, return_counts=True
    )
    holder = np.arange(len(up))
    alone = children[counts[place.ravel()] == 1]
    holder[alone] = up[alone]

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
        order = np.lexsort((part.roles, [rank[unit] for unit in part.units.tolist()]))
        acts.append(Act(part.tensor, part.axis, part.positions[order].reshape(*units.shape, -1)))
    return tuple(acts)


def _name(tensor: str, suffix: str, taken: Mapping[str, object]) -> str:
    base = ":".join(filter(None, (tensor.rpartition(".")[0] or tensor, suffix)))
    return next(name for i in itertools.count(1) if (name := base if i == 1 else f"{base}#{i}") not in taken)


def _notices(graph: _Graph, units: _Units, acts: Mapping[tuple[str, int], Array]) -> list[str]:
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
