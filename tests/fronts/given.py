"""Experts as strangers would bring them: small files of weights, and PEFT adapters of a tiny language model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from mirepoix.checkpoints import write_weights
from tests.rewards.text import small

ITEMS = 12
TARGETS = {"a": (1.0, 0.0, 0.0), "b": (0.0, 1.0, 0.0), "c": (0.0, 0.0, 1.0)}
MODULE = """
import torch

X = torch.arange(36.0).reshape(12, 3) / 36

def near(target):
    def reward(theta):
        calls.append({name: tensor.clone() for name, tensor in theta.items()})
        return 1 - (X @ (theta["w"] - torch.tensor(target))) ** 2
    return reward

calls = []
a, b, c = near([1.0, 0, 0]), near([0.0, 1, 0]), near([0.0, 0, 1])

def both(theta):
    return {"a": a(theta), "b": b(theta).tolist()}
"""


def points() -> np.ndarray:
    return np.arange(36.0).reshape(ITEMS, 3) / 36


def reward(w, target) -> np.ndarray:
    """What `MODULE` computes, item by item."""
    return np.array(
        [1 - sum(x * (u - t) for x, u, t in zip(row, w, target, strict=True)) ** 2 for row in points()]
    )


def write_experts(folder: Path, names="ab", **more) -> dict[str, Path]:
    """A file for each, and that of the start."""
    found = {}
    for name in [*names, "start"]:
        w = np.array(TARGETS.get(name, (0.0, 0.0, 0.0)), dtype=np.float32)
        found[name] = folder / f"{name}.safetensors"
        write_weights(found[name], {"w": w, "steps": np.array(7), **more})
    return found


def write_module(folder: Path, name: str, text: str = MODULE) -> str:
    """A module with a name of its own, as imported modules stay in memory."""
    (folder / f"{name}.py").write_text(text)
    return name


def language_model(folder: Path):
    """A `TextStart` that has learned a little."""
    folder.mkdir(exist_ok=True)
    return small.start(small.corpus(folder), folder / "start", steps=10)


def write_adapter(start, folder: Path, seed: int, rank: int = 2, size: float = 0.3) -> Path:
    """An adapter as PEFT saves it, of random factors, over the folder of the start."""
    import peft
    import torch

    from mirepoix.rewards.text._libraries import quiet

    with quiet():
        torch.manual_seed(seed)
        config = peft.LoraConfig(r=rank, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM")
        model = peft.get_peft_model(start.model(), config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=size)
        model.save_pretrained(folder)
    return folder


def settings(folder: Path, **changes) -> None:
    """Change adapter_config.json."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
