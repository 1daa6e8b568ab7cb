import logging
import os
import random
import warnings

import numpy as np
import pytest

from mirepoix.rewards.text._libraries import library, quiet
from mirepoix.types import InputError


def test_nothing_is_left_behind():
    torch = pytest.importorskip("torch")
    os.environ.pop("TOKENIZERS_PARALLELISM", None)
    before = dict(os.environ), logging.getLogger("trl").level, random.getstate()
    numbers, tensors = np.random.get_state()[1].copy(), torch.random.get_rng_state()  # noqa: NPY002
    with quiet():
        assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
        assert logging.getLogger("trl").level == logging.ERROR
        random.random()
        np.random.rand()  # noqa: NPY002
        torch.rand(1)
        os.environ["MIREPOIX_TEST"] = "1"
    assert (dict(os.environ), logging.getLogger("trl").level, random.getstate()) == before
    assert (np.random.get_state()[1] == numbers).all()  # noqa: NPY002
    assert torch.equal(torch.random.get_rng_state(), tensors)


def test_warnings_of_others_are_silent_and_ours_are_not():
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with quiet():
            warnings.warn_explicit("theirs", FutureWarning, "trl/x.py", 1, module="trl.trainer")
            warnings.warn_explicit("ours", FutureWarning, "x.py", 1, module="my_rewards")
    assert [str(warning.message) for warning in heard] == ["ours"]


def test_a_missing_library_names_the_extra():
    with pytest.raises(InputError, match=r"pip install 'mirepoix\[text\]'"):
        library("no_such_library_at_all")
