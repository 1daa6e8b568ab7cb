import sys
from pathlib import Path

import pytest
import torch

from mirepoix.rewards.diffusion import DiffusionTrainer, DigitDiffusion, diffusion_start
from mirepoix.rewards.diffusion import _libraries as libraries
from mirepoix.types import InputError


def test_without_the_library_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    for call in (
        libraries.diffusers,
        DiffusionTrainer(reward={"boldness": 1.0}).made_of,
        lambda: diffusion_start(DigitDiffusion(), None),
    ):
        with pytest.raises(InputError, match=r"'diffusers', which is not installed.*mirepoix\[diffusion\]"):
            call()


def test_the_task_and_the_contents_list_load_no_diffusers(in_a_process):
    code = """
import sys
from mirepoix.rewards.diffusion import DigitDiffusion, __all__
DigitDiffusion().digest
print("torch" in sys.modules, "diffusers" in sys.modules)
"""
    assert in_a_process(code).communicate()[0].split() == ["False", "False"]


def test_a_block_of_one_thread_leaves_threads_and_generator_as_they_were():
    before, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(2)
    try:
        with libraries.one_thread():
            assert torch.get_num_threads() == 1
            torch.rand(3)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_code_that_decides_is_all_but_the_experts_and_the_run():
    here = Path(libraries.__file__)
    names = {path.name for path in here.parent.glob("*.py")}
    hashed = {name for name in names if f'"{name}"' in here.read_text()}
    assert names - hashed == {"__init__.py", "_experts.py", "_libraries.py", "_run.py"}
