"""Criteria of members that are trained together, by name: what a recipe can say of them."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from mirepoix.ensembles._adp import ADP
from mirepoix.ensembles._bottleneck import CEB, IB
from mirepoix.ensembles._dice import CEBR, DICE, IBR
from mirepoix.ensembles._joint_objective import Independent, JointObjective
from mirepoix.ensembles._mixmo import MIMO, CutMixMo, LinearMixMo, MixMo
from mirepoix.ensembles._okddip import OKDDip
from mirepoix.ensembles._one import ONE
from mirepoix.objectives._named import _reader, _words
from mirepoix.types import InputError

__all__ = ["JOINT", "check_joint", "check_options", "joint_objective", "mixes_inputs", "refuse_unknown"]

JOINT: Mapping[str, type[JointObjective]] = {
    "independent": Independent,
    "one": ONE,
    "okddip": OKDDip,
    "adp": ADP,
    "ib": IB,
    "ceb": CEB,
    "ibr": IBR,
    "cebr": CEBR,
    "dice": DICE,
    "mimo": MIMO,
    "linear_mixmo": LinearMixMo,
    "cut_mixmo": CutMixMo,
}
"""Every criterion of several members by the name that a recipe has for it."""

FACTS: Mapping[str, str] = {
    "features": "the number of features of a member",
    "classes": "the number of classes",
    "members": "the number of members",
    "total_steps": "the number of updates",
}
"""What a criterion may have to know of the network and the run; a recipe never says it."""

LEFT_OUT: Mapping[str, str] = {
    "combiner": "predictions are compared by one rule, the average of the members' logits",
    "leader": "the leader is no member, and predictions are compared as those of all members",
}
"""Options that a recipe cannot set, and why."""


def joint_objective(
    name: str,
    options: Mapping[str, Any],
    *,
    features: int,
    classes: int,
    members: int,
    total_steps: int,
    seed: int = 0,
) -> JointObjective:
    """The criterion of this name.

    What it must know of the network and the run can always be given: each takes what its constructor asks for.

    Args:
        name: One of `JOINT`.
        options: The hyperparameters, by the names of the constructor.
        features: The number of features of a member.
        classes: The number of classes.
        members: The number of members.
        total_steps: The number of updates of the training.
        seed: Of weights of its own, unless ``options`` has one.

    Raises:
        InputError: For an unknown name or option, or an option of another type or out of its range.

    Example:
        >>> joint_objective("dice", {"delta": 0.3}, features=64, classes=10, members=4, total_steps=9).delta
        0.3
    """
    key = "objective"
    kind = refuse_unknown(name, JOINT, key, "a criterion of members trained together")
    facts = {"features": features, "classes": classes, "members": members, "total_steps": total_steps}
    for option in options:
        if option in FACTS:
            raise InputError(f"{key}.{option}: {FACTS[option]} is known from elsewhere; leave it out.")
        if option in LEFT_OUT:
            raise InputError(f"{key}.{option}: {LEFT_OUT[option]}; leave it out.")
    check_options(name, kind, (*FACTS, *LEFT_OUT), options, key)
    takes = inspect.signature(kind).parameters
    known = {fact: value for fact, value in {**facts, "seed": seed}.items() if fact in takes}
    made: JointObjective = kind(**{**known, **options})
    return made


def check_joint(name: str, options: Mapping[str, Any], members: int, total_steps: int) -> None:
    """Try a criterion and its options, without a network.

    Raises:
        InputError: As `joint_objective`.
    """
    joint_objective(name, options, features=512, classes=3, members=members, total_steps=total_steps)


def mixes_inputs(name: str) -> bool:
    """Whether a criterion is of a network of several inputs, and not of one of several branches."""
    return issubclass(JOINT[name], MixMo)


def refuse_unknown(name: str, among: Mapping[str, Any], key: str, what: str) -> Any:
    """What a table has under a name.

    Raises:
        InputError: For a name that is not in it; the message has the nearest one.
    """
    if name in among:
        return among[name]
    near = difflib.get_close_matches(str(name).lower(), list(among), n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise InputError(f"{key}.name: expected {what}, got {name!r}{hint}; known: {', '.join(among)}.")


def check_options(name: str, kind: type, told: tuple[str, ...], options: Mapping[str, Any], key: str) -> None:
    """Names and types of options of a constructor; their ranges are the constructor's to tell.

    Args:
        name: Of the criterion.
        kind: Its class.
        told: Parameters of the constructor that are no options.
        options: To check.
        key: Of their table.

    Raises:
        InputError: Naming the key.
    """
    names = [option for option in inspect.signature(kind).parameters if option not in told]
    for option, value in options.items():
        if option not in names:
            near = difflib.get_close_matches(option, names, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            takes = f"its options are {', '.join(names)}" if names else "it takes none"
            raise InputError(f"{key}.{option}: {name} has no such option{hint}; {takes}.")
        hinted, reader = _reader(kind, option)
        try:
            reader.validate_python(value)
        except ValidationError:
            raise InputError(f"{key}.{option}: expected {_words(hinted)}, got {value!r}.") from None
