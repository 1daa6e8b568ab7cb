"""What a forward pass does to the places of channels, as a graph: nodes, and what joins them.

Every position along an axis of a tensor is a node. Most operations hand the nodes of their input on to their
output: a view, a slice, a ReLU move or keep them. What an operation takes position by position, as an addition or
a contraction does, is joined by an edge; what it stacks, as a flatten stacks pixels under a channel, or a split
stacks entries under a head, by an edge from child to parent. What an operation treats by its place stays there.

Operations are those of torch's ATen, as they are run. One that is not known here keeps all it touches in its
order: it costs freedom, never correctness.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Axis", "Graph", "Trace", "evaluating", "tensors_in", "watching"]

Array: TypeAlias = np.ndarray[Any, Any]


class Graph:
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
class Axis:
    """One axis of a tensor: a node for each position, for each position of the axes it is ``given``."""

    nodes: Array  # (sizes of the given axes ..., size)
    given: tuple[int, ...] = ()
    parts: tuple[Axis, ...] = ()  # the axes it was merged from

    @property
    def size(self) -> int:
        return int(self.nodes.shape[-1])


Layout: TypeAlias = "list[Axis]"


class Opaque(Exception):
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
_CONSTANT_MEETS = "a constant that is no weight meets them"
_BATCH_NORM = {"native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "_native_batch_norm_legit"}
_BATCH_NORM |= {"_native_batch_norm_legit_no_training", "_batch_norm_no_update", "batch_norm"}


class Trace:
    """The axes of every tensor that a forward pass has made so far."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.layouts: dict[int, tuple[Tensor, Layout]] = {}  # keeps tensors alive, so that ids stay theirs
        self.used: set[int] = set()

    def set(self, tensor: Tensor, layout: Layout) -> None:
        self.layouts[id(tensor)] = (tensor, layout)

    def of(self, tensor: Tensor) -> Layout:
        if id(tensor) not in self.layouts:  # not made from weights or input
            self.set(tensor, self.fixed(tensor.shape, _CONSTANT_MEETS))
        self.used.add(id(tensor))
        return self.layouts[id(tensor)][1]

    def fixed(self, shape: Sequence[int], reason: str | None = None) -> Layout:
        axes = self.free(shape)
        for axis in axes:
            self.graph.fix(axis.nodes, reason)
        return axes

    def free(self, shape: Sequence[int]) -> Layout:
        return [Axis(self.graph.fresh(n)) for n in shape]

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
        outs = list(tensors_in(out))
        try:
            if not schema.name.startswith("aten::"):
                raise Opaque
            layouts = self._layouts(name, torch.Tag.pointwise in func.tags, a, outs)
            for x, layout in zip(outs, layouts, strict=False):
                if [axis.size for axis in layout] != list(x.shape):
                    raise Opaque
                self.set(x, layout)
        except Opaque:
            reason = f"the operation {name!r} mixes them, or is not known here"
            for tensor in tensors_in(a):
                self.fix(tensor, reason)
            for x in outs:
                if not any(x is tensor for tensor in tensors_in(a)):
                    self.set(x, self.fixed(x.shape, reason))

    def _layouts(self, name: str, pointwise: bool, a: dict[str, Any], outs: list[Tensor]) -> list[Layout]:
        a["out shape"] = shape = tuple(outs[0].shape) if outs else ()
        if 0 in shape:
            raise Opaque
        x: Any = a.get("self", a.get("input"))
        rule: Callable[[dict[str, Any]], Layout] | None = getattr(self, f"_do_{name.rstrip('_')}", None)
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
        if ("pool" in name and "unpool" not in name) or name.startswith("upsample"):
            return [self._spatial(self.of(x), shape, name)] * len(outs)
        if name in _REDUCTIONS:
            return [self._reduce(self.of(x), a.get("dim"), bool(a.get("keepdim")))] * len(outs)
        if name in ("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes"):
            return self._pieces(self.of(x), a["dim"], [y.shape[a["dim"]] for y in outs])
        if name == "unbind":
            return [self._select(self.of(x), a["dim"], i) for i in range(len(outs))]
        if name in _SAME:
            return [self.of(x)]
        if pointwise or name in ("copy_", "_prelu_kernel"):
            return [self._pointwise([self.of(tensor) for tensor in tensors_in(a)], shape)]
        if not list(tensors_in(a)):
            return [self.fixed(y.shape, _CONSTANT_MEETS) for y in outs]
        raise Opaque

    # Joining axes.

    def _join(self, x: Axis, y: Axis) -> None:
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

    def _pointwise(self, layouts: Sequence[Layout], shape: tuple[int, ...]) -> Layout:
        out = []
        for i, size in enumerate(shape):
            found = []
            for layout in layouts:
                shift = len(shape) - len(layout)
                if i >= shift and layout[i - shift].size == size:
                    axis = layout[i - shift]
                    found.append(dataclasses.replace(axis, given=tuple(g + shift for g in axis.given)))
            if size == 1 or not found:
                out.append(Axis(self.graph.fresh(size)))
                continue
            found.sort(key=lambda axis: -len(axis.given))
            for other in found[1:]:
                self._join(found[0], other)
            out.append(found[0])
        return out

    # Layers.

    def _do_mm(self, a: dict[str, Any]) -> Layout:
        (rows, inner), (outer, columns) = self.of(a["self"]), self.of(a["mat2"])
        if rows.given or inner.given or outer.given or columns.given:
            raise Opaque
        self._join(inner, outer)
        return [rows, columns]

    def _do_addmm(self, a: dict[str, Any]) -> Layout:
        out = self._do_mm({"self": a["mat1"], "mat2": a["mat2"]})
        bias = self.of(a["self"])
        return self._pointwise([out, bias], tuple(axis.size for axis in out))

    def _do_linear(self, a: dict[str, Any]) -> Layout:
        (columns, outer), x = self.of(a["weight"]), self.of(a["input"])
        self._join(x[-1], outer)
        if a.get("bias") is not None:
            self._join(columns, self.of(a["bias"])[0])
        return [*x[:-1], columns]

    def _do_bmm(self, a: dict[str, Any]) -> Layout:
        (batch, rows, inner), (batch2, outer, columns) = self.of(a["self"]), self.of(a["mat2"])
        if any(not set(axis.given) <= {0} for axis in (rows, inner, outer, columns)):
            raise Opaque
        self._join(batch, batch2)
        self._join(inner, outer)
        return [batch, rows, columns]

    def _do_baddbmm(self, a: dict[str, Any]) -> Layout:
        out = self._do_bmm({"self": a["batch1"], "mat2": a["batch2"]})
        return self._pointwise([out, self.of(a["self"])], tuple(axis.size for axis in out))

    def _attention(self, a: dict[str, Any]) -> Layout:
        q, k, v = (self.of(a[key]) for key in ("query", "key", "value"))
        mask = a.get("attn_mask", a.get("attn_bias"))
        heads = q[-3].size
        if any(len(x) != 4 or x[1].size != heads for x in (q, k, v)):  # also queries that share their keys
            raise Opaque
        for x in (q, k, v):
            if any(not set(axis.given) <= {1} for axis in x):
                raise Opaque
        for i in (0, 1, 3):
            self._join(q[i], k[i])
        for i in (0, 1, 2):
            self._join(k[i], v[i])
        if mask is not None:
            scores = [q[0], q[1], q[2], k[2]]
            self._pointwise([scores, self.of(mask)], tuple(axis.size for axis in scores))
        return [q[0], q[1], q[2], v[3]]

    def _do_convolution(self, a: dict[str, Any]) -> Layout:
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

    def _do_embedding(self, a: dict[str, Any]) -> Layout:
        words, entries = self.of(a["weight"])
        self.graph.fix(words.nodes)
        return [*self.of(a["indices"]), entries]

    def _normalise(self, x: Layout, axes: Sequence[int], weights: Sequence[Tensor | None]) -> Layout:
        for weight in weights:
            if weight is not None and weight.numel():
                for i, axis in zip(axes, self.of(weight), strict=True):
                    self._join(x[i], axis)
        return x

    def _do_native_layer_norm(self, a: dict[str, Any]) -> Layout:
        x = self.of(a["input"])
        axes = range(len(x) - len(a["normalized_shape"]), len(x))
        return self._normalise(x, axes, [a["weight"], a.get("bias")])

    _do__fused_rms_norm = _do_native_layer_norm

    def _do_native_group_norm(self, a: dict[str, Any]) -> Layout:
        x, groups = self.of(a["input"]), a["group"]
        channels = x[1]
        if channels.given:
            raise Opaque
        if 1 < groups < channels.size:
            parents = self.graph.fresh(groups)
            self.graph.stack(channels.nodes, np.repeat(parents, channels.size // groups))
        return self._normalise(x, [1], [a["weight"], a["bias"]])

    def _spatial(self, x: Layout, shape: tuple[int, ...], name: str) -> Layout:
        count = next((int(d) for d in "123" if f"{d}d" in name), None)
        if count is None or any(axis.given for axis in x):
            raise Opaque
        for axis in x[-count:]:
            self.graph.fix(axis.nodes)
        return [*x[:-count], *self.fixed(shape[-count:])]

    def _reduce(self, x: Layout, dims: Any, keep: bool) -> Layout:
        dims = range(len(x)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
        gone = {d % len(x) for d in dims}
        if any(gone & set(axis.given) for i, axis in enumerate(x) if i not in gone):
            raise Opaque
        if keep:
            return [Axis(self.graph.fresh(1)) if i in gone else axis for i, axis in enumerate(x)]
        return _ordered(x, [i for i in range(len(x)) if i not in gone])

    # Views.

    def _do_as_strided(self, a: dict[str, Any]) -> Layout:
        x = self.of(a["self"])
        if [axis.size for axis in x] != list(a["size"]) or sum(axis.size > 1 for axis in x) > 1:
            raise Opaque
        return x

    def _do_roll(self, a: dict[str, Any]) -> Layout:
        out = list(self.of(a["self"]))
        for d in a["dims"]:
            if not self.graph.is_fixed(out[d].nodes) or out[d].given:
                raise Opaque
            out[d] = self.fixed([out[d].size])[0]
        return out

    _do_flip = _do_roll

    def _do_index(self, a: dict[str, Any]) -> Layout:
        """Rows of a table."""
        x, indices = self.of(a["self"]), a["indices"]
        if any(index is None for index in indices):
            raise Opaque
        for index in indices:
            for axis in self.of(index):
                self.graph.fix(axis.nodes)
        for axis in x[: len(indices)]:
            self.graph.fix(axis.nodes)
        rest = _ordered(x, range(len(indices), len(x)))
        new = len(a["out shape"]) - len(rest)
        moved = {i: i + new for i in range(len(rest))}
        return [*self.fixed(a["out shape"][:new]), *_renumbered(rest, moved)]

    def _do_t(self, a: dict[str, Any]) -> Layout:
        x = self.of(a["self"])
        return _ordered(x, range(len(x))[::-1])

    def _do_transpose(self, a: dict[str, Any]) -> Layout:
        x = self.of(a["self"])
        order = list(range(len(x)))
        i, j = a["dim0"], a["dim1"]
        order[i], order[j] = order[j], order[i]
        return _ordered(x, order)

    def _do_permute(self, a: dict[str, Any]) -> Layout:
        x = self.of(a["self"])
        return _ordered(x, [d % len(x) for d in a["dims"]])

    def _do_unsqueeze(self, a: dict[str, Any]) -> Layout:
        x = self.of(a["self"])
        return self._with_ones(x, [a["dim"] % (len(x) + 1)])

    def _do_squeeze(self, a: dict[str, Any]) -> Layout:
        x, dims = self.of(a["self"]), a.get("dim")
        dims = range(len(x)) if dims is None else [dims] if isinstance(dims, int) else dims
        gone = {d % len(x) for d in dims if x[d].size == 1}
        return _ordered(x, [i for i in range(len(x)) if i not in gone])

    def _do_expand(self, a: dict[str, Any]) -> Layout:
        x, sizes = self.of(a["self"]), a["size"]
        out = self._with_ones(x, range(len(sizes) - len(x)))
        for i, n in enumerate(sizes):
            if n not in (-1, out[i].size):
                out[i] = Axis(self.graph.fresh(n))  # copies of one value have no order
        return out

    def _do_slice(self, a: dict[str, Any]) -> Layout:
        x = self.of(a["self"])
        dim = a["dim"] % len(x)
        return self._pick(x, dim, range(x[dim].size)[slice(a["start"], a["end"], a["step"])])

    def _do_select(self, a: dict[str, Any]) -> Layout:
        return self._select(self.of(a["self"]), a["dim"], a["index"])

    def _select(self, x: Layout, dim: int, index: int) -> Layout:
        dim %= len(x)
        picked = self._pick(x, dim, [index % x[dim].size])
        return _ordered(picked, [i for i in range(len(x)) if i != dim])

    def _pieces(self, x: Layout, dim: int, sizes: Sequence[int]) -> list[Layout]:
        ends = np.cumsum(sizes)
        return [self._pick(x, dim % len(x), range(e - n, e)) for n, e in zip(sizes, ends, strict=True)]

    def _pick(self, x: Layout, dim: int, positions: Sequence[int]) -> Layout:
        """Some positions along one axis, which are told from the others by that."""
        if len(positions) == x[dim].size and list(positions) == list(range(x[dim].size)):
            return x
        index = np.asarray(positions, dtype=int)
        out = list(x)
        out[dim] = Axis(x[dim].nodes[..., index], x[dim].given)
        self.graph.mark(out[dim].nodes)
        for i, axis in enumerate(x):
            if dim in axis.given:
                out[i] = Axis(axis.nodes.take(index, axis=axis.given.index(dim)), axis.given)
        return _without_trivial(out, dim) if len(index) == 1 else out

    def _do_cat(self, a: dict[str, Any]) -> Layout:
        layouts = [self.of(x) for x in a["tensors"] if x.numel()]
        dim = a["dim"] % len(layouts[0])
        if any(dim in axis.given for layout in layouts for axis in layout):
            raise Opaque
        if any(layout[dim].given != layouts[0][dim].given for layout in layouts):
            raise Opaque
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
        out[dim] = Axis(nodes, layouts[0][dim].given)
        return out

    def _do_stack(self, a: dict[str, Any]) -> Layout:
        layouts = [self.of(x) for x in a["tensors"]]
        for layout in layouts[1:]:
            for x, y in zip(layouts[0], layout, strict=True):
                self._join(x, y)
        dim = a["dim"] % (len(layouts[0]) + 1)
        out = self._with_ones(layouts[0], [dim])
        out[dim] = self.fixed([len(layouts)])[0]
        return out

    def _do_constant_pad_nd(self, a: dict[str, Any]) -> Layout:
        out = list(self.of(a["self"]))
        for i, (before, after) in enumerate(zip(a["pad"][::2], a["pad"][1::2], strict=True)):
            dim = len(out) - 1 - i
            if before < 0 or after < 0:
                size = out[dim].size
                out = self._pick(out, dim, range(max(0, -before), size - max(0, -after)))
                before, after = max(0, before), max(0, after)
            if before or after:
                if out[dim].given or any(dim in axis.given for axis in out):
                    raise Opaque
                new = self.graph.fresh(before + after)
                out[dim] = Axis(np.concatenate([new[:before], out[dim].nodes, new[before:]]))
        return out

    def _with_ones(self, x: Layout, places: Sequence[int]) -> Layout:
        """New axes of length one, at these places of the result."""
        old = iter(range(len(x)))
        moved = {next(old): i for i in range(len(x) + len(places)) if i not in set(places)}
        out = _renumbered(x, moved)
        for place in places:
            out.insert(place, Axis(self.graph.fresh(1)))
        return out

    def _reshape(self, x: Layout, shape: tuple[int, ...]) -> Layout:
        x = _ordered(x, [i for i, axis in enumerate(x) if axis.size != 1])
        target = [n for n in shape if n != 1]
        for i, j, k, m in reversed(_runs([axis.size for axis in x], target)):
            if j - i > 1:
                x = self._merge(x, i, j)
            if m - k > 1:
                x = self._split(x, i, target[k:m])
        return self._with_ones(x, [i for i, n in enumerate(shape) if n == 1])

    def _merge(self, x: Layout, i: int, j: int) -> Layout:
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
            merged = Axis(nodes.ravel(), parts=tuple(run))
        elif run[-1].given == tuple(range(i, j - 1)) and all(set(axis.given) <= inside for axis in run):
            merged = Axis(run[-1].nodes.ravel())  # a block and its entries, together again
        else:
            raise Opaque
        out = list(x)
        for k, axis in enumerate(x):
            if k not in inside and inside & set(axis.given):
                if not set(axis.given) <= inside:
                    raise Opaque
                full = [n if i + m in axis.given else 1 for m, n in enumerate(sizes)]
                nodes = np.broadcast_to(axis.nodes.reshape(*full, axis.size), (*sizes, axis.size))
                out[k] = Axis(nodes.reshape(-1, axis.size), (i,))
        out[i:j] = [merged]
        moved = {k: k if k < j else k - (j - i - 1) for k in range(len(x)) if k not in inside or k == i}
        return [*_renumbered(out[:i], moved), merged, *_renumbered(out[i + 1 :], moved)]

    def _split(self, x: Layout, i: int, sizes: Sequence[int]) -> Layout:
        """Axis ``i`` as several: blocks, their blocks, and the entries of those."""
        axis = x[i]
        if axis.given:
            raise Opaque
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
                new.append(Axis(nodes, given))
        others = {}
        for k, other in enumerate(x):
            if i in other.given:
                if other.given != (i,):
                    raise Opaque
                others[k] = Axis(other.nodes.reshape(*sizes, other.size), tuple(range(i, i + len(sizes))))
        moved = {k: k if k < i else k + len(sizes) - 1 for k in range(len(x)) if k != i}
        out: Layout = []
        for k, other in enumerate(x):
            if k == i:
                out += new
            else:
                out.append(_reduced(others[k]) if k in others else _renumbered([other], moved)[0])
        return out


def _ordered(x: Layout, order: Sequence[int]) -> Layout:
    """The axes in another order; those left out have length one or nobody depends on them."""
    moved = {old: new for new, old in enumerate(order)}
    return _renumbered([x[i] for i in order], moved)


def _renumbered(axes: Sequence[Axis], moved: Mapping[int, int]) -> Layout:
    out = []
    for axis in axes:
        given = [moved.get(g, -1) for g in axis.given]
        if -1 in given:
            raise Opaque
        if given == sorted(given):
            out.append(dataclasses.replace(axis, given=tuple(given)))
        else:  # the axes it is given are kept in the order of the tensor
            order = np.argsort(given)
            out.append(Axis(axis.nodes.transpose(*order, len(given)), tuple(sorted(given))))
    return out


def _without_trivial(x: Layout, dim: int) -> Layout:
    """An axis of length one is nothing to depend on."""
    out = []
    for axis in x:
        if dim in axis.given:
            place = axis.given.index(dim)
            axis = Axis(axis.nodes.take(0, axis=place), axis.given[:place] + axis.given[place + 1 :])
        out.append(axis)
    return out


def _reduced(axis: Axis) -> Axis:
    """Without the given axes along which nothing changes."""
    for place in reversed(range(len(axis.given))):
        first = axis.nodes.take([0], axis=place)
        if (axis.nodes == first).all():
            axis = Axis(first.squeeze(place), axis.given[:place] + axis.given[place + 1 :])
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


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested containers."""
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for entry in dataclasses.fields(value):
            yield from tensors_in(getattr(value, entry.name))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and each module's own mode again afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def watching(trace: Trace) -> Iterator[None]:
    """Every operation is shown to the trace after it ran."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            trace.follow(func, args, kwargs or {}, out)
            return out

    # Attention of torch.nn has a fused kernel for evaluation, which would hide what is inside.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with Watch():  # type: ignore[no-untyped-call]
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
