"""Options of the verbs that score weights: a function of the user, or a network on a folder of images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

__all__ = [
    "BatchNormOption",
    "BatchSizeOption",
    "BetterOption",
    "DeviceOption",
    "MetricOption",
    "ModelOption",
    "ScoreOption",
    "SizeOption",
    "SkipUnreadableOption",
    "ToleranceOption",
    "ValidationOption",
    "WidthOption",
]

ScoreOption = Annotated[
    str | None,
    typer.Option(metavar="MODULE:FUNCTION", help="Your function of weights: a number, or one per sample."),
]
BetterOption = Annotated[
    Literal["higher", "lower"] | None,
    typer.Option(help="Which values of --score are better. [default: higher]"),
]
ModelOption = Annotated[
    str | None, typer.Option(help="Network of the weights, such as timm:resnet18 or cifar_resnet20.")
]
ValidationOption = Annotated[
    Path | None,
    typer.Option(help="Folder of held-out images: one sub-folder per class, or domains with them."),
]
MetricOption = Annotated[Literal["accuracy", "nll"], typer.Option(help="What is measured with --model.")]
ToleranceOption = Annotated[
    float, typer.Option(help="How far below the chord is still connected; accuracy is a fraction.")
]
BatchNormOption = Annotated[
    Literal["average", "reestimate"],
    typer.Option(help="Statistics between the ends: averaged, or measured again on the images."),
]
WidthOption = Annotated[int | None, typer.Option(help="Width of mnist_cnn.")]
SizeOption = Annotated[
    int | None,
    typer.Option(help="Side in pixels of what the network sees. [default: that of its design]"),
]
BatchSizeOption = Annotated[int, typer.Option(help="Images at a time.")]
DeviceOption = Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda, cuda:1, mps.")]
SkipUnreadableOption = Annotated[
    bool, typer.Option("--skip-unreadable", help="Leave unreadable images out, and say so.")
]
