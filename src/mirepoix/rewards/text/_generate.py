"""Completions of any weights of one network: one model in memory, the same prompts, the same random numbers."""

from __future__ import annotations

import copy
import functools
import hashlib
import inspect
import json
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mirepoix.rewards.text._adapters import AdaptedWeights
from mirepoix.rewards.text._libraries import quiet
from mirepoix.rewards.text._rewards import Reward
from mirepoix.rewards.text._start import TextStart
from mirepoix.seeds import stream
from mirepoix.types import InputError, Weights

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["TextEvaluation", "TextModel"]


class TextModel:
    """One network in memory, whose weights are replaced in place.

    Args:
        start: The network, its tokenizer, and the weights it has at first.
        device: Such as ``cuda``; by default the GPU if there is one, else the CPU.

    Attributes:
        start: As given.
        tokens: Completion tokens made so far, ends of texts included.
        seconds: Spent on them.
    """

    def __init__(self, start: TextStart, *, device: str | None = None) -> None:
        import torch

        self.start = start
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.network = start.model().to(self.device)
        self.tokens = 0
        self.seconds = 0.0
        self._written: set[str] = set()

    @property
    def tokens_per_second(self) -> float:
        """Of all completions made so far, NaN before the first."""
        return self.tokens / self.seconds if self.seconds else float("nan")

    def write_(self, theta: Weights) -> None:
        """Give the network the weights ``theta``; names that are not in it are those of the start.

        Raises:
            InputError: If a name is not the network's, or has another shape.
        """
        self._written = write_(self.network, theta, self.start, self._written)

    def complete(
        self,
        prompts: Sequence[str],
        *,
        max_tokens: int = 20,
        temperature: float = 0.0,
        seed: int = 0,
        batch_size: int = 64,
    ) -> list[str]:
        r"""The completion of each prompt.

        Args:
            prompts: Texts, not empty.
            max_tokens: The most tokens of a completion.
            temperature: 0 takes the most probable token at each place; otherwise tokens are drawn from
                :math:`\text{softmax}(z / T)`.
            seed: Of the draws. One random number belongs to each place of each prompt, and the token is where it
                falls in the cumulated probabilities: other weights are tried with the same numbers, and the size of the
                batches changes nothing but roundings.
            batch_size: Prompts at once.

        Returns:
            Texts without the prompt.

        Raises:
            InputError: If a prompt is empty, or with the prompt there is no room for the completion.
        """
        return self._complete([self.network], [1.0], prompts, max_tokens, temperature, seed, batch_size)

    def complete_by_ensemble(
        self,
        thetas: Mapping[str, Weights],
        coefficients: Mapping[str, float],
        prompts: Sequence[str],
        *,
        max_tokens: int = 20,
        temperature: float = 0.0,
        seed: int = 0,
        batch_size: int = 64,
    ) -> list[str]:
        r"""Completions of the functional ensemble: members' probabilities of each token are averaged.

        .. math:: p(y_t \mid y_{<t}) = \sum_i \lambda_i\, p_{\theta_i}(y_t \mid y_{<t}), \qquad
            y_t \sim p^{1/T} / Z .

        It costs a forward pass and a copy of the network per member, and is what a soup is compared with. A member
        with the coefficient 0 takes no part.

        Args:
            thetas: Members by name.
            coefficients: By name, on the simplex.
            prompts: See `complete`.
            max_tokens: See `complete`.
            temperature: See `complete`.
            seed: See `complete`.
            batch_size: See `complete`.

        Raises:
            InputError: As `complete`; for coefficients that are not one per member, negative, or do not sum to one.
        """
        if set(coefficients) != set(thetas):
            raise InputError(
                f"coefficients: expected one number for each of {', '.join(thetas)}, got "
                f"{', '.join(coefficients) or 'none'}."
            )
        shares = {name: float(coefficients[name]) for name in thetas}
        if not abs(sum(shares.values()) - 1) <= 1e-6 or any(share < 0 for share in shares.values()):
            raise InputError(
                f"coefficients: expected numbers from 0 that sum to one, as probabilities are averaged, got {shares}."
            )
        members = [name for name, share in shares.items() if share]
        networks = [self.network, *(copy.deepcopy(self.network) for _ in members[1:])]
        for place, (name, network) in enumerate(zip(members, networks, strict=True)):
            written = write_(network, thetas[name], self.start, set(self._written))
            if place == 0:
                self._written = written
        return self._complete(
            networks, [shares[name] for name in members], prompts, max_tokens, temperature, seed, batch_size
        )

    def _complete(
        self,
        networks: Sequence[Any],
        shares: Sequence[float],
        prompts: Sequence[str],
        max_tokens: int,
        temperature: float,
        seed: int,
        batch_size: int,
    ) -> list[str]:
        for option, value in (("max_tokens", max_tokens), ("batch_size", batch_size)):
            if value < 1:
                raise InputError(f"{option}: expected at least 1, got {value}.")
        if not (np.isfinite(temperature) and temperature >= 0):
            raise InputError(f"temperature: expected 0 or a positive number, got {temperature!r}.")
        ids = [self.start.tokenizer(text)["input_ids"] for text in prompts]
        room = getattr(self.network.config, "max_position_embeddings", None)
        for text, numbers in zip(prompts, ids, strict=True):
            if not numbers:
                raise InputError(f"prompts: expected texts, got {text!r}, which has no token.")
            if room is not None and len(numbers) + max_tokens > room:
                raise InputError(
                    f"prompts: {text[:60]!r} has {len(numbers)} tokens and the network has room for {room}, so "
                    f"max_tokens can be {room - len(numbers)} at most, got {max_tokens}."
                )
        draws = stream("complete", seed).random((len(ids), max_tokens)) if temperature else None
        texts: list[str] = []
        began = time.perf_counter()
        with quiet():
            for first in range(0, len(ids), batch_size):
                rows = slice(first, first + batch_size)
                made = _decode(
                    networks,
                    shares,
                    ids[rows],
                    max_tokens=max_tokens,
                    ends=self.start.end_tokens,
                    pad=self.start.tokenizer.pad_token_id,
                    temperature=temperature,
                    draws=None if draws is None else draws[rows],
                )
                self.tokens += sum(map(len, made))
                texts += self.start.tokenizer.batch_decode(made, skip_special_tokens=True)
        self.seconds += time.perf_counter() - began
        return texts


class TextEvaluation:
    """Rewards of any weights on fixed prompts: ``evaluate(theta)`` gives for each reward one value per prompt.

    The same prompts and, when sampling, the same random numbers serve every ``theta``, so that differences between
    two of them are not those of the luck.

    Args:
        model: The network, whose weights are replaced.
        prompts: Texts.
        rewards: To measure, trained on or not.
        columns: What rewards ask for beside the completion, such as references: one value per prompt.
        max_tokens: See `TextModel.complete`.
        temperature: See `TextModel.complete`; 0, the most probable token, is that of the published evaluations.
        seed: See `TextModel.complete`.
        batch_size: See `TextModel.complete`.

    Raises:
        InputError: Without prompts or rewards, or with a name twice, or columns of another length.
    """

    def __init__(
        self,
        model: TextModel,
        prompts: Sequence[str],
        rewards: Sequence[Reward],
        *,
        columns: Mapping[str, Sequence[Any]] | None = None,
        max_tokens: int = 20,
        temperature: float = 0.0,
        seed: int = 0,
        batch_size: int = 64,
    ) -> None:
        self.model = model
        self.prompts = tuple(prompts)
        self.rewards = check_rewards(rewards)
        self.columns = check_columns(columns, len(self.prompts))
        self.options: dict[str, Any] = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
            "batch_size": batch_size,
        }

    @cached_property
    def digest(self) -> str:
        """Names what is measured: start, prompts, rewards and how completions are made."""
        content = {
            "start": self.model.start.identity,
            "prompts": self.prompts,
            "columns": {name: list(values) for name, values in self.columns.items()},
            "rewards": [(reward.name, reward.digest) for reward in self.rewards],
            "options": self.options,
            "code": code_version(),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]

    def __call__(self, theta: Weights) -> dict[str, NDArray[np.float64]]:
        """From each reward to its values, one per prompt."""
        return self.score(self.completions(theta))

    def completions(self, theta: Weights) -> list[str]:
        """What these weights say to each prompt."""
        self.model.write_(theta)
        return self.model.complete(self.prompts, **self.options)

    def ensemble(
        self, thetas: Mapping[str, Weights], coefficients: Mapping[str, float]
    ) -> dict[str, NDArray[np.float64]]:
        """The same of the functional ensemble, `TextModel.complete_by_ensemble`."""
        texts = self.model.complete_by_ensemble(thetas, coefficients, self.prompts, **self.options)
        return self.score(texts)

    def score(self, completions: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        """Rewards of given completions."""
        return {
            reward.name: np.array(reward(self.prompts, completions, **self.columns))
            for reward in self.rewards
        }


@functools.cache
def code_version() -> str:
    """A digest of the files that decide what weights say."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for name in ("_generate.py", "_start.py"):
        digest.update(name.encode() + b"\0" + (here / name).read_bytes())
    return digest.hexdigest()[:16]


def write_(network: Any, theta: Weights, start: TextStart, written: set[str]) -> set[str]:
    """Write into the network in place; ``written``, and the result, are the names that are not the start's."""
    import torch

    tensors = dict(network.named_parameters(remove_duplicate=False)) | dict(network.named_buffers())
    near = isinstance(theta, AdaptedWeights) and theta.base is start.weights
    names = list(theta.changed) if isinstance(theta, AdaptedWeights) and near else list(theta)
    unknown = [name for name in names if name not in tensors]
    if unknown:
        raise InputError(f"theta: the network has no {unknown[0]!r}. Are these weights of another model?")
    back = written - set(names)
    with torch.no_grad():
        for source, group in ((theta, names), (start.weights, sorted(back))):
            for name in group:
                value = source[name]
                value = value if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value))
                if value.shape != tensors[name].shape:
                    raise InputError(
                        f"theta: {name!r} has shape {tuple(value.shape)}, expected {tuple(tensors[name].shape)}."
                    )
                tensors[name].copy_(value)
    return set(names)


def check_rewards(rewards: Sequence[Reward]) -> tuple[Reward, ...]:
    """At least one, each with a name of its own."""
    found = tuple(rewards)
    if not found or not all(isinstance(reward, Reward) for reward in found):
        raise InputError(f"rewards: expected a list of rewards (see as_reward), got {rewards!r}.")
    names = [reward.name for reward in found]
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise InputError(f"rewards: expected each name once, got {twice[0]!r} twice. Rename one of them.")
    return found


TAKEN = (
    "prompt",
    "prompts",
    "completion",
    "completions",
    "completion_ids",
    "trainer_state",
    "image",
    "images",
)


def check_columns(columns: Mapping[str, Sequence[Any]] | None, prompts: int) -> dict[str, list[Any]]:
    """One value per prompt in each, under names that mean nothing else."""
    if prompts < 1:
        raise InputError("prompts: expected at least one, got none.")
    found = {name: list(values) for name, values in (columns or {}).items()}
    for name, values in found.items():
        if len(values) != prompts:
            raise InputError(
                f"columns: expected {prompts} values in {name!r}, one per prompt, got {len(values)}."
            )
        if name in TAKEN:
            raise InputError(f"columns: {name!r} has a meaning of its own. Rename it.")
    return found


def _decode(
    networks: Sequence[Any],
    shares: Sequence[float],
    ids: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    ends: Sequence[int],
    pad: int,
    temperature: float,
    draws: NDArray[np.float64] | None,
) -> list[list[int]]:
    """The tokens of each completion, with the one that ends it if it comes in time."""
    import torch

    device = networks[0].device
    longest = max(map(len, ids))
    rows = [[pad] * (longest - len(numbers)) + list(numbers) for numbers in ids]
    mask = torch.tensor([[0] * (longest - len(n)) + [1] * len(n) for n in ids], device=device)
    tokens = torch.tensor(rows, device=device)
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    uniform = None if draws is None else torch.from_numpy(draws).to(device)
    end = torch.tensor(list(ends), device=device)
    memory: list[Any] = [None] * len(networks)
    open_ = torch.ones(len(ids), dtype=torch.bool, device=device)
    made: list[Tensor] = []
    counts = torch.zeros(len(ids), dtype=torch.long, device=device)
    with torch.inference_mode():
        for step in range(max_tokens):
            found: Tensor | None = None
            for number, (network, share) in enumerate(zip(networks, shares, strict=True)):
                placed = {"position_ids": places} if _takes_places(network) else {}
                outputs = network(
                    input_ids=tokens,
                    attention_mask=mask,
                    past_key_values=memory[number],
                    use_cache=True,
                    **placed,
                )
                memory[number] = outputs.past_key_values
                last = outputs.logits[:, -1].double()
                if len(networks) > 1:
                    part = share * last.softmax(-1)
                    found = part if found is None else found + part
                else:
                    found = last
            assert found is not None
            scores = found.log() if len(networks) > 1 else found
            if uniform is None:
                chosen = scores.argmax(-1)
            else:
                heap = (scores / temperature).softmax(-1).cumsum(-1)
                chosen = torch.searchsorted(heap, uniform[:, step : step + 1] * heap[:, -1:], right=True)[
                    :, 0
                ]
                chosen = chosen.clamp(max=heap.shape[1] - 1)
            chosen = torch.where(open_, chosen, torch.full_like(chosen, pad))
            made.append(chosen)
            counts += open_.long()
            open_ = open_ & ~torch.isin(chosen, end)
            if not bool(open_.any()):
                break
            tokens = chosen[:, None]
            mask = torch.cat([mask, torch.ones_like(tokens)], dim=1)
            places = places[:, -1:] + 1
    table = torch.stack(made, dim=1).tolist()
    return [row[:count] for row, count in zip(table, counts.tolist(), strict=True)]


def _takes_places(network: Any) -> bool:
    return "position_ids" in inspect.signature(network.forward).parameters
