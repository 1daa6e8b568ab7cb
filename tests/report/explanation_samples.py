"""Explanations of all kinds, made from members whose errors are known."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from tests.evidence.explain_samples import apart, block, source, wrong_on

from mirepoix.evidence._classifier_invariance import classifier_invariance
from mirepoix.evidence._explain import explain
from mirepoix.evidence._source_invariance import Examined, SourceInvariance
from mirepoix.report._explanation import explanation_html
from mirepoix.types import Batch


def several() -> dict[str, Any]:
    """Three targets with strange names, and every role."""
    blocks = []
    for t, name in enumerate(("plain", "<b>&amp;</b> \x07" + "long" * 40, "naïve – 猫")):
        right = apart(average=0.05 * t) | {
            "greedy": wrong_on(400, range(10)),
            "wise": wrong_on(400, range(80)),
        }
        # all members fail together on some images, so that the ratio-error is finite
        right = {key: value & wrong_on(400, range(380 - 5 * t, 400)) for key, value in right.items()}
        one = replace(block(right, right), name=name, target=name, data_seed=0)
        blocks.append(replace(one, ood=replace(one.ood, domain_names=(name,)) if one.ood else None))
    return explain(source(*blocks, data_seeds=1), resamples=200)


def invariance(*names: str) -> SourceInvariance:
    """A start, two members and their average on domains with strange names; one block for each name."""
    random = torch.Generator().manual_seed(0)
    batches = {}
    for k, domain in enumerate(("<i>x</i>", "naïve \x07", "z" * 60)):
        labels = torch.randint(3, (40,), generator=random)
        images = torch.randn(40, 4, generator=random) + k * labels[:, None]
        batches[domain] = [Batch(images, labels, labels)]
    model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(4, 3))
    found = {}
    for k, name in enumerate(("start", "run-0", "run-1", "average")):
        theta = {
            "1.weight": (k + 1) * torch.randn(3, 4, generator=random),
            "1.bias": torch.zeros(3),
        }
        found[name] = classifier_invariance(model, theta, batches, head="1")
    return SourceInvariance("all images", tuple(Examined(name, tuple(batches), found) for name in names))


@cache
def samples() -> dict[str, dict[str, Any]]:
    """An explanation of every kind that a page must bear."""
    random = np.random.default_rng(0)
    many = {f"a rather long name of member number {i}": random.random(60) < 0.7 for i in range(30)}
    one = {"run-0": wrong_on(50, range(10))}
    tiny = {"run-0": wrong_on(5, 0), "run-1": wrong_on(5, 1), "average": wrong_on(5)}
    return {
        "several": several(),
        "clear": explain(source(block(apart(), apart())), resamples=200),
        "many": explain(source(block(many, many)), resamples=200),
        "one": explain(source(block(one, one)), resamples=200),
        "tiny": explain(source(block(tiny, tiny)), resamples=200),
        "id": explain(source(block(apart(), None)), resamples=200),
        "ood": explain(source(block(None, apart())), resamples=200),
        "invariance": explain(
            source(block(apart(), apart())), resamples=200, invariance=invariance("your members")
        ),
    }


@cache
def sample_pages() -> dict[str, str]:
    """The pages of all samples; drawing them takes a while."""
    return {name: explanation_html(content) for name, content in samples().items()}
