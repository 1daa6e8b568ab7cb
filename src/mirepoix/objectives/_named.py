"""Criteria by name: what a recipe can say, and what a criterion must know of the model it is for."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from torch import nn

from mirepoix.objectives._adrmx import ADRMX
from mirepoix.objectives._and_mask import ANDMask
from mirepoix.objectives._arm import ARM
from mirepoix.objectives._cad import CAD
from mirepoix.objectives._causirl import CausIRLCORAL, CausIRLMMD
from mirepoix.objectives._cond_cad import CondCAD
from mirepoix.objectives._coral import CORAL
from mirepoix.objectives._cutmix import CutMix
from mirepoix.objectives._dann import CDANN, DANN
from mirepoix.objectives._eqrm import EQRM
from mirepoix.objectives._erm import ERM
from mirepoix.objectives._erm_plus_plus import ERMPlusPlus
from mirepoix.objectives._fish import Fish
from mirepoix.objectives._fishr import Fishr
from mirepoix.objectives._group_dro import GroupDRO
from mirepoix.objectives._iberm import IBERM
from mirepoix.objectives._ibirm import IBIRM
from mirepoix.objectives._iga import IGA
from mirepoix.objectives._irm import IRM
from mirepoix.objectives._manifold_mixup import ManifoldMixup
from mirepoix.objectives._mixup import Mixup
from mirepoix.objectives._mldg import MLDG
from mirepoix.objectives._mmd import MMD
from mirepoix.objectives._mtl import MTL
from mirepoix.objectives._objective import Objective
from mirepoix.objectives._rdm import RDM
from mirepoix.objectives._rsc import RSC
from mirepoix.objectives._sagnet import SagNet
from mirepoix.objectives._sam import SAM
from mirepoix.objectives._sand_mask import SANDMask
from mirepoix.objectives._sd import SD
from mirepoix.objectives._selfreg import SelfReg
from mirepoix.objectives._transfer import Transfer
from mirepoix.objectives._trm import TRM
from mirepoix.objectives._urm import URM
from mirepoix.objectives._vrex import VREx
from mirepoix.types import InputError

__all__ = [
    "BEGIN_OPTIONS",
    "NOT_IN_RECIPES",
    "OBJECTIVES",
    "check_named",
    "label_of",
    "model_facts",
    "never_begins",
    "objective",
    "option_names",
]

OBJECTIVES: Mapping[str, type[Objective]] = {
    "erm": ERM,
    "irm": IRM,
    "vrex": VREx,
    "group_dro": GroupDRO,
    "ib_erm": IBERM,
    "ib_irm": IBIRM,
    "sd": SD,
    "mixup": Mixup,
    "cutmix": CutMix,
    "manifold_mixup": ManifoldMixup,
    "coral": CORAL,
    "mmd": MMD,
    "causirl_coral": CausIRLCORAL,
    "causirl_mmd": CausIRLMMD,
    "eqrm": EQRM,
    "rdm": RDM,
    "and_mask": ANDMask,
    "sand_mask": SANDMask,
    "iga": IGA,
    "fish": Fish,
    "mldg": MLDG,
    "rsc": RSC,
    "selfreg": SelfReg,
    "fishr": Fishr,
    "cad": CAD,
    "cond_cad": CondCAD,
    "dann": DANN,
    "cdann": CDANN,
    "sagnet": SagNet,
    "trm": TRM,
    "transfer": Transfer,
    "adrmx": ADRMX,
    "erm_plus_plus": ERMPlusPlus,
    "mtl": MTL,
    "arm": ARM,
    "urm": URM,
    "sam": SAM,
}
"""Every criterion by the name that a recipe has for it."""

BEGIN_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "irm": ("irm_penalty_anneal_iters",),
    "vrex": ("vrex_penalty_anneal_iters",),
    "ib_erm": ("ib_penalty_anneal_iters",),
    "ib_irm": ("irm_penalty_anneal_iters", "ib_penalty_anneal_iters"),
    "eqrm": ("eqrm_burnin_iters",),
    "rdm": ("rdm_penalty_anneal_iters",),
    "fishr": ("penalty_anneal_iters",),
    "trm": ("iters",),
    "erm_plus_plus": ("linear_steps",),
}
"""The options that say at which update a criterion becomes what it is called: see `Objective.begins`."""

NOT_IN_RECIPES: Mapping[str, str] = {
    "arm": "its network has one channel more than the images, which the objective makes, and predicts nothing without "
    "it. In Python, give `Trainer` a NetworkSpec with channels + 1, and predict with `ARM.predict`",
    "mtl": "it predicts with an embedding of the domain, so averages of the network's weights alone would be evaluated "
    "without a part of the classifier. In Python, give it to `Trainer`, and predict with `MTL.predict`",
    "urm": "it predicts with an activation between features and classifier, so averages of the network's weights alone "
    "would be evaluated without it. In Python, give it to `Trainer`, and predict with `URM.predict`",
}
"""Those that a recipe cannot name, and why: combinations of weights are evaluated by the network alone."""

FACTS: Mapping[str, str] = {
    "features": "the number of features of the network",
    "classes": "the number of classes",
    "domains": "the number of source domains",
    "channels": "the number of channels of the images",
    "featurizer": "a featurizer to copy, such as that of the pre-trained network",
}
"""What a criterion may have to know of the model and the data; a recipe never says it."""


def objective(
    name: str,
    *,
    features: int | None = None,
    classes: int | None = None,
    domains: int | None = None,
    channels: int | None = None,
    featurizer: nn.Module | Callable[[], nn.Module] | None = None,
    **options: Any,
) -> Objective:
    """The criterion of this name.

    What it must know of the model can always be given: each takes what its constructor asks for, and no more.

    Args:
        name: One of `OBJECTIVES`.
        features: The number of features of the network.
        classes: The number of classes.
        domains: The number of source domains.
        channels: The number of channels of the images.
        featurizer: Of the pre-trained network, or what makes it, for a criterion that trains a second one, which
            copies it.
        options: The hyperparameters, by the names of the constructor. SAM's ``objective`` may be a name, or a mapping
            with a ``name`` and options.

    Raises:
        InputError: For an unknown name or option, an option of another type or out of its range, or a fact about the
            model that is needed and was not given.

    Example:
        >>> objective("fishr", features=64, classes=7, domains=3, lambda_=100.0).configuration()["lambda_"]
        100.0
    """
    given: dict[str, Any] = {
        "features": features,
        "classes": classes,
        "domains": domains,
        "channels": channels,
        "featurizer": featurizer,
    }
    return _make(name, given, options, "objective", list(OBJECTIVES))


def label_of(name: str) -> str:
    """What tables call a criterion."""
    return _known(name).__name__


def model_facts(name: str) -> tuple[str, ...]:
    """What `objective` can tell a criterion of the model: the keywords of its constructor that are no options."""
    return tuple(fact for fact in FACTS if fact in inspect.signature(_known(name)).parameters)


def option_names(name: str) -> tuple[str, ...]:
    """The hyperparameters of a criterion, by the names of its constructor."""
    return tuple(option for option in inspect.signature(_known(name)).parameters if option not in FACTS)


def check_named(name: str, options: Mapping[str, Any]) -> Objective:
    """Whether a recipe can say this: tried on a tiny model, before anything is read or trained.

    Returns:
        The criterion, for that model.

    Raises:
        InputError: As for `objective`, and for a criterion that no recipe can name. The message begins with
            ``objective`` and the key below it.
    """
    tiny = {"features": 8, "classes": 3, "domains": 3, "channels": 3, "featurizer": nn.Flatten()}
    _refuse_facts(options, "objective")
    named = [known for known in OBJECTIVES if known not in NOT_IN_RECIPES]
    try:
        return _make(name, tiny, options, "objective", named)
    except InputError as error:
        raise InputError(_with_key(str(error), "objective")) from None


def never_begins(
    name: str, options: Mapping[str, Any], steps: int, key: str, where: str = "a run"
) -> str | None:
    """Why runs of so many steps would never see what a criterion is called, and what to set; None where they do.

    Args:
        name: Of the criterion.
        options: Its hyperparameters.
        steps: Of a run.
        key: Of its table in the recipe.
        where: Which run that is, in words.
    """
    made = check_named(name, options)
    begins, values = made.begins(), made.configuration()
    if begins < steps:
        return None
    extra = begins - max(math.ceil(values[option]) for option in BEGIN_OPTIONS[name])
    keys = [f"{key}.{option}" for option in BEGIN_OPTIONS[name] if math.ceil(values[option]) + extra >= steps]
    return (
        f"{name} begins at update {begins}, and {where} has {steps} steps, so it would never be what it is called; "
        f"set {' and '.join(keys)} below {steps - extra}"
    )


def _make(
    name: str, given: Mapping[str, Any], options: Mapping[str, Any], key: str, named: Sequence[str]
) -> Objective:
    """The criterion of a name that is one of those named, and those that it wraps, with errors that name the key."""
    kind = _known(name, key, named)
    options = dict(options)
    wrapped = options.get("objective")
    if name == "sam" and isinstance(wrapped, str | Mapping):
        inner = f"{key}.objective"
        table = {"name": wrapped} if isinstance(wrapped, str) else dict(wrapped)
        called = table.pop("name", None)
        if not isinstance(called, str):
            raise InputError(f"{inner}: expected the name of an objective in `name`, got {wrapped!r}.")
        _refuse_facts(table, inner)
        try:
            options["objective"] = _make(called, given, table, inner, named)
        except InputError as error:
            raise InputError(_with_key(str(error), inner)) from None
    _check_options(name, kind, options, key)
    parameters = inspect.signature(kind).parameters
    known: dict[str, Any] = {}
    for fact in model_facts(name):
        value = given[fact]
        if value is None and parameters[fact].default is inspect.Parameter.empty:
            raise InputError(f"{key}: {name} must know {FACTS[fact]}; give {fact}=...")
        if fact == "featurizer" and value is not None:
            value = value if isinstance(value, nn.Module) else value()
        if value is not None:
            known[fact] = value
    return kind(**known, **options)


def _with_key(text: str, key: str) -> str:
    """A message with the key in front, where it does not begin with it."""
    return text if text.startswith((f"{key}.", f"{key}:")) else f"{key}: {text}"


def _known(name: str, key: str = "objective", named: Sequence[str] | None = None) -> type[Objective]:
    """The class of a name, which must be one of those named: all of them, or those that a recipe can say."""
    named = list(OBJECTIVES) if named is None else named
    if name in named:
        return OBJECTIVES[name]
    if name in OBJECTIVES:
        raise InputError(f"{key}.name: no recipe can name {name!r}: {NOT_IN_RECIPES[name]}.")
    near = difflib.get_close_matches(str(name).lower(), named, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise InputError(f"{key}.name: there is no objective {name!r}{hint}; known: {', '.join(named)}.")


def _refuse_facts(options: Mapping[str, Any], key: str) -> None:
    told = next((option for option in options if option in FACTS), None)
    if told is not None:
        raise InputError(f"{key}.{told}: {FACTS[told]} comes from the network and the images; leave it out.")


def _check_options(name: str, kind: type[Objective], options: Mapping[str, Any], key: str) -> None:
    """Names and types of the options; their ranges are the constructor's to tell."""
    from pydantic import ValidationError

    names = option_names(name)
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
        if hinted is int and not -(2**63) <= value < 2**63:
            raise InputError(f"{key}.{option}: expected a whole number of 64 bits, got {value!r}.")


@functools.cache
def _reader(kind: type[Objective], option: str) -> tuple[Any, Any]:
    """The type that the constructor has for an option, and what tells whether a value is of it."""
    from pydantic import ConfigDict, TypeAdapter

    hinted = get_type_hints(kind.__init__)[option]
    strict = ConfigDict(strict=True, arbitrary_types_allowed=True)
    return hinted, TypeAdapter(hinted, config=strict)


def _words(hinted: Any) -> str:
    """A type of an option in plain words."""
    plain = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}
    if hinted in plain:
        return plain[hinted]
    inner = get_args(hinted)
    if get_origin(hinted) is Literal:
        return " or ".join(repr(value) for value in inner)
    if hinted is Objective:
        return "the name of an objective, a table with a name, or an objective"
    if isinstance(get_origin(hinted), type) and issubclass(get_origin(hinted), Sequence):
        return "a list of texts" if inner[0] is str else f"a list, each {_words(inner[0])}"
    return " or ".join(_words(each) for each in inner if each is not NoneType) or str(hinted)
