from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mirepoix.data import split_indices


def test_domainbeds_golden_split() -> None:
    train, validation = split_indices(10, data_seed=0, domain=0)
    assert validation.tolist() == [2, 3]
    assert train.tolist() == [8, 1, 4, 5, 0, 9, 6, 7]


@given(
    count=st.integers(0, 300),
    data_seed=st.integers(0, 5),
    domain=st.integers(0, 9),
    holdout=st.floats(0.01, 0.99),
)
def test_a_split_is_a_partition_of_the_asked_size(
    count: int, data_seed: int, domain: int, holdout: float
) -> None:
    train, validation = split_indices(count, data_seed=data_seed, domain=domain, holdout=holdout)
    assert sorted([*train, *validation]) == list(range(count))
    assert len(validation) == int(count * holdout)


def test_seed_and_domain_each_change_the_split() -> None:
    first = split_indices(50, data_seed=0, domain=0)[1].tolist()
    assert split_indices(50, data_seed=1, domain=0)[1].tolist() != first
    assert split_indices(50, data_seed=0, domain=1)[1].tolist() != first


def test_numpy_seeds_give_the_split_of_plain_ones() -> None:
    plain = split_indices(50, data_seed=1, domain=2)
    numpy = split_indices(50, data_seed=np.int64(1), domain=np.int64(2))
    assert plain[0].tolist() == numpy[0].tolist()
