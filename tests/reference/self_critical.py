"""Self-critical training the slow and obvious way: one token, one sequence at a time, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

NextLogits = Callable[[list[int]], Sequence[float]]
"""From the tokens so far, the beginning among them, to one logit for each token."""


def probabilities(logits: Sequence[float], never: Sequence[int]) -> list[float]:
    """Softmax over the tokens that may be said."""
    highest = max(value for token, value in enumerate(logits) if token not in never)
    powers = [0.0 if token in never else math.exp(value - highest) for token, value in enumerate(logits)]
    total = math.fsum(powers)
    return [power / total for power in powers]


def log_probability(
    next_logits: NextLogits, begin: int, prompt: Sequence[int], answer: Sequence[int], never: Sequence[int]
) -> float:
    """Of the tokens of an answer after a prompt, its end included where it has one."""
    said = [begin, *prompt]
    terms = []
    for token in answer:
        terms.append(math.log(probabilities(next_logits(said), never)[token]))
        said.append(token)
    return math.fsum(terms)


def speak(
    members: Sequence[tuple[float, NextLogits]],
    begin: int,
    end: int,
    prompt: Sequence[int],
    longest: int,
    never: Sequence[int],
    uniform: Sequence[float] | None = None,
) -> list[int]:
    """The tokens of an answer: drawn with one number in [0, 1) for each, or the most probable ones."""
    said, answer = [begin, *prompt], list[int]()
    for place in range(longest):
        each = [(share, probabilities(logits(said), never)) for share, logits in members]
        mixed = [math.fsum(share * p[token] for share, p in each) for token in range(len(each[0][1]))]
        if uniform is None:
            token = max(range(len(mixed)), key=lambda candidate: mixed[candidate])
        else:
            below, token = 0.0, 0
            for candidate, probability in enumerate(mixed):
                below += probability
                if below > uniform[place]:
                    token = candidate
                    break
        answer.append(token)
        said.append(token)
        if token == end:
            break
    return answer


def loss(
    rewards: Sequence[Sequence[float]],
    log_probabilities: Sequence[Sequence[float]],
    greedy: Sequence[float] | None = None,
) -> float:
    """mean[(r - b) (-log p)], with b the mean of the other answers to the image, or the greedy one's reward."""
    terms = []
    for image, earned in enumerate(rewards):
        for answer, reward in enumerate(earned):
            if greedy is None:
                others = [value for other, value in enumerate(earned) if other != answer]
                baseline = math.fsum(others) / len(others)
            else:
                baseline = greedy[image]
            terms.append((reward - baseline) * -log_probabilities[image][answer])
    return math.fsum(terms) / len(terms)
