"""Criteria by name: what a recipe can say, and what a criterion must know of the model it is for."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any, get_type_hints

from torch import nn

from mirepoix.objectives._objective import Objective
from mirepoix.types import InputError

__all__ = [
    "NOT_IN_RECIPES",
    "OBJECTIVES",
    "check_named",
    "label_of",
    "model_facts",
    "objective",
    "option_names",
]

PLACES: Mapping[str, tuple[str, str]] = {
    # name: file, class
    "erm": ("_erm", "ERM"),
    "irm": ("_irm", "IRM"),
    "vrex": ("_vrex", "VREx"),
    "group_dro": ("_group_dro", "GroupDRO"),
    "ib_erm": ("_iberm", "IBERM"),
    "ib_irm": ("_ibirm", "IBIRM"),
    "sd": ("_sd", "SD"),
    "mixup": ("_mixup", "Mixup"),
    "coral": ("_coral", "CORAL"),
    "mmd": ("_mmd", "MMD"),
    "causirl_coral": ("_causirl", "CausIRLCORAL"),
    "causirl_mmd": ("_causirl", "CausIRLMMD"),
    "eqrm": ("_eqrm", "EQRM"),
    "rdm": ("_rdm", "RDM"),
    "and_mask": ("_and_mask", "ANDMask"),
    "sand_mask": ("_sand_mask", "SANDMask"),
    "iga": ("_iga", "IGA"),
    "fish": ("_fish", "Fish"),
    "mldg": ("_mldg", "MLDG"),
    "rsc": ("_rsc", "RSC"),
    "selfreg": ("_selfreg", "SelfReg"),
    "fishr": ("_fishr", "Fishr"),
    "cad": ("_cad", "CAD"),
    "cond_cad": ("_cond_cad", "CondCAD"),
    "dann": ("_dann", "DANN"),
    "cdann": ("_dann", "CDANN"),
    "sagnet": ("_sagnet", "SagNet"),
    "trm": ("_trm", "TRM"),
    "transfer": ("_transfer", "Transfer"),
    "adrmx": ("_adrmx", "ADRMX"),
    "erm_plus_plus": ("_erm_plus_plus", "ERMPlusPlus"),
    "mtl": ("_mtl", "MTL"),
    "arm": ("_arm", "ARM"),
    "urm": ("_urm", "URM"),
    "sam": ("_sam", "SAM"),
}


class _Criteria(Mapping[str, type[Objective]]):
    """The classes by name, each imported when it is first asked for."""

    def __getitem__(self, name: str) -> type[Objective]:
        file, kind = PLACES[name]
        found: type[Objective] = getattr(import_module(f"mirepoix.objectives.{file}"), kind)
        return found

    def __contains__(self, name: object) -> bool:
        return name in PLACES

    def __iter__(self) -> Iterator[str]:
        return iter(PLACES)

    def __len__(self) -> int:
        return len(PLACES)


OBJECTIVES: Mapping[str, type[Objective]] = _Criteria()
"""Every criterion by the name that a recipe has for it."""

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
    kind = _known(name)
    given: dict[str, Any] = {
        "features": features,
        "classes": classes,
        "domains": domains,
        "channels": channels,
        "featurizer": featurizer,
    }
    wrapped = options.get("objective")
    if name == "sam" and isinstance(wrapped, str | Mapping):
        table = {"name": wrapped} if isinstance(wrapped, str) else dict(wrapped)
        if not isinstance(table.get("name"), str):
            raise InputError(
                f"objective.objective: expected the name of an objective in `name`, got {wrapped!r}."
            )
        options = {**options, "objective": objective(**{**given, **table})}
    _check_options(name, kind, options)
    parameters = inspect.signature(kind).parameters
    known: dict[str, Any] = {}
    for fact in model_facts(name):
        value = given[fact]
        if value is None and parameters[fact].default is inspect.Parameter.empty:
            raise InputError(f"objective: {name} must know {FACTS[fact]}; give {fact}=...")
        if fact == "featurizer" and value is not None:
            value = value if isinstance(value, nn.Module) else value()
        if value is not None:
            known[fact] = value
    return kind(**known, **options)


def label_of(name: str) -> str:
    """What tables call a criterion."""
    _check_name(name)
    return PLACES[name][1]


def model_facts(name: str) -> tuple[str, ...]:
    """What `objective` can tell a criterion of the model: the keywords of its constructor that are no options."""
    return tuple(fact for fact in FACTS if fact in inspect.signature(_known(name)).parameters)


def option_names(name: str) -> tuple[str, ...]:
    """The hyperparameters of a criterion, by the names of its constructor."""
    return tuple(option for option in inspect.signature(_known(name)).parameters if option not in FACTS)


def check_named(name: str, options: Mapping[str, Any]) -> None:
    """Whether a recipe can say this: tried on a tiny model, before anything is read or trained.

    Raises:
        InputError: As for `objective`, and for a criterion that no recipe can name. The message begins with
            ``objective`` and the key below it.
    """
    _check_name(name)
    if name in NOT_IN_RECIPES:
        raise InputError(f"objective.name: no recipe can name {name!r}: {NOT_IN_RECIPES[name]}.")
    if name == "sam" and isinstance(options.get("objective"), str | Mapping):
        inner = options["objective"]
        table = {"name": inner} if isinstance(inner, str) else dict(inner)
        if table.get("name") in NOT_IN_RECIPES:
            check_named(table["name"], {})
    told = next((option for option in options if option in FACTS), None)
    if told is not None:
        raise InputError(
            f"objective.{told}: {FACTS[told]} comes from the network and the images; leave it out."
        )
    try:
        objective(
            name, features=8, classes=3, domains=3, channels=3, featurizer=nn.Flatten(), **dict(options)
        )
    except InputError as error:
        text = str(error)
        raise InputError(text if text.startswith("objective") else f"objective: {text}") from None


def _check_name(name: str) -> None:
    if name not in PLACES:
        near = difflib.get_close_matches(str(name).lower(), PLACES, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise InputError(f"objective.name: there is no objective {name!r}{hint}; known: {', '.join(PLACES)}.")


def _known(name: str) -> type[Objective]:
    _check_name(name)
    return OBJECTIVES[name]


def _check_options(name: str, kind: type[Objective], options: Mapping[str, Any]) -> None:
    """Names and types of the options; their ranges are the constructor's to tell."""
    from pydantic import ValidationError

    names = option_names(name)
    for option, value in options.items():
        if option not in names:
            near = difflib.get_close_matches(option, names, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            takes = f"its options are {', '.join(names)}" if names else "it takes none"
            raise InputError(f"objective.{option}: {name} has no such option{hint}; {takes}.")
        try:
            _reader(kind, option).validate_python(value)
        except ValidationError as error:
            said = error.errors(include_url=False)[0]["msg"]
            raise InputError(f"objective.{option}: {said[:1].lower()}{said[1:]}, got {value!r}.") from None


@functools.cache
def _reader(kind: type[Objective], option: str) -> Any:
    """Tells whether a value is of the type that the constructor has for an option."""
    from pydantic import ConfigDict, TypeAdapter

    strict = ConfigDict(strict=True, arbitrary_types_allowed=True)
    return TypeAdapter(get_type_hints(kind.__init__)[option], config=strict)
