"""Which network: a few typed words that a recipe or a record can hold."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from mirepoix.models._branches import BranchNetwork
from mirepoix.models._cifar_resnet import CifarResNet
from mirepoix.models._mnist_cnn import GROUPS, MnistCNN
from mirepoix.models._multi_input import MultiInputNetwork
from mirepoix.models._network import Network
from mirepoix.models._wide_resnet import WideResNet28
from mirepoix.seeds import generator
from mirepoix.types import InputError

__all__ = ["NetworkSpec", "input_size_hint", "timm_config"]

CIFAR_DEPTHS = {f"cifar_resnet{depth}": depth for depth in (20, 32, 44, 56, 110)}
WIDE = re.compile(r"wrn28_([1-9]\d*)")
TIMM = re.compile(r"timm:(\w+(?:\.\w+)?)")  # a model and a tag; never an address on a hub or a folder
NAMES = f"{', '.join(CIFAR_DEPTHS)}, wrn28_<k>, mnist_cnn or timm:<model>"


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkSpec:
    """The architecture of a network, without its weights.

    Attributes:
        name: ``cifar_resnet20`` (32, 44, 56, 110), ``wrn28_<k>`` with the widening factor ``k``,
            ``mnist_cnn``, or ``timm:`` and the name of a model of the timm library.
        classes: Number of classes.
        channels: Of the images.
        width: Of ``mnist_cnn`` alone: channels of its first convolution, a multiple of 8; 64 if not given.
        frozen_batch_norm: Whether batch-norm statistics stay as they are in the start weights, as in all
            published tables of domain generalization; scale and shift are trained either way.
        pretrained: Of ``timm:`` networks alone: start from the weights that belong to the name, fetched from
            the model hub.
        members: How many networks are trained as one (`BranchNetwork`).
        split_at: What the members do not share begins at this module of the featurizer, such as ``layer3``, or at
            ``last_stage``; by default they share nothing.
        inputs: How many members share all but their first convolution and their classifier (`MultiInputNetwork`).
    """

    name: str
    classes: int
    channels: int = 3
    width: int | None = None
    frozen_batch_norm: bool = True
    pretrained: bool = False
    members: int = 1
    split_at: str | None = None
    inputs: int = 1

    def __post_init__(self) -> None:
        def expect(ok: bool, field: str, expected: str) -> None:
            if not ok:
                raise InputError(f"network.{field}: expected {expected}, got {getattr(self, field)!r}.")

        known = self.name in CIFAR_DEPTHS or self.name == "mnist_cnn"
        expect(known or bool(WIDE.fullmatch(self.name) or TIMM.fullmatch(self.name)), "name", NAMES)
        expect(self.classes >= 1, "classes", "at least 1 class")
        expect(self.channels >= 1, "channels", "at least 1 channel")
        expect(self.members >= 1, "members", "at least 1 member")
        expect(self.inputs >= 1, "inputs", "at least 1 input")
        if self.inputs > 1 and (self.members > 1 or self.split_at is not None):
            raise InputError(
                f"network.inputs: expected 1 beside members or split_at, got inputs={self.inputs}, "
                f"members={self.members} and split_at={self.split_at!r}; members share either all but their first "
                "convolution and classifier (inputs), or a trunk or nothing (members)."
            )
        if self.name == "mnist_cnn":
            width = self.width
            expect(width is None or (width > 0 and width % GROUPS == 0), "width", f"a multiple of {GROUPS}")
        else:
            expect(self.width is None, "width", f"none for {self.name} (only mnist_cnn has one)")
        expect(
            not self.pretrained or self.name.startswith("timm:"),
            "pretrained",
            f"false for {self.name}, which has no weights on the hub; give a file instead",
        )

    def build(self, *, dropout: float = 0.0, seed: int = 0) -> Network:
        """A new network with random weights, in training mode.

        The weights depend on ``seed`` alone; the global state of torch's generator is as it was. Those of the
        featurizer and of the classifier come from two streams, so equal seeds give equal classifiers even
        where featurizers differ. `initial_weights` and `load_pretrained` give other weights.

        Raises:
            InputError: If timm does not know the model.
        """
        with _seeded("featurizer", seed):
            count = max(self.members, self.inputs)
            featurizers, sizes = zip(*(self._featurizer() for _ in range(count)), strict=True)
        with _seeded("classifier", seed):
            if self.inputs > 1:
                return MultiInputNetwork(
                    featurizers,
                    sizes[0],
                    self.classes,
                    dropout=dropout,
                    frozen_batch_norm=self.frozen_batch_norm,
                )
            if self.members == 1 and self.split_at is None:
                return Network(
                    featurizers[0],
                    sizes[0],
                    self.classes,
                    dropout=dropout,
                    frozen_batch_norm=self.frozen_batch_norm,
                )
            return BranchNetwork(
                featurizers,
                sizes[0],
                self.classes,
                split_at=self.module_name(self.split_at, featurizers[0]),
                dropout=dropout,
                frozen_batch_norm=self.frozen_batch_norm,
            )

    def build_empty(self) -> Network:
        """The network without memory for its weights: names, shapes and layers alone."""
        with torch.device("meta"):
            return self.build()

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for a record; those of several members only where there are some.

        Results are looked up by these values, so a plain network keeps those that it had before there were members.
        """
        one = {"members": 1, "split_at": None, "inputs": 1}
        return {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if name not in one or value != one[name]
        }

    def one_member(self) -> NetworkSpec:
        """The network of one member alone."""
        return dataclasses.replace(self, members=1, split_at=None, inputs=1)

    def module_name(self, name: str | None, featurizer: nn.Module) -> str | None:
        """The name of a module as it is in the featurizer: what ``last_stage`` stands for, else the name itself."""
        if name != "last_stage":
            return name
        if self.name.startswith("timm:"):
            return str(featurizer.feature_info[-1]["module"])  # type: ignore[index]
        return "conv4" if self.name == "mnist_cnn" else "layer3"

    def _featurizer(self) -> tuple[nn.Module, int]:
        if self.name in CIFAR_DEPTHS:
            return CifarResNet(CIFAR_DEPTHS[self.name], self.channels), 64
        if wide := WIDE.fullmatch(self.name):
            return WideResNet28(int(wide[1]), self.channels), 64 * int(wide[1])
        if self.name == "mnist_cnn":
            width = self.width or 64
            return MnistCNN(self.channels, width), 2 * width
        import timm

        timm_config(self.name)
        model: Any = timm.create_model(self.name.removeprefix("timm:"), num_classes=0, in_chans=self.channels)
        # Some families (MobileNet) have one more layer before the classifier, and its size is another.
        return model, getattr(model, "head_hidden_size", None) or model.num_features


def input_size_hint(spec: NetworkSpec) -> int:
    """Height and width, in pixels, of the images a network was designed for."""
    if spec.name.startswith("timm:"):
        return int(timm_config(spec.name).input_size[-1])
    return 28 if spec.name == "mnist_cnn" else 32


def timm_config(name: str) -> Any:
    """What timm knows about a model (``timm:<model>``): input size, name of the classifier, licence."""
    import timm

    model, _, tag = name.removeprefix("timm:").partition(".")
    if not timm.is_model(model):
        near = get_close_matches(model, timm.list_models(), n=3, cutoff=0.4)
        hint = f" Near: {', '.join(near)}." if near else ""
        raise InputError(f"network.name: expected a model of timm {timm.__version__}, got {model!r}.{hint}")
    tags = [full.partition(".")[2] for full in timm.list_models(f"{model}.*", pretrained=True)]
    if tag and tag not in tags:
        known = ", ".join(tags) or "it has none"
        raise InputError(f"network.name: expected a tag of {model} ({known}), got {tag!r}.")
    return timm.get_pretrained_cfg(name.removeprefix("timm:"))


@contextmanager
def _seeded(*parts: object) -> Iterator[None]:
    """Seed the CPU generator from the named parts, and put it back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(generator(*parts).initial_seed())
        yield
