"""Adapters as PEFT writes them, made of random numbers, and their changes by plain loops."""

from __future__ import annotations

import json
import math
import re

import numpy as np

from mirepoix.checkpoints import open_weights, write_weights

PREFIX = "base_model.model."
SHAPES = {"block.fc": (8, 6), "fc": (5, 8), "conv": (4, 2, 3, 3), "emb": (11, 6)}
"""Weights of a small base: two linear layers (out, in), a convolution, a table (words, dimensions)."""


def arrays(rng, shapes=SHAPES, ranks=2, dtype=np.float32):
    """Random factors for the layers, by their names in the file."""
    tensors = {}

    def normal(*size):
        return rng.normal(size=size).astype(dtype)

    for module, shape in shapes.items():
        r = ranks.get(module, 2) if isinstance(ranks, dict) else ranks
        if module.startswith("emb"):
            tensors[f"{PREFIX}{module}.lora_embedding_A"] = normal(r, shape[0])
            tensors[f"{PREFIX}{module}.lora_embedding_B"] = normal(shape[1], r)
        else:
            tensors[f"{PREFIX}{module}.lora_A.weight"] = normal(r, *shape[1:])
            tensors[f"{PREFIX}{module}.lora_B.weight"] = normal(shape[0], r, *(1 for _ in shape[2:]))
    return tensors


def config(**settings):
    """Settings as PEFT writes them, as far as they matter."""
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": "some/base",
        "revision": None,
        "r": 2,
        "lora_alpha": 3,
        "use_rslora": False,
        "use_dora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "target_parameters": None,
        "target_modules": ["fc", "conv", "emb"],
        "init_lora_weights": True,
        "bias": "none",
        "lora_bias": False,
        **settings,
    }


def save(folder, tensors, **settings):
    """Write a folder and return it."""
    folder.mkdir()
    write_weights(folder / "adapter_model.safetensors", tensors)
    (folder / "adapter_config.json").write_text(json.dumps(config(**settings)))
    return folder


def read(folder):
    """Settings and tensors of a folder, tensors in memory."""
    theta = open_weights(folder / "adapter_model.safetensors", framework="numpy")
    return json.loads((folder / "adapter_config.json").read_text()), {name: theta[name] for name in theta}


def scale(settings, module):
    """The scale of a layer, as PEFT finds it."""
    found = {}
    for key, default in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
        fits = (v for p, v in settings[key].items() if re.match(rf"(.*\.)?({p})$", module))
        found[default] = next(fits, settings[default])
    return found["lora_alpha"] / (math.sqrt(found["r"]) if settings["use_rslora"] else found["r"])


def change(folder, module):
    """The dense change of a weight (out, in), of a table (words, dimensions), in float64."""
    settings, tensors = read(folder)
    kinds = (
        ("lora_embedding_A", "lora_embedding_B")
        if module.startswith("emb")
        else ("lora_A.weight", "lora_B.weight")
    )
    a, b = (tensors[f"{PREFIX}{module}.{kind}"].astype(np.float64) for kind in kinds)
    delta = np.zeros((b.shape[0], *a.shape[1:]))
    for out in range(b.shape[0]):
        for r in range(a.shape[0]):
            delta[out] += scale(settings, module) * b[out, r].item() * a[r]
    return delta.T if module.startswith("emb") else delta


def changes(folder, shapes=SHAPES):
    return {module: change(folder, module) for module in shapes}


def combine(folders, coefficients, shapes=SHAPES):
    """The exact sum, by weights."""
    return {
        module: sum(c * change(folder, module) for folder, c in zip(folders, coefficients, strict=True))
        for module in shapes
    }


def close(got, expected, tolerance=1e-6):
    """All weights are equal but for a relative error of the largest entry."""
    assert got.keys() == expected.keys()
    for name in expected:
        assert np.abs(got[name] - expected[name]).max() <= tolerance * max(1, np.abs(expected[name]).max()), (
            name
        )
