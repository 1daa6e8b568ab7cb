r"""The network: a ViT that sees a scene and a GPT-2 that says words about it, transformers' VisionEncoderDecoderModel.

A sequence is a prompt, an answer and its end: :math:`p_\theta(y | x) = \prod_t p_\theta(y_t | y_{<t}, x)` over the
tokens of the answer and its end, those of the prompt being given. Sequences of different lengths stand left-aligned
with padding behind, which a causal decoder does not see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from mirepoix.rewards.scenes._renderer import CANVAS
from mirepoix.rewards.scenes._task import SceneTask
from mirepoix.rewards.text._libraries import library, quiet
from mirepoix.seeds import seed_hash
from mirepoix.types import InputError, Weights

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SceneNetwork", "Sequences", "decode", "initial_network"]

PAD, BEGIN, END = 0, 1, 2
SPECIAL = 3
"""Words are numbered from here on."""

PATCH = 4
HEAD = 16
FIRST = 0.1
"""Standard deviation of the first weights: with the usual 0.02 a network so narrow attends to nothing for long."""


def initial_network(
    task: SceneTask, *, seed: int = 0, width: int = 64, layers: int = 2
) -> dict[str, torch.Tensor]:
    """Random weights of a network for the task, for the start of all.

    Patches of 4 x 4 pixels; heads of 16; inner layers of twice the width; no dropout. With the defaults and 42 words
    0.18 million parameters.

    Args:
        task: Says the words and their number.
        seed: Of the weights.
        width: Of encoder and decoder; a multiple of 16.
        layers: Of each of both.

    Raises:
        InputError: For a width or a number of layers that cannot be.
    """
    if width < HEAD or width % HEAD:
        raise InputError(f"width: expected a multiple of {HEAD}, got {width}.")
    if layers < 1:
        raise InputError(f"layers: expected at least 1, got {layers}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_hash(seed, "scene network"))
        model = _new(task, width, layers)
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@dataclass(frozen=True, eq=False, slots=True)
class Sequences:
    """Prompts with answers.

    Attributes:
        tokens: Of prompt, answer and its end, padding behind: int64, shape (rows, length).
        answered: Which of them are of the answer or its end: bool, the same shape.
    """

    tokens: Tensor
    answered: Tensor


class SceneNetwork:
    """One network, whose weights are replaced in place.

    Args:
        task: Its words.
        theta: Weights of the architecture, which is read from their shapes.

    Attributes:
        task: As given.
        model: The VisionEncoderDecoderModel of transformers. Its ``generate`` works as well.

    Raises:
        InputError: If the weights are not those of such a network, or of other words.
    """

    def __init__(self, task: SceneTask, theta: Weights) -> None:
        self.task = task
        try:
            width = int(theta["decoder.transformer.wte.weight"].shape[1])
        except KeyError:
            raise InputError(
                "theta: expected weights of a network of scenes, it has no 'decoder.transformer.wte.weight'. "
                "`scene_start(task, store)` makes such weights."
            ) from None
        layers = len({name.split(".")[3] for name in theta if name.startswith("decoder.transformer.h.")})
        with torch.random.fork_rng(devices=[]):
            self.model = _new(task, width, layers)
        self._numbers = {word: SPECIAL + place for place, word in enumerate(task.vocabulary)}
        self.write_(theta)

    def write_(self, theta: Weights, owner: str = "theta") -> None:
        """Replace the weights.

        Raises:
            InputError: If names or shapes are others; with ``owner`` in the message.
        """
        expected = self.model.state_dict()
        found = {
            name: value if isinstance(value, torch.Tensor) else torch.as_tensor(np.asarray(value))
            for name, value in theta.items()
        }
        for name in sorted({*found, *expected}):
            shapes = [tuple(group[name].shape) if name in group else "nothing" for group in (found, expected)]
            if shapes[0] != shapes[1]:
                raise InputError(
                    f"{owner}: expected weights of a network for the task {self.task.name!r}, {name!r} has shape "
                    f"{shapes[0]}, expected {shapes[1]}. `scene_start(task, store)` makes such weights."
                )
        self.model.load_state_dict(found)

    def weights(self) -> dict[str, torch.Tensor]:
        """A copy of the weights as they are now."""
        return {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def numbers(self, text: str) -> list[int]:
        """The tokens of a text.

        Raises:
            InputError: For a word that is not of the vocabulary.
        """
        words = text.split()
        unknown = next((word for word in words if word not in self._numbers), None)
        if unknown is not None:
            raise InputError(f"text {text!r}: {unknown!r} is not a word of the task {self.task.name!r}.")
        return [self._numbers[word] for word in words]

    def sequences(self, prompts: Sequence[str], answers: Sequence[str]) -> Sequences:
        """Prompts with the true answers to learn.

        Raises:
            InputError: For a prompt or an answer that is too long, or an unknown word.
        """
        rows = []
        for prompt, answer in zip(prompts, answers, strict=True):
            asked, said = self.numbers(prompt), [*self.numbers(answer), END]
            for what, tokens, most in (
                ("prompt", asked, self.task.longest_prompt),
                ("answer", said, self.task.longest),
            ):
                if len(tokens) > most:
                    raise InputError(
                        f"{what} {prompt if what == 'prompt' else answer!r}: expected at most {most} tokens, got "
                        f"{len(tokens)}."
                    )
            rows.append((asked, said))
        length = max(len(asked) + len(said) for asked, said in rows)
        padded = torch.full((len(rows), length), PAD)
        answered = torch.zeros(len(rows), length, dtype=torch.bool)
        for row, (asked, said) in enumerate(rows):
            padded[row, : len(asked) + len(said)] = torch.tensor(asked + said)
            answered[row, len(asked) : len(asked) + len(said)] = True
        return Sequences(padded, answered)

    def texts(self, sequences: Sequences) -> list[str]:
        """The answers, their ends left out."""
        return [
            " ".join(
                self.task.vocabulary[token - SPECIAL] for token in row[answered].tolist() if token >= SPECIAL
            )
            for row, answered in zip(sequences.tokens, sequences.answered, strict=True)
        ]

    def see(self, images: NDArray[np.uint8]) -> Tensor:
        """What the encoder makes of images: (images, patches + 1, width)."""
        pixels = torch.from_numpy(np.ascontiguousarray(images)).float().div(127.5).unsqueeze(1)
        seen: Tensor = self.model.encoder(pixel_values=pixels).last_hidden_state
        return seen

    def log_probabilities(self, seen: Tensor, sequences: Sequences) -> Tensor:
        r""":math:`\log p(y_t | y_{<t}, x)` of each token, 0 where it is not of the answer: (rows, length).

        Args:
            seen: What the encoder made of the image of each row.
            sequences: Prompts and answers.
        """
        tokens = sequences.tokens
        begin = torch.full((len(tokens), 1), BEGIN)
        # Padding has no probability; another token in its place keeps the gradient free of infinities.
        tokens = tokens.where(tokens != PAD, torch.tensor(END))
        logits = self.model.decoder(
            input_ids=torch.cat([begin, tokens[:, :-1]], dim=1), encoder_hidden_states=seen, use_cache=False
        ).logits
        found = _words_only(logits).log_softmax(-1)
        return found.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).where(sequences.answered, torch.tensor(0.0))


@torch.no_grad()
def decode(
    networks: Sequence[SceneNetwork],
    shares: Sequence[float],
    images: NDArray[np.uint8],
    prompts: Sequence[str],
    *,
    samples: int = 1,
    generator: torch.Generator | None = None,
) -> Sequences:
    r"""Answers from :math:`\sum_i \lambda_i p_{\theta_i}(y_t | y_{<t}, x)`, word by word.

    Args:
        networks: One, or the members of an ensemble.
        shares: :math:`\lambda_i`.
        images: Shape (images, 32, 32).
        prompts: One for each image.
        samples: Answers for each image; those of one image stand one after the other.
        generator: Draws the answers. Without one each token is the most probable, of equal ones the first.

    Returns:
        Prompts and answers, (images * samples) rows. An answer that does not end is cut at the task's longest.
    """
    first = networks[0]
    asked = [first.numbers(prompt) for prompt in prompts for _ in range(samples)]
    longest = first.task.longest
    lengths = torch.tensor([len(tokens) for tokens in asked])
    given = torch.full((len(asked), int(lengths.max())), PAD)
    for row, words in enumerate(asked):
        given[row, : len(words)] = torch.tensor(words, dtype=torch.int64)
    draws = None if generator is None else torch.rand(len(asked), longest, generator=generator).double()

    members = [_Speaker(network, images, samples) for network in networks]
    begun = int(lengths.min())
    tokens = torch.full((len(asked), given.shape[1] + longest), PAD)
    tokens[:, :begun] = given[:, :begun]
    answered = torch.zeros(tokens.shape, dtype=torch.bool)
    new = torch.cat([torch.full((len(asked), 1), BEGIN), given[:, :begun]], dim=1)
    ended = torch.zeros(len(asked), dtype=torch.bool)
    for place in range(begun, tokens.shape[1]):
        mixed = sum(share * member.next(new) for share, member in zip(shares, members, strict=True))
        assert isinstance(mixed, torch.Tensor)
        step = place - lengths  # of the answer; negative within a prompt
        if draws is None:
            chosen = mixed.argmax(-1)
        else:
            chosen = _drawn(mixed, draws.gather(1, step.clamp(0, longest - 1).unsqueeze(1)))
        speaks = (step >= 0) & (step < longest) & ~ended
        chosen = chosen.where(speaks, torch.tensor(PAD))
        if place < given.shape[1]:
            chosen = given[:, place].where(step < 0, chosen)
        tokens[:, place], answered[:, place] = chosen, speaks
        ended |= speaks & (chosen == END)
        if bool((ended | (step >= longest - 1)).all()):
            break
        new = chosen.where(chosen != PAD, torch.tensor(END)).unsqueeze(1)
    length = place + 1
    return Sequences(tokens[:, :length], answered[:, :length])


class _Speaker:
    """A network in the middle of its sentences, with the keys and values of what was said."""

    def __init__(self, network: SceneNetwork, images: NDArray[np.uint8], samples: int) -> None:
        cache = library("transformers.cache_utils")
        self.decoder = network.model.decoder
        self.seen = network.see(images).repeat_interleave(samples, dim=0)
        self.past = cache.EncoderDecoderCache(cache.DynamicCache(), cache.DynamicCache())

    def next(self, new: Tensor) -> Tensor:
        """The probabilities of the next token after these new ones, in float64."""
        logits = self.decoder(
            input_ids=new, encoder_hidden_states=self.seen, past_key_values=self.past, use_cache=True
        ).logits[:, -1]
        return _words_only(logits.double()).softmax(-1)


def _drawn(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Tokens by inversion of the distribution function at numbers in [0, 1): (rows,)."""
    below = probabilities.cumsum(-1)
    return (below <= uniform * below[:, -1:]).sum(-1).clamp(max=probabilities.shape[1] - 1)


def _words_only(logits: Tensor) -> Tensor:
    """Padding and beginning are never said."""
    banned = torch.zeros(logits.shape[-1], dtype=torch.bool)
    banned[[PAD, BEGIN]] = True
    return logits.masked_fill(banned, float("-inf"))


def _new(task: SceneTask, width: int, layers: int) -> Any:
    """A network with random weights from torch's generator."""
    transformers = library("transformers")
    tokens = SPECIAL + len(task.vocabulary)
    with quiet():
        encoder = transformers.ViTModel(
            transformers.ViTConfig(
                image_size=CANVAS,
                patch_size=PATCH,
                num_channels=1,
                hidden_size=width,
                intermediate_size=2 * width,
                num_hidden_layers=layers,
                num_attention_heads=width // HEAD,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                initializer_range=FIRST,
            ),
            add_pooling_layer=False,
        )
        decoder = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=tokens,
                n_positions=task.longest_prompt + task.longest,
                n_embd=width,
                n_inner=2 * width,
                n_layer=layers,
                n_head=width // HEAD,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                initializer_range=FIRST,
                is_decoder=True,
                add_cross_attention=True,
                tie_word_embeddings=False,
                pad_token_id=PAD,
                bos_token_id=BEGIN,
                eos_token_id=END,
            )
        )
        model = transformers.VisionEncoderDecoderModel(encoder=encoder, decoder=decoder)
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = BEGIN, PAD, END
    # 50 by default, which would change the probabilities of samples.
    model.generation_config.top_k = 0
    model.generation_config.suppress_tokens = [PAD, BEGIN]
    model.generation_config.max_new_tokens = task.longest
    return model.eval()
