"""The common start of all experts: a causal language model with its tokenizer, in a folder of transformers."""

from __future__ import annotations

import hashlib
import os
from functools import cached_property
from pathlib import Path
from typing import Any

from mirepoix.checkpoints import fingerprint, open_weights, read_json
from mirepoix.rewards.text._libraries import library, quiet
from mirepoix.types import InputError, Weights

__all__ = ["TextStart"]


TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
)
"""All that decides what a tokenizer does."""


class TextStart:
    """A language model after supervised fine-tuning, from which every expert is trained.

    Nothing is downloaded and no code that lies in the folder is run.

    Args:
        folder: As ``save_pretrained`` of transformers writes it, with the tokenizer.

    Attributes:
        folder: As given.

    Raises:
        InputError: If it is no such folder, or the tokenizer has no token that ends a text.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if not (self.folder / "config.json").is_file():
            raise InputError(
                f"{self.folder}: expected a folder as save_pretrained of transformers writes it, got no config.json "
                "in it. Check the path."
            )

    def __repr__(self) -> str:
        return f"TextStart({str(self.folder)!r})"

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer; it pads on the left, as generation needs it, with the end of a text if it has nothing else."""
        transformers = library("transformers")
        with quiet():
            try:
                tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
            except (OSError, ValueError) as error:
                raise InputError(f"{self.folder}: has no tokenizer that can be read: {error}.") from error
        if tokenizer.eos_token_id is None:
            raise InputError(f"{self.folder}: its tokenizer has no eos_token, so a completion could not end.")
        tokenizer.padding_side = "left"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    @cached_property
    def weights(self) -> Weights:
        """The weights theta_init, read when they are asked for. Tied weights appear once."""
        return open_weights(self.folder)

    @cached_property
    def fingerprint(self) -> str:
        """Of the weights."""
        return fingerprint(self.weights)

    @cached_property
    def identity(self) -> dict[str, str]:
        """Digests of all that decides what the start says: weights, settings, tokenizer, and those of generation.

        Experts belong together only if these agree.
        """
        found = {"weights": self.fingerprint}
        for part, names in {
            "config": ("config.json",),
            "generation": ("generation_config.json",),
            "tokenizer": TOKENIZER_FILES,
        }.items():
            digest = hashlib.sha256()
            for name in names:
                if (self.folder / name).is_file():
                    digest.update(name.encode() + b"\0" + _content(self.folder / name))
            found[part] = digest.hexdigest()[:32]
        return found

    def model(self) -> Any:
        """A new network with these weights, in float32 or as they are stored, ready to speak (no dropout)."""
        transformers = library("transformers")
        with quiet():
            model = transformers.AutoModelForCausalLM.from_pretrained(
                self.folder, local_files_only=True, trust_remote_code=False
            )
        model.eval()
        model.generation_config.pad_token_id = self.tokenizer.pad_token_id
        return model

    @cached_property
    def end_tokens(self) -> list[int]:
        """The numbers of the tokens that end a completion."""
        path = self.folder / "generation_config.json"
        named = read_json(path).get("eos_token_id") if path.is_file() else None
        found = named if isinstance(named, list) else [] if named is None else [named]
        return list(dict.fromkeys([self.tokenizer.eos_token_id, *found]))


def _content(path: Path) -> bytes:
    """Of a file of settings, without the versions of the libraries that wrote it."""
    if path.name == "tokenizer.json" or path.suffix != ".json":
        return path.read_bytes()
    settings = read_json(path)
    if isinstance(settings, dict):
        settings = {
            key: settings[key] for key in sorted(settings) if not key.endswith(("_version", "name_or_path"))
        }
    return repr(settings).encode()
