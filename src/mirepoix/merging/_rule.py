"""What a merging rule is: how the tensors of one name, one per member, become one tensor.

A rule never sees a file. It is given flat pieces of tensors as NumPy arrays, already widened (float64 for
float32 and float64 members, float32 for float16, bfloat16 and float8), and returns such an array; reading,
dtypes, integers, tied weights and the one rounding at the end belong to `merge`. So the same rule gives the same
bits on files and on mappings in memory, whatever the size of the pieces.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeAlias

from numpy.typing import NDArray

__all__ = ["BLOCK", "Array", "Inputs", "Line", "LinearRule", "Piece", "Rule", "TensorInputs"]

Array: TypeAlias = NDArray[Any]

BLOCK = 65_536
"""Entries of a tensor that are measured together, whatever the pieces that are combined together."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Entries ``start`` to ``stop`` of a flattened tensor of some ``shape``."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int


class TensorInputs(Protocol):
    """One float tensor of all members, to be measured before it is combined."""

    name: str
    shape: tuple[int, ...]
    labels: Sequence[str]
    """The members that hold it, in the order of the arrays of `blocks`."""

    def blocks(self) -> Iterator[tuple[Piece, Sequence[Array], Array | None]]:
        """Pieces of `BLOCK` entries, in order, with the flat arrays of the members and of the base.

        The arrays are reused for the next block; do not keep them.
        """
        ...


class Inputs(Protocol):
    """All float tensors of all members, for rules that need to look at everything first."""

    labels: Sequence[str]
    names: Sequence[str]

    def tensor(self, name: str) -> TensorInputs:
        """One tensor of them."""
        ...


class Rule(ABC):
    """A way to merge; its parameters are the fields of a frozen dataclass.

    Attributes:
        method: The name of the rule in records and on the command line.
        needs_base: Whether it needs the common start of the members.
        partial: Whether a tensor that only some members hold can be merged from these.
        whole: Whether `combine` must be given whole tensors (then memory grows with the largest tensor).
    """

    method: ClassVar[str]
    needs_base: ClassVar[bool] = False
    partial: ClassVar[bool] = False
    whole: bool = False

    def check(self, labels: Sequence[str]) -> None:  # noqa: B027 (most rules take any members)
        """Raise `InputError` if the rule cannot merge so many members, called so."""

    def survey(self, inputs: Inputs) -> Any:
        """What must be known of all tensors before the first is combined; given to `measure`."""
        return None

    def measure(self, tensor: TensorInputs, survey: Any) -> Any:
        """What must be known of a tensor before its first piece is combined; given to `combine`."""
        return survey

    @abstractmethod
    def combine(self, piece: Piece, members: Sequence[Array], base: Array | None, measured: Any) -> Array:
        """The merged piece, a new flat array of the members' dtype; the arguments are left as they are."""


@dataclass(frozen=True, slots=True)
class Line:
    r"""The numbers of a linear rule, :math:`(c_0 \theta_0 + \sum_i c_i \theta_i) / d`."""

    coefficients: Sequence[float]
    base: float = 0.0
    divisor: float = 1.0
    clamp: bool = False
    """Whether running variances may turn negative, and are then raised to 0."""
    affine: bool = True
    """Whether the numbers sum to the divisor: then an entry that is the same in all that is read stays as it is."""


class LinearRule(Rule):
    r"""A rule of the form :math:`(c_0 \theta_0 + \sum_i c_i \theta_i) / d`.

    Such rules need one running sum, whatever the number of members, and a member with :math:`c_i = 0` is not
    read. The engine adds in the order base, members, as `combine` does, and with the same bits.
    """

    @abstractmethod
    def line(self, name: str, count: int, measured: Any) -> Line:
        """The numbers for the tensor ``name`` of ``count`` members."""

    def combine(self, piece: Piece, members: Sequence[Array], base: Array | None, measured: Any) -> Array:
        """The sum, in the order of the members, divided once; the base comes first."""
        line = self.line(piece.name, len(members), measured)
        total: Array | None = None
        for coefficient, x in zip((line.base, *line.coefficients), (base, *members), strict=True):
            if coefficient != 0 and x is not None:
                term = x if coefficient == 1 else x * coefficient
                total = (
                    term.copy() if total is None and term is x else term if total is None else total + term
                )
        assert total is not None
        return total if line.divisor == 1 else total / line.divisor


Coefficient: TypeAlias = float | Callable[[str], float] | Sequence[tuple[str, float]]
"""A number; a function of the tensor's name; or pairs of a regular expression and a number, first match wins."""

Coefficients: TypeAlias = Sequence[Coefficient] | Mapping[str, Coefficient]
"""One coefficient per member, in their order, or by the members' names."""
