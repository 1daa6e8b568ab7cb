"""A second, plain way to run a rule on arrays, to check rules by themselves and `merge` against."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mirepoix.merging._rule import BLOCK, LinearRule, Piece

WIDE = {"float16": np.float32, "float32": np.float64, "float64": np.float64}


class TensorOf:
    """Blocks of one tensor, in buffers that are reused and spoilt in between."""

    def __init__(self, name, labels, members, base, block):
        self.name, self.labels = name, labels
        self.members, self.base, self.block = members, base, block
        self.shape = members[0].shape

    def pieces(self, size):
        total = math.prod(self.shape)
        for start in range(0, total, size):
            yield Piece(self.name, self.shape, start, min(start + size, total))

    def of(self, piece):
        cut = slice(piece.start, piece.stop)
        members = [x.reshape(-1)[cut].astype(WIDE[x.dtype.name]) for x in self.members]
        base = None if self.base is None else self.base.reshape(-1)[cut].astype(members[0].dtype)
        return members, base

    def blocks(self):
        for piece in self.pieces(self.block):
            members, base = self.of(piece)
            yield piece, members, base
            for x in (*members, *([] if base is None else [base])):
                x[...] = np.nan


class InputsOf:
    """All tensors; a member need not hold them all."""

    def __init__(self, members, base, block):
        self.by_label = (
            dict(members) if isinstance(members, dict) else {str(i): m for i, m in enumerate(members)}
        )
        self.base, self.block = base, block
        self.labels = list(self.by_label)
        self.names = list(dict.fromkeys(name for m in self.by_label.values() for name in m))

    def tensor(self, name):
        held = {label: m[name] for label, m in self.by_label.items() if name in m}
        base = None if self.base is None else self.base[name]
        return TensorOf(name, list(held), list(held.values()), base, self.block)


def drive(rule, members, base=None, *, chunk=BLOCK, block=BLOCK, wide=False):
    """Merge, in pieces of ``chunk`` entries from last to first and in two threads."""
    inputs = InputsOf(members, base if rule.needs_base else None, block)
    rule.check(inputs.labels)
    survey = rule.survey(inputs)
    out = {}
    for name in reversed(inputs.names):
        tensor = inputs.tensor(name)
        measured = rule.measure(tensor, survey)
        size = math.prod(tensor.shape) if rule.whole else chunk

        def combine(piece, name=name, tensor=tensor, measured=measured):
            given, start = tensor.of(piece)
            before = [x.copy() for x in given]
            with np.errstate(all="ignore"):
                if isinstance(rule, LinearRule):
                    merged = on_a_line(
                        rule.line(name, len(given), measured), inputs.labels, tensor, given, start
                    )
                else:
                    merged = rule.combine(piece, given, start, measured)
            for x, kept in zip(given, before, strict=True):
                np.testing.assert_array_equal(x, kept)  # arguments are left as they are
            assert merged.dtype == given[0].dtype
            assert merged.shape == given[0].shape
            return merged

        with ThreadPoolExecutor(2) as pool:
            pieces = list(pool.map(combine, reversed(list(tensor.pieces(max(1, size))))))
        flat = np.concatenate([*reversed(pieces), np.empty(0, tensor.of(Piece(name, (), 0, 0))[0][0].dtype)])
        dtype = flat.dtype if wide else tensor.members[0].dtype
        out[name] = flat.astype(dtype).reshape(tensor.shape)
    return {name: out[name] for name in inputs.names}


def on_a_line(line, labels, tensor, members, base):
    """What `merge` does with linear rules: only terms that count are read, and equal entries stay if it is affine."""
    held = dict(zip(tensor.labels, members, strict=True))
    terms = [
        (line.base, base),
        *((c, held.get(label)) for label, c in zip(labels, line.coefficients, strict=True)),
    ]
    terms = [(c, x) for c, x in terms if c != 0]
    total = terms[0][0] * terms[0][1]
    for c, x in terms[1:]:
        total = total + c * x
    first = terms[0][1]
    same = np.all([x.view(f"i{x.itemsize}") == first.view(f"i{x.itemsize}") for _, x in terms], axis=0)
    return np.where(same, first, total / line.divisor) if line.affine else total / line.divisor


def bits(theta):
    """The content, signs of zeros included."""
    return {name: (x.dtype.str, x.shape, x.tobytes()) for name, x in theta.items()}


def example(seed, *, dtype="float32", shapes=None, spread=0.1, base=True):
    """A base and a member near it, rounded to the dtype; with zeros of both signs and equal entries."""
    random = np.random.default_rng(seed)
    shapes = shapes or {"a": (5, 7), "b": (13,), "scalar": (), "none": (0, 3), "c": (2, 3, 2, 2)}
    start = np.random.default_rng(77)
    theta = {}
    for name, shape in shapes.items():
        x = start.normal(size=shape)
        moved = x + spread * random.normal(size=shape) * (random.random(shape) < 0.8)
        moved = np.where(np.abs(x) > 1.5, -0.0, moved if base else random.normal(size=shape))
        theta[name] = np.asarray(moved, dtype)
    return theta


def start(dtype="float32", shapes=None):
    """The base of `example`."""
    return example(0, dtype=dtype, shapes=shapes, spread=0.0)


def check_copies(make, *, count=3):
    """Copies of a member, base included, give the same bits; ``make(labels, theta)`` builds the rule."""
    for dtype in WIDE:
        theta = example(3, dtype=dtype)
        labels = [f"m{i}" for i in range(count)]
        rule = make(labels, theta)
        merged = drive(rule, dict.fromkeys(labels, theta), theta)
        assert bits(merged) == bits(theta), dtype


def check_pieces(make, *, count=3):
    """The pieces do not matter, nor does their order; of small blocks and of real ones."""
    labels = [f"m{i}" for i in range(count)]
    for dtype in WIDE:
        members = {label: example(i + 1, dtype=dtype) for i, label in enumerate(labels)}
        rule = make(labels, members[labels[0]])
        whole = drive(rule, members, start(dtype), block=5, wide=True)
        for chunk in (1, 7, 65_536):
            again = drive(rule, members, start(dtype), block=5, chunk=chunk, wide=True)
            assert bits(again) == bits(whole), (dtype, chunk)
    large = {"big": (90_001,), "more": (3, 30_000)}
    members = {label: example(i + 1, shapes=large) for i, label in enumerate(labels)}
    rule = make(labels, members[labels[0]])
    whole = drive(rule, members, start(shapes=large), chunk=10**9, wide=True)
    assert bits(drive(rule, members, start(shapes=large), chunk=10_007, wide=True)) == bits(whole)
