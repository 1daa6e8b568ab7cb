r"""Arithmetic on weights: the one line that the rest of the library is about.

For members with the same names and shapes, tensor by tensor,

.. math::
    \text{average} &= \tfrac1M \textstyle\sum_i \theta_i &
    \text{subtract} &= \theta - \theta_0 = \tau \\
    \text{interpolate} &= \textstyle\sum_i \lambda_i \theta_i,\ \sum_i \lambda_i = 1 \quad &
    \text{add} &= \theta_0 + \textstyle\sum_i \alpha_i \tau_i .

*Numbers.* Sums run in the order given, in float64 for float32 and float64 tensors and in float32 for float16
and bfloat16 (and on devices without float64, such as MPS), and are rounded once, to the dtype of the members.
Where members disagree about the float dtype of a tensor, the result has the widest, with a warning.

*What is not a float.* An integer or boolean tensor has no average. Under ``integers="auto"`` equal ones are
copied, of ``num_batches_tracked`` the largest is kept, and any other difference is an error; ``"first"``,
``"max"`` and ``"error"`` say otherwise. Batch-norm statistics are floats and averaged like parameters.

*Memory.* Members are mappings of torch tensors or NumPy arrays, in memory or lazy, and may come from an
iterator. Each tensor of each member is read once and let go: one running sum and one tensor of one member are
alive. A result owns its memory, is contiguous, has no gradient, lies on the device of the first member that
was read, and keeps the names in the order of the first member. Two names of one tensor (tied weights) come
out as two equal tensors.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from mirepoix.types import InputError, Weights

__all__ = ["RunningAverage", "add", "average", "check_averageable", "distance", "interpolate", "subtract"]

Integers: TypeAlias = Literal["auto", "first", "max", "error"]
Check: TypeAlias = Literal["output", "none"]


def average(
    thetas: Iterable[Weights], *, integers: Integers = "auto", check: Check = "output"
) -> dict[str, Any]:
    r"""The uniform average of the weights of several members.

    .. math:: \theta = \frac1M \sum_{i=1}^M \theta_i,

    summed first and divided once. Averaging copies returns the copy (for float64 up to the last bit); another
    order of the members may change the last bit of the sum, so at most the last bit of the result.

    Args:
        thetas: The members; an iterator is consumed one member at a time.
        integers: What to do with integer and boolean tensors that differ: see the head of this module.
        check: Whether a result that is not finite is an error. Pass ``"none"`` for members that hold
            infinities on purpose, as some attention masks do.

    Raises:
        InputError: Without members; when names, shapes or kinds differ; for complex, quantised, float8 or
            sparse tensors; for integers that differ; for a result that is not finite.
        TypeError: When torch and NumPy members are mixed, or something is neither.

    Example:
        >>> import torch
        >>> average([{"w": torch.tensor([2.0, 0.0])}, {"w": torch.tensor([4.0, 1.0])}])
        {'w': tensor([3.0000, 0.5000])}

    References:
        Izmailov et al. (2018), Wortsman et al. (2022), Ramé et al. (2022): uniform weight averaging.
    """
    return _linear(thetas, None, integers=integers, check=check)


def interpolate(
    thetas: Iterable[Weights],
    coefficients: Sequence[float],
    *,
    extrapolate: bool = False,
    integers: Integers = "auto",
    check: Check = "output",
) -> dict[str, Any]:
    r"""The weighted average of the weights of several members.

    .. math:: \theta = \sum_i \lambda_i \theta_i, \qquad \sum_i \lambda_i = 1.

    A sum within 1e-6 of one counts as one, and what is left is divided out, so that copies stay unchanged.
    A member with :math:`\lambda_i = 0` takes no part: its names are compared, its tensors are not read. The
    coefficient 1 alone returns the values of that member exactly.

    Args:
        thetas: The members; an iterator is consumed one member at a time.
        coefficients: One per member, in the same order.
        extrapolate: Allow coefficients outside [0, 1]. Running variances of batch norm that turn negative
            are then raised to 0, with a warning.
        integers: As in `average`, among the members whose coefficient is not 0.
        check: As in `average`.

    Raises:
        InputError: As in `average`; when the number of coefficients is not that of members; when they do not
            sum to one; when one is outside [0, 1] without ``extrapolate=True``.
        TypeError: As in `average`.

    Example:
        >>> import torch
        >>> interpolate([{"w": torch.tensor(0.0)}, {"w": torch.tensor(4.0)}], [0.25, 0.75])
        {'w': tensor(3.)}
    """
    coefficients = _read_coefficients(coefficients)
    total = math.fsum(coefficients)
    if abs(total - 1) > 1e-6:
        raise InputError(
            f"coefficients must sum to one, got {coefficients}, which sum to {total:.9g}. "
            "Divide them by their sum, or use `add(theta, deltas, coefficients)` for task arithmetic."
        )
    outside = [value for value in coefficients if not 0 <= value <= 1]
    if outside and not extrapolate:
        raise InputError(
            f"coefficients must lie in [0, 1], got {outside[0]:g} in {coefficients}. "
            "Pass extrapolate=True to leave the segment between the members."
        )
    return _linear(thetas, coefficients, integers=integers, check=check, clamp=bool(outside))


def subtract(a: Weights, b: Weights, *, check: Check = "output") -> dict[str, Any]:
    r"""The task vector :math:`\tau = \theta_a - \theta_b` of two weights.

    It holds the float tensors only, in float32 at least: between integer buffers there is no direction.

    Args:
        a: Where the vector ends, usually the fine-tuned weights.
        b: Where it starts, usually the pre-trained weights.
        check: As in `average`.

    Raises:
        InputError: When the two do not have the same structure; for a difference that is not finite.
        TypeError: As in `average`.

    Example:
        >>> import torch
        >>> subtract({"w": torch.tensor(3.0)}, {"w": torch.tensor(1.0)})
        {'w': tensor(2.)}

    References:
        Ilharco et al. (2023), Editing models with task arithmetic.
    """
    _check_option("check", check, Check)
    _check_names("a", list(a), "b", list(b))
    total = _Sum(list(a), integers="first")
    total.plus("a", a, 1.0)
    total.plus("b", b, -1.0)
    total.names = [name for name in total.names if total.tensors[name].kind == "float"]
    for x in total.tensors.values():
        x.dtype = _widest(x.dtype, "float32") if x.kind == "float" else x.dtype
    difference = total.result()
    if check == "output":
        _check_finite(difference, [("a", a), ("b", b)])
    return difference


def add(
    theta: Weights, deltas: Iterable[Weights], coefficients: Sequence[float], *, check: Check = "output"
) -> dict[str, Any]:
    r"""Task arithmetic: weights moved along task vectors.

    .. math:: \theta = \theta_0 + \sum_i \alpha_i \tau_i.

    The coefficients are free: negative ones unlearn. Dtypes, device and integer buffers are those of
    ``theta``. Running variances of batch norm that turn negative are raised to 0, with a warning.

    Args:
        theta: Where to start, :math:`\theta_0`.
        deltas: Task vectors, as `subtract` returns them: all float tensors of ``theta`` and nothing else.
        coefficients: One per task vector, :math:`\alpha_i`; one whose coefficient is 0 is not read.
        check: As in `average`.

    Raises:
        InputError: When a task vector does not fit ``theta``; when the number of coefficients is not that of
            task vectors; for a result that is not finite.
        TypeError: As in `average`.

    Example:
        >>> import torch
        >>> add({"w": torch.tensor(1.0)}, [{"w": torch.tensor(2.0)}], [-0.5])
        {'w': tensor(0.)}

    References:
        Ilharco et al. (2023), Editing models with task arithmetic.
    """
    _check_option("check", check, Check)
    coefficients = _read_coefficients(coefficients)
    total = _Sum(list(theta), integers="first")
    total.plus("theta", theta, 1.0)
    names = [name for name in total.names if total.tensors[name].kind == "float"]
    count = 0
    for delta in deltas:
        owner = f"delta {count}"
        _check_names("the float tensors of theta", names, owner, list(delta))
        if count == len(coefficients):
            raise InputError(f"expected one coefficient per delta, got {count} and still more deltas.")
        if coefficients[count] != 0:
            for name in names:
                tau = _read(owner, delta, name)
                _check_same(name, total.tensors[name], tau)
                _plus(total.totals[name], tau.value, coefficients[count])
        count += 1
        del delta
    if count != len(coefficients):
        raise InputError(f"expected one coefficient per delta, got {len(coefficients)} for {count} deltas.")
    moved = total.result(clamp=True)
    if check == "output":
        again = enumerate(deltas) if isinstance(deltas, Sequence) else ()
        used = [(f"delta {i}", delta) for i, delta in again if coefficients[i] != 0]
        _check_finite(moved, [("theta", theta), *used])
    return moved


def distance(a: Weights, b: Weights, *, squared: bool = False) -> float:
    r"""The Euclidean distance :math:`\lVert \theta_a - \theta_b \rVert_2` between two weights.

    Over all float tensors together, in float64 (float32 where the device has none), without integers and
    without the running mean and variance of batch norm, whose scale is that of the activations. A NaN in
    either makes the distance NaN.

    Args:
        a: Some weights.
        b: Others, with the same names and shapes.
        squared: Return the square of the distance.

    Raises:
        InputError: When the two do not have the same structure.
        TypeError: As in `average`.

    Example:
        >>> import numpy as np
        >>> distance({"w": np.array([0.0, 3.0]), "b": np.array(4.0)}, {"w": np.zeros(2), "b": np.array(0.0)})
        5.0
    """
    names = list(a)
    _check_names("a", names, "b", list(b))
    squares = []
    for name in names:
        if name.endswith(("running_mean", "running_var")):
            continue
        x, y = _read("a", a, name), _read("b", b, name)
        _check_same(name, x, y)
        if x.kind == "float":
            gap = _copy(x.value, _wide("float64", x.value))
            _plus(gap, y.value, -1.0)
            squares.append(_sum_of_squares(gap))
    # Not math.fsum, which raises where infinities meet.
    total = sum(squares)
    return total if squared else math.sqrt(total)


def check_averageable(thetas: Sequence[Weights]) -> None:
    """Raise unless the members have the same names, shapes and kinds of tensors.

    The names of all members are compared before any tensor is read. The values of integer buffers are not
    compared: what a difference means depends on the ``integers`` of `average`.

    Args:
        thetas: The members, in memory or lazy; each tensor is read once and let go.

    Raises:
        InputError: Without members; when members differ, with both numbers and what differs; for complex,
            quantised, float8 or sparse tensors.
        TypeError: When torch and NumPy members are mixed, or something is neither.

    Example:
        >>> import numpy as np
        >>> check_averageable([{"w": np.zeros(2)}, {"w": np.zeros(3)}])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        mirepoix.types.InputError: members 0 and 1 cannot be averaged: 'w' has shape (2,) in member 0 and ...
    """
    _check_members(thetas)
    if not thetas:
        raise InputError(_NO_MEMBER)
    names = list(thetas[0])
    for i, theta in enumerate(thetas):
        _check_names("member 0", names, f"member {i}", list(theta))
    first = {}
    for name in names:
        first[name] = _read("member 0", thetas[0], name).without_value()
    for i, theta in enumerate(thetas[1:], start=1):
        for name in names:
            _check_same(name, first[name], _read(f"member {i}", theta, name))


# The accumulator, shared by everything above.


def _linear(
    thetas: Iterable[Weights],
    coefficients: list[float] | None,
    *,
    integers: Integers,
    check: Check,
    clamp: bool = False,
) -> dict[str, Any]:
    """``sum_i c_i theta_i / sum_i c_i``, where no coefficients mean that each is 1."""
    _check_option("integers", integers, Integers)
    _check_option("check", check, Check)
    _check_members(thetas)
    if isinstance(thetas, Sequence):
        # Names are cheap: a list is refused before gigabytes are read.
        _check_count(coefficients, len(thetas))
        for i, theta in enumerate(thetas):
            _check_names("member 0", list(thetas[0]), f"member {i}", list(theta))
            del theta

    total: _Sum | None = None
    count = 0
    # Neither enumerate nor zip: they hold on to the previous member while the iterator makes the next.
    for theta in thetas:
        owner = f"member {count}"
        if total is None:
            total = _Sum(list(theta), integers)
        _check_names("member 0", total.names, owner, list(theta))
        if coefficients is not None and count == len(coefficients):
            # Not after the last member, which may be a training away.
            raise InputError(f"expected one coefficient per member, got {count} and still more members.")
        coefficient = 1.0 if coefficients is None else coefficients[count]
        if coefficient != 0:
            total.plus(owner, theta, coefficient)
        count += 1
        del theta
    _check_count(coefficients, count)
    if total is None:
        raise InputError(_NO_MEMBER)

    _warn_of_widened(total)
    theta = total.result(count if coefficients is None else math.fsum(coefficients), clamp=clamp)
    if check == "output":
        again = enumerate(thetas) if isinstance(thetas, Sequence) else ()
        used = [
            (f"member {i}", member) for i, member in again if coefficients is None or coefficients[i] != 0
        ]
        _check_finite(theta, used)
    return theta


class RunningAverage:
    r"""The uniform average of members that come one after another, as in a greedy soup.

    It keeps the sum :math:`\sum_{i \le n} \theta_i` and :math:`n`. `plus` leaves it as it is and returns
    a new one, so that a candidate can be tried and dropped. After any members its weights are those of
    `average`, bit for bit.

    Example:
        >>> import numpy as np
        >>> running = RunningAverage().plus({"w": np.array([1.0])})
        >>> running.plus({"w": np.array([4.0])}).weights()
        {'w': array([2.5])}
        >>> running.weights()
        {'w': array([1.])}
    """

    def __init__(self) -> None:
        self._sum: _Sum | None = None
        self.count = 0

    def plus(self, theta: Weights) -> RunningAverage:
        """The average with one more member.

        Raises:
            InputError: When the member does not fit the ones before: see `average`.
            TypeError: As in `average`.
        """
        owner, names = f"member {self.count}", list(theta)
        other = RunningAverage()
        other._sum = self._sum.copy() if self._sum else _Sum(names, "auto")
        _check_names("member 0", other._sum.names, owner, names)
        other._sum.plus(owner, theta, 1.0)
        other.count = self.count + 1
        return other

    def weights(self) -> dict[str, Any]:
        """The average of the members so far.

        Raises:
            InputError: Without members, or for a result that is not finite.
        """
        if self._sum is None:
            raise InputError(_NO_MEMBER)
        _warn_of_widened(self._sum)
        theta = self._sum.copy().result(self.count)
        _check_finite(theta, (), "a member added here holds NaN or infinity there, or the sum overflows")
        return theta


@dataclass(slots=True)
class _Tensor:
    """One tensor of one member: its value, and what decides whether it can join another."""

    owner: str
    library: Literal["torch", "numpy"]
    kind: Literal["float", "integer"]
    dtype: str
    native: Any  # the dtype as the library names it
    shape: tuple[int, ...]
    value: Any

    def without_value(self) -> _Tensor:
        return dataclasses.replace(self, value=None)


class _Sum:
    """A running sum of weights: a wide total per float tensor, one value per integer tensor."""

    def __init__(self, names: list[str], integers: Integers) -> None:
        self.names = names
        self.integers = integers
        self.tensors: dict[str, _Tensor] = {}
        self.totals: dict[str, Any] = {}
        self.widened: list[str] = []

    def plus(self, owner: str, theta: Weights, coefficient: float) -> None:
        """Add ``coefficient * theta``."""
        for name in self.names:
            self._plus(name, _read(owner, theta, name), coefficient)

    def _plus(self, name: str, x: _Tensor, coefficient: float) -> None:
        first = self.tensors.get(name)
        if first is None:
            self.tensors[name] = x.without_value()
            if x.kind == "integer":
                self.totals[name] = _copy(x.value)
            else:
                self.totals[name] = _copy(x.value, _wide(x.dtype, x.value))
                _scale(self.totals[name], coefficient)
            return
        _check_same(name, first, x)
        if x.kind == "integer":
            self.totals[name] = _join_integers(name, first, self.totals[name], x, self.integers)
            return
        if x.dtype != first.dtype:
            dtype = _widest(first.dtype, x.dtype)
            both = f"{first.dtype} in {first.owner} and {x.dtype} in {x.owner}"
            self.widened.append(f"{name!r} is {both}, and {dtype} in the result")
            first.dtype = dtype
            self.totals[name] = _cast(self.totals[name], _wide(dtype, self.totals[name]))
        _plus(self.totals[name], x.value, coefficient)

    def copy(self) -> _Sum:
        """The same sum, apart from this one."""
        other = _Sum(self.names, self.integers)
        other.tensors = {name: x.without_value() for name, x in self.tensors.items()}
        other.totals = {name: _copy(total) for name, total in self.totals.items()}
        other.widened = list(self.widened)
        return other

    def result(self, divisor: float = 1.0, *, clamp: bool = False) -> dict[str, Any]:
        """Divide once and round once; the totals are let go one by one."""
        clamped = []
        theta = {}
        for name in self.names:
            first, total = self.tensors[name], self.totals.pop(name)
            if first.kind == "float":
                _divide(total, divisor)
                if clamp and name.endswith("running_var") and bool((total < 0).any()):
                    clamped.append(name)
                    total[total < 0] = 0
                total = _cast(total, first.dtype, first.native)
            theta[name] = total
        if clamped:
            _warn(
                f"negative running variances of batch norm were raised to 0 in {_some(clamped)}. "
                "Estimate the statistics again on data, or silence this UserWarning."
            )
        return theta


# Reading and checking.

_FLOATS = (
    "float16",
    "bfloat16",
    "float32",
    "float64",
)  # a later one holds an earlier one, but for the first two
_INTEGERS = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
_NO_MEMBER = "there is no member to combine: expected at least one mapping of names to tensors."
_UNREAD = "members from an iterator cannot be read again; pass a list to learn which one is guilty"
_SAME = (
    "Members need the same architecture and the same head; attach one with `with_head(theta, head)` before \
fine-tuning."
)


def _read(owner: str, theta: Weights, name: str) -> _Tensor:
    value = theta[name]
    torch = sys.modules.get("torch")  # without torch loaded, nothing can be a tensor of torch
    library: Literal["torch", "numpy"]
    if torch is not None and isinstance(value, torch.Tensor):
        library, dtype = "torch", str(value.dtype).removeprefix("torch.")
        if value.layout is not torch.strided:
            raise InputError(f"{name!r} in {owner} is sparse; pass dense tensors, `tensor.to_dense()`.")
    elif isinstance(value, np.ndarray | np.generic):
        value = np.asarray(value)
        library, dtype = "numpy", value.dtype.name
    else:
        raise TypeError(
            f"{name!r} in {owner} must be a torch tensor or a NumPy array, got {type(value).__name__}. "
            "Keep only the weights of the checkpoint."
        )
    if dtype not in _FLOATS + _INTEGERS:
        raise InputError(
            f"{name!r} in {owner} has dtype {dtype}, which has no average here. {_advice(dtype)}"
        )
    kind: Literal["float", "integer"] = "float" if dtype in _FLOATS else "integer"
    return _Tensor(owner, library, kind, dtype, value.dtype, tuple(value.shape), value)


def _advice(dtype: str) -> str:
    if dtype.startswith("complex"):
        return "Split it into a real and an imaginary part."
    if dtype.startswith("float8"):
        return "Convert it to bfloat16 or float32 first, with the scales of the checkpoint."
    if dtype.startswith(("q", "int", "uint")):
        return "Dequantise the weights first."
    return f"Convert it to one of {', '.join(_FLOATS)}."


def _check_members(thetas: Iterable[Weights]) -> None:
    if isinstance(thetas, Mapping):
        raise TypeError("expected members, an iterable of mappings, got one mapping; put it in a list.")


def _check_option(name: str, value: str, options: Any) -> None:
    if value not in get_args(options):
        raise InputError(f"{name} must be one of {', '.join(map(repr, get_args(options)))}, got {value!r}.")


def _read_coefficients(coefficients: Sequence[float]) -> list[float]:
    values = [float(value) for value in coefficients]
    if not all(map(math.isfinite, values)):
        raise InputError(f"coefficients must be finite, got {values}.")
    return values


def _check_count(coefficients: list[float] | None, count: int) -> None:
    if coefficients is not None and len(coefficients) != count and count > 0:
        raise InputError(f"expected one coefficient per member, got {len(coefficients)} for {count} members.")


def _check_names(first: str, names: Sequence[str], second: str, others: Sequence[str]) -> None:
    a, b = set(names), set(others)
    if a == b:
        return
    sides = [
        f"{len(only)} only in {owner}: {_some(only)}"
        for owner, only in (
            (first, [name for name in names if name not in b]),
            (second, [name for name in others if name not in a]),
        )
        if only
    ]
    advice = _SAME
    for prefix in ("module.", "_orig_mod."):
        if {name.removeprefix(prefix) for name in a} == {name.removeprefix(prefix) for name in b}:
            advice = f"They agree without the prefix {prefix!r}: remove it from the names."
    raise _mismatch(first, second, f"names differ, {'; '.join(sides)}. {advice}")


def _check_same(name: str, first: _Tensor, x: _Tensor) -> None:
    def differ(what: str, a: object, b: object) -> str:
        return f"{name!r} {what} {a} in {first.owner} and {b} in {x.owner}."

    if first.library != x.library:
        both = differ("is of", first.library, x.library)
        raise TypeError(f"{both} Convert all members to one of the two libraries.")
    if first.shape != x.shape:
        both = differ("has shape", first.shape, x.shape).removesuffix(".")
        raise _mismatch(first.owner, x.owner, f"{both}. {_SAME}")
    if first.kind != x.kind or (x.kind == "integer" and first.dtype != x.dtype):
        both = differ("has dtype", first.dtype, x.dtype)
        raise _mismatch(first.owner, x.owner, f"{both} Convert it to the dtype that the network declares.")


def _mismatch(first: str, second: str, what: str) -> InputError:
    if first.startswith("member ") and second.startswith("member "):
        i, j = first.removeprefix("member "), second.removeprefix("member ")
        return InputError(f"members {i} and {j} cannot be averaged: {what}")
    return InputError(f"{first} and {second} do not match: {what}")


def _check_finite(theta: Weights, used: Iterable[tuple[str, Weights]], unread: str = _UNREAD) -> None:
    bad = next((name for name, value in theta.items() if not _is_finite(value)), None)
    if bad is None:
        return
    owners = list(used)
    guilty = next((owner for owner, weights in owners if not _is_finite(weights[bad])), None)
    if guilty is not None:
        why = f"{guilty} holds NaN or infinity there; leave it out"
    elif owners:
        why = "all that went in is finite, so the sum or the dtype of the result overflows; use a wider dtype"
    else:
        why = unread
    raise InputError(f"{bad!r} of the result is not finite: {why}, or pass check='none' to let it through.")


def _some(names: Sequence[str], most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more


def _warn_of_widened(total: _Sum) -> None:
    if total.widened:
        more = f" (and {len(total.widened) - 1} more such differences)" if len(total.widened) > 1 else ""
        _warn(f"dtypes differ: {total.widened[0]}{more}. Convert the members to one dtype to silence this.")


def _warn(message: str) -> None:
    depth = 1
    while sys._getframe(depth).f_globals.get("__name__") == __name__:
        depth += 1
    warnings.warn(message, stacklevel=depth + 1)


# Integers.


def _join_integers(name: str, first: _Tensor, kept: Any, x: _Tensor, integers: Integers) -> Any:
    """The integer tensor to keep after one more member."""
    if integers == "first":
        return kept
    a, b = _to_numpy(kept), _to_numpy(x.value)
    if np.array_equal(a, b):
        return kept
    if integers == "max" or (integers == "auto" and name.endswith("num_batches_tracked")):
        return _like(np.asarray(np.maximum(a, b)), kept)
    place = tuple(int(i) for i in np.argwhere(a != b)[0])
    where = f" at {list(place)}, one of {int((a != b).sum())} entries that differ" if place else ""
    raise _mismatch(
        first.owner,
        x.owner,
        f"{name!r} differs, {a[place]} in {first.owner} and {b[place]} in {x.owner}{where}. "
        "Integers have no average: pass integers='first' to keep those of the first member, or "
        "integers='max' for the largest.",
    )


def _to_numpy(x: Any) -> np.ndarray[Any, Any]:
    return x if isinstance(x, np.ndarray) else x.detach().cpu().numpy()


def _like(x: np.ndarray[Any, Any], kept: Any) -> Any:
    if isinstance(kept, np.ndarray):
        return x
    import torch

    return torch.from_numpy(x).to(kept.device)


# Arithmetic, the same in both libraries. Overflow and NaN are judged on the result, with the name of the
# tensor, and not by a warning of NumPy.

_quiet = np.errstate(over="ignore", invalid="ignore", under="ignore")


def _widest(a: str, b: str) -> str:
    if {a, b} == {"float16", "bfloat16"}:
        return "float32"
    return max(a, b, key=_FLOATS.index)


def _wide(dtype: str, x: Any) -> str:
    """The dtype to sum in."""
    if dtype in ("float16", "bfloat16"):
        return "float32"
    return "float32" if not isinstance(x, np.ndarray) and x.device.type == "mps" else "float64"


@_quiet
def _copy(x: Any, dtype: str | None = None) -> Any:
    """A contiguous copy that owns its memory and has no gradient."""
    if isinstance(x, np.ndarray):
        return np.array(x, dtype=dtype or x.dtype.newbyteorder("="), order="C")
    import torch

    wanted = getattr(torch, dtype) if dtype else x.dtype
    return x.detach().to(dtype=wanted, copy=True, memory_format=torch.contiguous_format)


@_quiet
def _cast(total: Any, dtype: str, native: Any = None) -> Any:
    """The one rounding, to ``dtype``, which is ``native`` if the library alone knows it."""
    if isinstance(total, np.ndarray):
        known = native is not None and native.name == dtype
        return total.astype(native.newbyteorder("=") if known else dtype, copy=False)
    import torch

    return total.to(getattr(torch, dtype))


@_quiet
def _scale(total: Any, coefficient: float) -> None:
    if coefficient != 1:
        total *= coefficient


@_quiet
def _plus(total: Any, x: Any, coefficient: float) -> None:
    """``total += coefficient * x`` in the dtype of the total."""
    if isinstance(total, np.ndarray):
        if coefficient != 1:
            # A product of its own, as torch's `alpha=` rounds once where NumPy rounds twice.
            total += np.asarray(x.astype(total.dtype) * coefficient)
        else:
            total += x.astype(total.dtype, copy=False)
        return
    # Converted first, as adding float32 to float64 in place takes twice as long.
    x = x.detach().to(total.device, total.dtype, copy=coefficient != 1)
    total.add_(x if coefficient == 1 else x.mul_(coefficient))


@_quiet
def _divide(total: Any, divisor: float) -> None:
    if divisor == 1:
        return
    if isinstance(total, np.ndarray):
        total /= divisor
    else:
        # By a tensor: on a GPU, dividing by a Python number multiplies by its rounded reciprocal.
        import torch

        total.div_(torch.full((), divisor, dtype=total.dtype, device=total.device))


@_quiet
def _sum_of_squares(x: Any) -> float:
    return float((x * x).sum())


def _is_finite(x: Any) -> bool:
    if isinstance(x, np.ndarray | np.generic):
        return bool(np.isfinite(x).all())
    import torch

    return bool(torch.isfinite(x).all())
