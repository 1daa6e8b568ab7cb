"""A language model small enough to be trained from nothing in a minute: the start of the study on movie reviews."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mirepoix.checkpoints import fingerprint, read_json, write_json
from mirepoix.rewards.text._corpus import Corpus
from mirepoix.rewards.text._libraries import library, quiet
from mirepoix.rewards.text._start import TextStart
from mirepoix.seeds import seed_hash, stream
from mirepoix.types import InputError

__all__ = ["RECORD", "tiny_start"]

RECORD = "mirepoix.json"
PAD, BEGIN, END = "<pad>", "<bos>", "<eos>"


def tiny_start(
    corpus: Corpus,
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    steps: int = 600,
    batch_size: int = 32,
    learning_rate: float = 3e-3,
    words: int = 2048,
    width: int = 96,
    layers: int = 2,
    longest: int = 48,
    checkpoint_every: int = 100,
    on_progress: Callable[[int, int, float], None] | None = None,
) -> TextStart:
    """A tokenizer and a language model from nothing, after supervised training on the lines of a corpus.

    A byte-level BPE tokenizer; a Llama of ``layers`` layers, with 4 heads of attention, tied embeddings and 0.4
    million parameters; AdamW with a rate that rises for a tenth of the steps and then falls to zero along half a
    cosine. Every text begins with a token of its own and ends with another. The same arguments give the same bits
    on CPU, as long as the number of threads stays. A training that was killed continues: its state is in a hidden file
    beside ``folder`` until the folder is written.

    Args:
        corpus: Trained on is its part ``train``.
        folder: Where to write it, whole or not at all, as a folder of transformers. If it holds the result of the
            same arguments already, nothing is trained.
        seed: Of the first weights and of the order of the lines.
        steps: Updates.
        batch_size: Lines of an update.
        learning_rate: The highest.
        words: Tokens in the vocabulary.
        width: Of the network, a multiple of 8.
        layers: Of the network.
        longest: Tokens after which a line is cut.
        checkpoint_every: Updates between two states that are saved.
        on_progress: Called after each update with the updates done, all of them, and the loss.

    Raises:
        InputError: If ``folder`` exists and is something else.
    """
    at_least_one = {
        "steps": steps,
        "batch_size": batch_size,
        "layers": layers,
        "checkpoint_every": checkpoint_every,
    }
    for name, value in at_least_one.items():
        if value < 1:
            raise InputError(f"{name}: expected at least 1, got {value}.")
    if width < 8 or width % 8:
        raise InputError(f"width: expected a multiple of 8, got {width}.")
    if words < 300:
        raise InputError(
            f"words: expected at least 300, for 256 bytes and what is made of them, got {words}."
        )
    folder = Path(folder)
    made_of = {
        "corpus": corpus.digest,
        "seed": seed,
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "words": words,
        "width": width,
        "layers": layers,
        "longest": longest,
        "version": 1,
    }
    if folder.exists():
        return _found(folder, made_of)
    if not folder.parent.is_dir():
        raise InputError(f"{folder}: cannot be written, the folder {folder.parent} does not exist.")
    texts = [line.text for line in corpus.part("train")]
    tokenizer = _tokenizer(texts, words)
    state = folder.parent / f".{folder.name[:50]}.state.bin"
    with quiet():
        model, losses, seconds = _trained(tokenizer, texts, made_of, state, checkpoint_every, on_progress)
        temporary = folder.parent / f".{folder.name[:50]}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
        try:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            write_json(
                temporary / RECORD,
                {
                    "made_of": made_of,
                    "fingerprint": fingerprint(TextStart(temporary).weights),
                    "losses": losses,
                    "seconds": round(seconds, 2),
                },
            )
            temporary.rename(folder)
            state.unlink(missing_ok=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return TextStart(folder)


def _found(folder: Path, made_of: dict[str, Any]) -> TextStart:
    record = read_json(folder / RECORD) if (folder / RECORD).is_file() else None
    if not isinstance(record, dict) or record.get("made_of") != made_of:
        raise InputError(
            f"{folder}: exists already, and is not the start of these arguments. Name another folder, or remove it."
        )
    start = TextStart(folder)
    if start.fingerprint != record["fingerprint"]:
        raise InputError(f"{folder}: its weights are not those that were written. Remove it to train again.")
    return start


def _tokenizer(texts: Sequence[str], words: int) -> Any:
    tokenizers, transformers = library("tokenizers"), library("transformers")
    with quiet():
        raw = tokenizers.Tokenizer(tokenizers.models.BPE())
        raw.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=words,
            special_tokens=[PAD, BEGIN, END],
            initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        raw.train_from_iterator(texts, trainer)
        raw.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{BEGIN} $A", special_tokens=[(BEGIN, raw.token_to_id(BEGIN))]
        )
        return transformers.PreTrainedTokenizerFast(
            tokenizer_object=raw,
            pad_token=PAD,
            bos_token=BEGIN,
            eos_token=END,
            padding_side="left",
            clean_up_tokenization_spaces=False,
        )


def _trained(
    tokenizer: Any,
    texts: Sequence[str],
    made_of: dict[str, Any],
    state_file: Path,
    checkpoint_every: int,
    on_progress: Callable[[int, int, float], None] | None,
) -> tuple[Any, list[float], float]:
    """The network after its steps, its loss in each of them, and the seconds they took."""
    import torch

    from mirepoix.training._interruption import load_state, save_state

    transformers = library("transformers")
    steps, size, longest = made_of["steps"], made_of["batch_size"], made_of["longest"]
    torch.manual_seed(seed_hash("tiny_start", made_of["seed"]))
    width = made_of["width"]
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=made_of["layers"],
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    lines = [
        torch.tensor([*ids[:longest], tokenizer.eos_token_id]) for ids in tokenizer(list(texts))["input_ids"]
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=made_of["learning_rate"], weight_decay=0.01)
    random, order, losses = stream("tiny_start", made_of["seed"]), np.zeros(0, dtype=int), []
    before, began, done = 0.0, time.perf_counter(), 0
    saved = load_state(state_file)
    if saved is not None and saved["made_of"] == made_of:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        done, losses, before = saved["step"], saved["losses"], saved["seconds"]
    for step in range(steps):
        if len(order) < size:
            order = np.concatenate([order, random.permutation(len(lines))])
        chosen, order = order[:size], order[size:]
        if step < done:
            continue
        batch = torch.nn.utils.rnn.pad_sequence(
            [lines[i] for i in chosen], batch_first=True, padding_value=-1
        )
        here = batch >= 0
        rate = min((step + 1) / max(1, steps // 10), 0.5 * (1 + float(np.cos(np.pi * step / steps))))
        for group in optimizer.param_groups:
            group["lr"] = made_of["learning_rate"] * rate
        logits = model(input_ids=batch.clamp(min=0), attention_mask=here.long()).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten(), ignore_index=-1
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(round(float(loss.detach()), 6))
        if (step + 1) % checkpoint_every == 0 and step + 1 < steps:
            save_state(
                state_file,
                {
                    "made_of": made_of,
                    "step": step + 1,
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "losses": losses,
                    "seconds": before + time.perf_counter() - began,
                },
            )
        if on_progress is not None:
            on_progress(step + 1, steps, losses[-1])
    return model.eval(), losses, before + time.perf_counter() - began
