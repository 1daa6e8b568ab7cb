"""Functions for workers: they are found by name, so they live in a module."""

import os
import signal
import sys
import time
from pathlib import Path

from mirepoix.types import Diverged, InputError


def add(*numbers):
    return sum(numbers)


def write(place, text):
    with Path(place).open("a") as file:
        file.write(f"{text}\n")
    return text


def sleep(seconds):
    time.sleep(seconds)
    return seconds


def refuse(message):
    raise InputError(message)


def diverge(step):
    raise Diverged(f"the loss is nan at step {step}", step)


class Unsendable(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def raise_unsendable():
    raise Unsendable("one", "two")


def return_unsendable():
    return lambda: None


def leave(code):
    sys.exit(code)


def die_once(marker, how="kill"):
    """The process is lost the first time; the second time all is well."""
    try:
        Path(marker).touch(exist_ok=False)
    except FileExistsError:
        return "alive"
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(3)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def environment(*names):
    return os.getpid(), *(os.environ.get(name) for name in names)


def torch_threads():
    """The number of threads of torch, which this call then changes for itself."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    return threads


def train_bits(seed, steps=20):
    """A small deterministic training whose sums depend on their order, and the fingerprint of its weights."""
    import torch

    from mirepoix.checkpoints import fingerprint

    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(300, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        x = torch.randn(257, 300)
        loss = (model(x).squeeze(1) - x.sum(1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return fingerprint(model.state_dict())


def train(theta, task, run):
    """Gradient steps of a linear regression in float32: ``Train(theta, task; run)``."""
    import torch

    x, y = task
    w = theta["w"].clone()
    order = torch.Generator().manual_seed(run.seed)
    for _ in range(run.steps):
        i = torch.randint(len(x), (8,), generator=order)
        w -= run.learning_rate * (x[i].T @ (x[i] @ w - y[i])) / 8
    return {"w": w}
