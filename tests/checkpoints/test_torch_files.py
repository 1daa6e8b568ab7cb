"""Torch files: containers and prefixes of others, and nothing in them is ever run."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from mirepoix.checkpoints import fingerprint, open_weights
from mirepoix.types import InputError


class Hostile:
    def __reduce__(self):
        return os.system, ("touch ran",)


THETA = {"conv.weight": torch.arange(6.0).reshape(2, 3), "bn.num_batches_tracked": torch.tensor(3)}


def same(a, b):
    return fingerprint(a) == fingerprint(b)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".bin", ".ckpt"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_both_formats_under_every_suffix(tmp_path, suffix, zipped):
    torch.save(THETA, tmp_path / f"w{suffix}", _use_new_zipfile_serialization=zipped)
    assert same(open_weights(tmp_path / f"w{suffix}", allow_torch_load=not zipped), THETA)
    arrays = open_weights(tmp_path / f"w{suffix}", framework="numpy", allow_torch_load=not zipped)
    assert all(isinstance(array, np.ndarray) for array in arrays.values())
    assert same(arrays, THETA)


@pytest.mark.parametrize(
    "container", ["state_dict", "model_state_dict", "model", "state_dict_ema", "teacher", "params"]
)
def test_containers_are_opened(tmp_path, container):
    saved = {
        "epoch": 3,
        "step": torch.tensor(9),
        "optimizer": {"state": {0: {"m": torch.ones(2)}}},
        container: THETA,
    }
    torch.save(saved, tmp_path / "w.pt")
    assert same(open_weights(tmp_path / "w.pt"), THETA)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers_are_dropped_when_all_names_share_them(tmp_path, prefix):
    torch.save({prefix + name: tensor for name, tensor in THETA.items()}, tmp_path / "w.pt")
    assert same(open_weights(tmp_path / "w.pt"), THETA)
    mixed = {"module.a": torch.ones(1), "b": torch.ones(1), "model.c": torch.ones(1)}
    torch.save(mixed, tmp_path / "w.pt")
    assert same(open_weights(tmp_path / "w.pt"), mixed)


def test_parameters_lose_their_gradient_and_others_are_dropped(tmp_path):
    saved = OrderedDict(w=torch.nn.Parameter(torch.ones(2)), name="resnet", steps=3)
    torch.save(saved, tmp_path / "w.pt")
    theta = open_weights(tmp_path / "w.pt")
    assert list(theta) == ["w"]
    assert not theta["w"].requires_grad


def test_two_containers_are_a_question(tmp_path):
    other = {"w": torch.zeros(2)}
    torch.save({"state_dict": THETA, "state_dict_ema": other}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"got them in state_dict, state_dict_ema.*container="):
        open_weights(tmp_path / "w.pt")
    assert same(open_weights(tmp_path / "w.pt", container="state_dict_ema"), other)
    torch.save({"model": THETA, **other}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"got them in model, the top level"):
        open_weights(tmp_path / "w.pt")
    assert same(open_weights(tmp_path / "w.pt", container="."), other)
    with pytest.raises(InputError, match=r"container 'ema', got none. Weights are in: model, the top level"):
        open_weights(tmp_path / "w.pt", container="ema")


@pytest.mark.parametrize("value", [{"epoch": 3}, {}, {"state_dict": {}}, {"model": 3}])
def test_no_tensors(tmp_path, value):
    torch.save(value, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"w\.pt: expected weights, got no tensors"):
        open_weights(tmp_path / "w.pt")


def test_weights_have_names(tmp_path):
    torch.save([torch.ones(2)], tmp_path / "w.pt")
    with pytest.raises(InputError, match="weights by name, got a list"):
        open_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("how", ["zip", "legacy", "bare"])
def test_a_hostile_file_is_refused_and_not_run(tmp_path, monkeypatch, how, protocol):
    monkeypatch.chdir(tmp_path)
    saved = {"w": torch.ones(2), "x": Hostile()}
    if how == "bare":
        (tmp_path / "w.pt").write_bytes(pickle.dumps({"x": Hostile()}, protocol=protocol))
    else:
        torch.save(saved, "w.pt", _use_new_zipfile_serialization=how == "zip", pickle_protocol=protocol)
    for allow_torch_load in (False, True):
        with pytest.raises(InputError, match=r"w\.pt: cannot be opened safely.*not run.*re-save"):
            open_weights(tmp_path / "w.pt", allow_torch_load=allow_torch_load)
    assert [path.name for path in tmp_path.iterdir()] == ["w.pt"]


def test_objects_beyond_tensors_are_named(tmp_path):
    torch.save({"state_dict": THETA, "model": torch.nn.Linear(2, 2)}, tmp_path / "w.pt")
    for allow_torch_load in (False, True):
        with pytest.raises(
            InputError, match=r"objects beyond tensors \(torch\.nn\.modules\.linear\.Linear\)"
        ):
            open_weights(tmp_path / "w.pt", allow_torch_load=allow_torch_load)


def test_compressed_members_are_refused(tmp_path):
    torch.save({"w": torch.zeros(1000)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for member in plain.namelist():
            packed.writestr(member, plain.read(member))
    with pytest.raises(InputError, match="its members are compressed"):
        open_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.99])
def test_a_torch_file_cut_short_is_named(tmp_path, zipped, share):
    torch.save({"w": torch.ones(1000)}, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "w.pt").read_bytes()
    (tmp_path / "w.pt").write_bytes(whole[: int(share * len(whole))])
    for allow_torch_load in (False, True):
        with pytest.raises(InputError, match=r"w\.pt: (is not a whole torch file|cannot be opened safely)"):
            open_weights(tmp_path / "w.pt", allow_torch_load=allow_torch_load)


def test_other_bytes_are_not_a_torch_file(tmp_path):
    (tmp_path / "w.pt").write_bytes(b"hello " * 20)
    with pytest.raises(InputError, match=r"w\.pt: is not a whole torch file"):
        open_weights(tmp_path / "w.pt")


def test_paths_that_are_no_file_of_weights(tmp_path):
    with pytest.raises(InputError, match=r"w\.safetensors: expected a file of weights, got nothing there"):
        open_weights(tmp_path / "w.safetensors")
    (tmp_path / "w.npz").touch()
    with pytest.raises(InputError, match=r"got suffix '\.npz'"):
        open_weights(tmp_path / "w.npz")


@pytest.mark.shared
@pytest.mark.parametrize(("name", "tensors"), [("resnet20-12fca82f.th", 97), ("resnet32-d509ac18.th", 157)])
def test_real_legacy_files(shared, name, tensors):
    theta = open_weights(shared / "weights" / name, allow_torch_load=True)
    assert len(theta) == tensors
    assert theta["conv1.weight"].shape == (16, 3, 3, 3)
    assert theta["linear.weight"].shape == (10, 64)


@pytest.mark.parametrize("key", ["net", "ema", "weights", "module"])
def test_the_only_place_with_weights_is_taken_whatever_its_name(key, tmp_path):
    path = tmp_path / "x.pt"
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": []}
    torch.save(
        {key: {"w": torch.ones(2)}, "acc": 0.9, "optimizer": optimizer, "rng": torch.get_rng_state()}, path
    )
    assert set(open_weights(path)) == {"w"}


@pytest.mark.parametrize("other", ["model_ema", "ema_state_dict", "discriminator"])
def test_a_second_set_of_weights_is_never_ignored(other, tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"model": {"w": torch.ones(2)}, other: {"w": torch.zeros(2)}}, path)
    with pytest.raises(
        InputError, match=rf"got them in model, {other}. Choose with container= \(--container model\)"
    ):
        open_weights(path)
    assert open_weights(path, container=other)["w"].tolist() == [0, 0]


def test_the_name_of_many_training_scripts_is_a_torch_file(tmp_path):
    torch.save({"state_dict": {"w": torch.ones(2)}, "epoch": 3}, tmp_path / "checkpoint.pth.tar")
    assert open_weights(tmp_path / "checkpoint.pth.tar")["w"].tolist() == [1, 1]
    (tmp_path / "archive.tar").write_bytes(b"x")
    with pytest.raises(InputError, match=r"got suffix '.tar'. Rename it"):
        open_weights(tmp_path / "archive.tar")
