"""Files of a small network to be checked, and what a check says of them."""

from __future__ import annotations

import json

import numpy as np

from mirepoix.checkpoints import write_weights
from mirepoix.merging._check import check_files


def network(seed=0, classes=7, dtype=np.float32):
    random = np.random.default_rng(seed)
    shapes = {"conv.weight": (4, 3, 3, 3), "bn.weight": (4,), "bn.running_mean": (4,), "bn.running_var": (4,)}
    shapes |= {"fc.weight": (classes, 4), "fc.bias": (classes,)}
    theta = {name: random.uniform(1, 2, shape).astype(dtype) for name, shape in shapes.items()}
    theta["bn.num_batches_tracked"] = np.array(100 + seed)
    theta["positions"] = np.arange(5)
    return theta


def write(folder, members):
    """A file for each member; returns their paths in order."""
    paths = {name: folder / f"{name}.safetensors" for name in members}
    for name, path in paths.items():
        write_weights(path, members[name])
    return list(paths.values())


def model_folder(path, theta, **config):
    path.mkdir()
    write_weights(path / "model.safetensors", theta)
    (path / "config.json").write_text(json.dumps(config))
    return path


def faults(paths, **options):
    """Name of the file, what and advice for each fault."""
    check = check_files(paths, **options)
    assert check.ok == (not check.faults)
    return [
        (fault.member and fault.member.rpartition("/")[2], fault.what, fault.advice) for fault in check.faults
    ]
