"""Folders and shards as other libraries write them, built by hand in their layouts."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import safetensors.torch
import torch

from mirepoix.checkpoints import fingerprint, open_weights, write_weights
from mirepoix.types import InputError, UnsafeCheckpoint

THETA = {"embed.weight": torch.arange(6.0).reshape(3, 2), "norm.weight": torch.ones(2).to(torch.bfloat16)}
MODELS = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
]


def save(folder, name, theta=THETA):
    """A model under one of the names of `MODELS`, or any other name of a file."""
    if name.endswith(".index.json"):
        stem, suffix = name.removesuffix(".index.json").rsplit(".", 1)
        names = {}
        for i, (key, tensor) in enumerate(theta.items()):
            file = f"{stem}-{i + 1:05}-of-{len(theta):05}.{suffix}"
            save(folder, file, {key: tensor})
            names[key] = file
        index = {"metadata": {"total_size": sum(t.nbytes for t in theta.values())}, "weight_map": names}
        (folder / name).write_text(json.dumps(index, indent=2))
    elif name.endswith(".safetensors"):
        safetensors.torch.save_file(theta, folder / name, {"format": "pt"})
    else:
        torch.save(theta, folder / name)


def other(value):
    return {name: tensor + value for name, tensor in THETA.items()}


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_of_a_model(tmp_path, name):
    save(tmp_path, name)
    (tmp_path / "config.json").write_text(
        '{"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": true}'
    )
    for other_file in ("tokenizer.json", "generation_config.json", "training_args.bin", "optimizer.pt"):
        (tmp_path / other_file).write_bytes(b"{}")
    opened = open_weights(tmp_path)
    assert list(opened) == list(THETA)
    assert fingerprint(opened) == fingerprint(THETA)
    assert opened.path == tmp_path
    assert opened.config == {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
    assert len(opened.files) == (2 if "index" in name else 1)
    assert all(file.parent == tmp_path for file in opened.files)
    assert opened.nbytes == 28
    by_name = open_weights(tmp_path / name)
    assert fingerprint(by_name) == fingerprint(THETA)
    assert by_name.config is None


def test_safetensors_come_before_pickles_and_one_file_before_shards(tmp_path):
    for number, name in reversed(list(enumerate(MODELS))):
        save(tmp_path, name, other(number))
        assert fingerprint(open_weights(tmp_path)) == fingerprint(other(number))


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
def test_a_folder_of_an_adapter(tmp_path, name):
    prefix = "base_model.model.layers.0.self_attn.q_proj"
    theta = {f"{prefix}.lora_A.weight": torch.ones(2, 4), f"{prefix}.lora_B.weight": torch.zeros(4, 2)}
    save(tmp_path, name, theta)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 4}')
    (tmp_path / "config.json").write_text("{}")
    opened = open_weights(tmp_path)
    assert fingerprint(opened) == fingerprint(theta)
    assert opened.config == {"peft_type": "LORA", "r": 2, "lora_alpha": 4}


def test_a_folder_of_timm(tmp_path):
    save(tmp_path, "model.safetensors")
    save(tmp_path, "pytorch_model.bin")
    (tmp_path / "config.json").write_text('{"architecture": "resnet18", "num_classes": 3}')
    assert open_weights(tmp_path).config == {"architecture": "resnet18", "num_classes": 3}


@pytest.mark.parametrize(
    "name", ["soup.safetensors", "w.pth", "diffusion_pytorch_model.safetensors.index.json"]
)
def test_a_folder_with_one_file_of_another_name(tmp_path, name):
    save(tmp_path, name, {"w": torch.ones(2)})
    if "index" in name:  # its only shard is a candidate too
        with pytest.raises(InputError, match="several files of weights"):
            open_weights(tmp_path)
        assert open_weights(tmp_path / name)["w"].sum() == 2
    else:
        assert open_weights(tmp_path)["w"].sum() == 2
        assert open_weights(tmp_path).config is None


def test_a_folder_is_a_question_when_it_holds_several_models_or_none(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"expected a folder with one model .* got no file of weights"):
        open_weights(tmp_path)
    save(tmp_path, "a.safetensors")
    save(tmp_path, "b.pt")
    with pytest.raises(InputError, match=r"several files of weights \(a\.safetensors, b\.pt\)\. Name one"):
        open_weights(tmp_path)
    save(tmp_path, "model.safetensors")
    save(tmp_path, "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"\(model\.safetensors, adapter_model\.safetensors\)\. Name one"):
        open_weights(tmp_path)


def test_a_suffix_says_what_a_file_is(tmp_path):
    (tmp_path / "w.npz").touch()
    with pytest.raises(InputError, match=r"got suffix '\.npz'"):
        open_weights(tmp_path / "w.npz")


def test_metadata_and_aliases_of_shards_are_joined(tmp_path):
    for i in range(2):
        write_weights(
            tmp_path / f"model-{i}.safetensors",
            {f"w{i}": np.ones(2)},
            metadata={f"m{i}": "x", "mirepoix.aliases": json.dumps({f"v{i}": f"w{i}"})},
        )
    names = {f"{letter}{i}": f"model-{i}.safetensors" for letter in "vw" for i in range(2)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    opened = open_weights(tmp_path, framework="numpy")
    assert list(opened) == ["v0", "v1", "w0", "w1"]
    assert opened.aliases == {"v0": "w0", "v1": "w1"}
    assert opened.nbytes == 32
    assert opened.metadata["m0"] == opened.metadata["m1"] == "x"


def test_names_of_shards_of_torch_are_those_of_the_index(tmp_path):
    save(tmp_path, "pytorch_model.bin.index.json", {f"module.{name}": t for name, t in THETA.items()})
    assert list(open_weights(tmp_path)) == [f"module.{name}" for name in THETA]


def test_the_cache_of_the_hub_links_to_its_blobs(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    save(blobs, "model.safetensors.index.json")
    for number, file in enumerate(sorted(blobs.iterdir())):
        file.rename(blobs / f"hash{number}")
        os.symlink(f"../../blobs/hash{number}", snapshot / file.name)
    assert fingerprint(open_weights(snapshot)) == fingerprint(THETA)
    moved = tmp_path / "elsewhere"
    snapshot.parent.rename(moved)
    with pytest.raises(UnsafeCheckpoint, match=r"link out of the folder.*\[index-link\]"):
        open_weights(moved / "abc")


def test_a_missing_shard_is_named(tmp_path):
    save(tmp_path, "model.safetensors.index.json")
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match=r"model-00002-of-00002\.safetensors: expected a shard that model"):
        open_weights(tmp_path)


def test_a_broken_shard_is_named(tmp_path):
    save(tmp_path, "model.safetensors.index.json")
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"abc")
    with pytest.raises(
        InputError, match=r"model-00002-of-00002\.safetensors: is not a whole safetensors file"
    ):
        open_weights(tmp_path)
