"""What one trains on: domains over one list of classes, and what a left-out domain makes of them.

A ``Task`` names its domains; ``task.split(target)`` sets one of them apart for the test and divides each of
the others into train and ID validation. Nothing that is selected on ever sees the target's labels.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from mirepoix.data._images import Images, IntArray
from mirepoix.data._split import split_indices
from mirepoix.data._transform import Transform
from mirepoix.types import InputError

__all__ = ["Domain", "Split", "Subset", "Task", "digest_of", "make_task", "nearest"]


@dataclass(frozen=True, eq=False)
class Domain:
    """Labelled images that come from one place.

    Attributes:
        name: As in the task.
        images: The decoded images.
        labels: Class indices, read-only, one per image.
    """

    name: str
    images: Images = field(repr=False)
    labels: IntArray = field(repr=False)

    def __post_init__(self) -> None:
        labels = np.array(self.labels, dtype=np.int64)
        labels.setflags(write=False)
        object.__setattr__(self, "labels", labels)
        if len(labels) != len(self.images):
            raise InputError(
                f"domain {self.name!r}: expected one label per image, got {len(labels)} labels for "
                f"{len(self.images)} images."
            )

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Subset:
    """Some samples of one domain, in a fixed order.

    Attributes:
        domain: Where they come from.
        number: Index of the domain in the task.
        indices: Numbers of the samples in the domain.
    """

    domain: Domain
    number: int
    indices: IntArray = field(repr=False)

    @property
    def name(self) -> str:
        """The name of the domain."""
        return self.domain.name

    @property
    def labels(self) -> IntArray:
        """The labels of these samples."""
        return self.domain.labels[self.indices]

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True, eq=False)
class Split:
    """One task with one domain left out.

    Attributes:
        task: The whole task.
        target: The left-out domain, or ``None`` when every domain is trained on.
        without: Domains that are left out too, and are not tested on either.
        data_seed: Of the division into train and validation.
        holdout: Fraction of each source domain that validates.
        train: One subset per source domain.
        validation: The ID validation samples of the same domains, in the same order.
        test: The whole target domain as one subset; empty without a target.
    """

    task: Task
    target: str | None
    without: tuple[str, ...]
    data_seed: int
    holdout: float
    train: tuple[Subset, ...]
    validation: tuple[Subset, ...]
    test: tuple[Subset, ...]

    @property
    def left_out(self) -> tuple[Subset, ...]:
        """Every domain that is left out, whole: the target and the others."""
        return tuple(
            Subset(domain, number, np.arange(len(domain), dtype=np.int64))
            for number, domain in enumerate(self.task.domains)
            if domain.name in (self.target, *self.without)
        )

    @cached_property
    def digest(self) -> str:
        """A fingerprint of the contents and of which samples train and validate.

        What is tested on is not part of it: leaving two domains out, and testing on either, is one training.
        """
        return digest_of(
            "split",
            self.task.digest,
            self.data_seed,
            self.holdout,
            *(part for subset in (*self.train, *self.validation) for part in (subset.number, subset.indices)),
        )


@dataclass(frozen=True, eq=False)
class Task:
    """Named domains over one list of classes.

    Attributes:
        name: For people; it is not part of the digest.
        classes: Names of the classes; a label is an index into them.
        domains: The domains, in the order that numbers them.
        transform: From stored images to what the network sees.
        digest: SHA-256 of the contents: images, labels, names of classes and domains, transform. Equal on
            another machine, in another folder and at another time.
        notes: What a person should know: classes missing in a domain, files left out, counts that differ from
            the published ones.
    """

    name: str
    classes: tuple[str, ...]
    domains: tuple[Domain, ...]
    transform: Transform
    digest: str
    notes: tuple[str, ...] = ()

    @property
    def domain_names(self) -> tuple[str, ...]:
        """The names of the domains, in order."""
        return tuple(domain.name for domain in self.domains)

    def split(
        self,
        target: str | None,
        *,
        data_seed: int = 0,
        holdout: float = 0.2,
        without: Sequence[str] = (),
    ) -> Split:
        """Leave one domain out and divide each of the others into train and ID validation.

        The division of a domain depends on the data seed, its number and its size only, so it is the same
        whichever domain is left out.

        Args:
            target: Name of the domain to leave out; ``None`` trains on all of them.
            data_seed: Which division.
            holdout: Fraction of each source domain that validates.
            without: Names of further domains to leave out; they are not tested on.

        Raises:
            InputError: For a target that does not exist, a holdout outside (0, 1), no domain left to train
                on, or a source domain too small to divide.
        """
        for name in (target, *without):
            if name is not None and name not in self.domain_names:
                raise InputError(
                    f"expected a domain of {self.name} as target, got {name!r}."
                    f"{nearest(name, self.domain_names)} Domains: {', '.join(self.domain_names)}."
                )
        if not 0 < holdout < 1:
            raise InputError(f"holdout: expected a fraction between 0 and 1, got {holdout!r}.")
        left_out = {target, *without}
        sources = [(i, domain) for i, domain in enumerate(self.domains) if domain.name not in left_out]
        if not sources:
            count = {1: "one"}.get(len(left_out), len(left_out))
            raise InputError(
                f"{self.name}: expected at least {len(left_out) + 1} domains, {count} to leave out and one to train "
                f"on, got {len(self.domains)}. Add a domain, or train on all of them with target None."
            )
        train, validation = [], []
        for number, domain in sources:
            in_train, in_validation = split_indices(
                len(domain), data_seed=data_seed, domain=number, holdout=holdout
            )
            if not len(in_train) or not len(in_validation):
                raise InputError(
                    f"domain {domain.name!r} of {self.name}: expected enough images for a validation part of "
                    f"{holdout:g} and a training part, got {len(domain)} images, that is {len(in_train)} for "
                    f"training and {len(in_validation)} for validation. Add images or change the holdout."
                )
            train.append(Subset(domain, number, in_train))
            validation.append(Subset(domain, number, in_validation))
        test = tuple(
            Subset(domain, number, np.arange(len(domain), dtype=np.int64))
            for number, domain in enumerate(self.domains)
            if domain.name == target
        )
        return Split(self, target, tuple(without), data_seed, holdout, tuple(train), tuple(validation), test)


def make_task(
    name: str,
    classes: Sequence[str],
    domains: Sequence[Domain],
    transform: Transform,
    *,
    image_digests: Iterable[str],
    notes: Iterable[str] = (),
) -> Task:
    """A task with its digest, from domains whose images have the given digests."""
    digest = digest_of(
        "task",
        *classes,
        transform,
        *(
            part
            for domain, images in zip(domains, image_digests, strict=True)
            for part in (domain.name, domain.labels, images)
        ),
    )
    missing = (_missing(number, label, domains) for number, label in enumerate(classes))
    return Task(
        name, tuple(classes), tuple(domains), transform, digest, (*(note for note in missing if note), *notes)
    )


def _missing(number: int, label: str, domains: Sequence[Domain]) -> str | None:
    without = [domain.name for domain in domains if not (domain.labels == number).any()]
    return f"class {label!r} is missing in domains: {', '.join(without)}" if without else None


def digest_of(*parts: object) -> str:
    """SHA-256 of the parts in order: arrays by shape and values, everything else by its text form."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            little = np.ascontiguousarray(part.astype(part.dtype.newbyteorder("<"), copy=False))
            content = hashlib.sha256(little.data).digest()
            head = f"array {part.dtype.kind}{part.dtype.itemsize} {part.shape}".encode()
        else:
            head, content = b"text", repr(part).encode()
        for field_ in (head, content):
            total.update(len(field_).to_bytes(8, "little"))
            total.update(field_)
    return total.hexdigest()


def nearest(name: str, among: Iterable[str]) -> str:
    """A sentence that offers the closest of the known names, or nothing when none is close."""
    close = difflib.get_close_matches(name, list(among), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
