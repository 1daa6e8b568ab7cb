"""Criteria of members that know of earlier ones, by name: what a recipe can say of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from mirepoix.ensembles._named import check_options, refuse_unknown
from mirepoix.models import NetworkSpec, initial_weights
from mirepoix.objectives import Objective
from mirepoix.snapshots._ewc import EWC
from mirepoix.snapshots._l2sp import L2SP
from mirepoix.snapshots._later import LaterMember
from mirepoix.snapshots._mse_penalty import MSEPenalty
from mirepoix.snapshots._prediction_repulsion import PredictionRepulsion
from mirepoix.snapshots._rtd_penalty import RTDPenalty
from mirepoix.snapshots._weight_orthogonalisation import WeightOrthogonalisation
from mirepoix.types import InputError, Weights

__all__ = ["LATER", "Fisher", "anchors_of", "check_later", "later_objective"]

Fisher = Callable[[Weights, int], Mapping[str, torch.Tensor]]
"""From an anchor and a number of training images to the diagonal of its Fisher information."""


@dataclass(frozen=True)
class Later:
    """A criterion and the earlier members that it is about.

    Attributes:
        kind: Its class.
        anchors: ``first``: member 1; ``others``: all earlier ones but member 1.
    """

    kind: type[LaterMember]
    anchors: Literal["first", "others"]


LATER: Mapping[str, Later] = {
    "rtd": Later(RTDPenalty, "first"),
    "mse": Later(MSEPenalty, "first"),
    "l2_sp": Later(L2SP, "first"),
    "ewc": Later(EWC, "first"),
    "weight_orthogonalisation": Later(WeightOrthogonalisation, "others"),
    "prediction_repulsion": Later(PredictionRepulsion, "others"),
}
"""Every criterion of later members by the name that a recipe has for it."""

TOLD = ("network", "members", "fisher", "relative_to")
"""Parameters of the constructors that are weights, or made from weights and images; a recipe never says them."""

FISHER_IMAGES = 1000


def later_objective(
    name: str, network: NetworkSpec, members: Sequence[Weights], options: Mapping[str, Any], fisher: Fisher
) -> Objective:
    """The criterion of this name, about these earlier members.

    Args:
        name: One of `LATER`.
        network: Of each member.
        members: Those that `anchors_of` chooses.
        options: The hyperparameters, by the names of the constructor; of ``ewc`` also ``images``, the number of
            training images that the Fisher information is measured on, 1000.
        fisher: Measures it.

    Raises:
        InputError: For an unknown name or option, or an option of another type or out of its range.
    """
    kind = refuse_unknown(name, LATER, "later", "a criterion of later members").kind
    options = dict(options)
    told = next((option for option in options if option in TOLD), None)
    if told is not None:
        raise InputError(f"later.{told}: it comes from the earlier members; leave it out.")
    if name == "ewc":
        images = options.pop("images", FISHER_IMAGES)
        if isinstance(images, bool) or not isinstance(images, int) or images < 1:
            raise InputError(f"later.images: expected a whole number of 1 or more, got {images!r}.")
    check_options(name, kind, TOLD, options, "later")
    parameters = inspect.signature(kind).parameters
    for option, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and option not in (*TOLD, *options):
            raise InputError(f"later.{option}: missing; {name} has no default for it.")
    if name == "ewc":
        options["fisher"] = fisher(members[0], images)
    made: Objective = kind(network, members, **options)
    return made


def anchors_of(name: str, earlier: Sequence[Any]) -> list[Any]:
    """Which of the earlier members a criterion is about; where there are none, only the risk is left.

    Args:
        name: One of `LATER`.
        earlier: Members 1, 2, ... up to the one before.
    """
    return list(earlier[:1] if LATER[name].anchors == "first" else earlier[1:])


def check_later(name: str, options: Mapping[str, Any], network: NetworkSpec) -> None:
    """Try a criterion and its options on random weights.

    Raises:
        InputError: As `later_objective`.
    """

    def ones(theta: Weights, images: int) -> dict[str, torch.Tensor]:
        return {name: torch.ones_like(value) for name, value in network.build().named_parameters()}

    later_objective(name, network, [initial_weights(network)], options, ones)
