"""What experts are trained on: prompts, and the rewards of what is said to them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from mirepoix.rewards.text._generate import check_columns, check_rewards
from mirepoix.rewards.text._rewards import Reward
from mirepoix.types import InputError

__all__ = ["TextTask"]


class TextTask:
    """Prompts and rewards, the same for all experts of one soup.

    Args:
        prompts: Texts, as the network is to see them; a chat template is applied before.
        rewards: All of them are computed and recorded in every training, whichever it follows.
        columns: What rewards ask for beside prompt and completion, such as references: one value per prompt.

    Attributes:
        prompts: As given.
        rewards: As given.
        columns: As given.

    Raises:
        InputError: Without prompts or rewards, with a name twice, or columns of another length.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        rewards: Sequence[Reward],
        columns: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        wrong = next((text for text in prompts if not isinstance(text, str)), None)
        if isinstance(prompts, str) or wrong is not None:
            raise InputError(
                f"prompts: expected a list of texts, got {prompts if wrong is None else wrong!r}."
            )
        self.prompts = tuple(prompts)
        self.rewards = check_rewards(rewards)
        self.columns = check_columns(columns, len(self.prompts))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the rewards."""
        return tuple(reward.name for reward in self.rewards)

    @cached_property
    def digest(self) -> str:
        """Names prompts, columns and rewards."""
        content = [
            self.prompts,
            {name: list(values) for name, values in self.columns.items()},
            [(reward.name, reward.digest) for reward in self.rewards],
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]

    def shares(self, reward: Mapping[str, float]) -> tuple[float, ...]:
        """The coefficient of each reward in order, 0 for those that are not named.

        Raises:
            InputError: If a name is not among the rewards, a number is not finite, or all are 0.
        """
        unknown = [name for name in reward if name not in self.names]
        if unknown:
            raise InputError(f"reward: expected some of {', '.join(self.names)}, got {unknown[0]!r}.")
        found = []
        for name in self.names:
            value = reward.get(name, 0.0)
            if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
                raise InputError(f"reward: expected a finite number for {name!r}, got {value!r}.")
            found.append(float(value))
        if not any(found):
            raise InputError("reward: expected a coefficient other than 0 for at least one reward.")
        return tuple(found)
