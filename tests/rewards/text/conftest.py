from __future__ import annotations

import pytest

from tests.rewards.text import small


@pytest.fixture(scope="package")
def corpus(tmp_path_factory):
    return small.corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="package")
def start(corpus, tmp_path_factory):
    for name in ("transformers", "tokenizers"):
        pytest.importorskip(name, reason="pip install 'mirepoix[text]'")
    return small.start(corpus, tmp_path_factory.mktemp("start") / "start")


@pytest.fixture(scope="package")
def trained(corpus, start):
    """Two experts and their task."""
    for name in ("trl", "peft", "datasets"):
        pytest.importorskip(name, reason="pip install 'mirepoix[text]'")
    from mirepoix.rewards.text import TextTask, TextTrainer, length_target, sentiment

    prompts = corpus.prompts("train", 64, words=(2, 4))
    task = TextTask(prompts.texts, [sentiment(corpus), length_target()], {"reference": prompts.references})
    experts = {
        name: TextTrainer(start=start, reward={name: 1.0})(start.weights, task, small.RUN)
        for name in task.names
    }
    return task, experts
