"""Blocks of weights: each tensor read once, statistics and integers left out, and every refusal."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mirepoix.diversity._weight_blocks as module
from mirepoix.checkpoints import open_weights, write_weights
from mirepoix.diversity._weight_blocks import layer_of, weight_blocks
from mirepoix.diversity._weight_cosine import weight_cosine, weight_cosine_by_layer, weight_cosine_matrix
from mirepoix.diversity._weight_distance import (
    distance_to_average,
    weight_distance_by_layer,
    weight_distance_matrix,
    weight_mean_square_matrix,
)
from mirepoix.types import InputError

MEASURES = [
    weight_cosine_matrix,
    weight_cosine_by_layer,
    weight_distance_matrix,
    weight_distance_by_layer,
    weight_mean_square_matrix,
    distance_to_average,
]


class Lazy(Mapping[str, Any]):
    """Weights that count how often each tensor is read."""

    def __init__(self, theta: Mapping[str, Any]) -> None:
        self.theta = theta
        self.reads: Counter[str] = Counter()

    def __getitem__(self, name: str) -> Any:
        self.reads[name] += 1
        return self.theta[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.theta)

    def __len__(self) -> int:
        return len(self.theta)


def network(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        "stem.conv.weight": torch.randn(4, 3, 3, 3, generator=random).to(dtype),
        "stem.norm.weight": torch.randn(4, generator=random).to(dtype),
        "stem.norm.running_mean": 1e6 * torch.randn(4, generator=random).to(torch.float32),
        "stem.norm.running_var": 1e6 * torch.rand(4, generator=random).to(torch.float32),
        "stem.norm.num_batches_tracked": torch.tensor(seed),
        "empty": torch.zeros(0, 3, dtype=dtype),
        "fc.weight": torch.randn(5, 4, generator=random).to(dtype),
        "fc.bias": torch.randn(5, generator=random).to(dtype),
        "scale": torch.randn((), generator=random).to(dtype),
    }


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    return bool(torch.allclose(a, b, rtol=1e-12, atol=0, equal_nan=True))


def test_blocks_side_by_side_are_the_members_without_statistics_and_integers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_ENTRIES", 50)  # several blocks of one tensor
    thetas = [network(i) for i in range(3)]
    blocks = list(weight_blocks(thetas))
    assert {name for name, _ in blocks} == {
        "stem.conv.weight", "stem.norm.weight", "empty", "fc.weight", "fc.bias", "scale",
    }  # fmt: skip
    assert sum(name == "stem.conv.weight" for name, _ in blocks) == 7
    for i, theta in enumerate(thetas):
        kept = [
            x.double().flatten() for name, x in theta.items() if "running" not in name and "num" not in name
        ]
        assert torch.equal(torch.cat([block[i] for _, block in blocks]), torch.cat(kept))
    assert all(block.dtype == torch.float64 for _, block in blocks)


@pytest.mark.parametrize("measure", MEASURES)
def test_every_tensor_is_read_once_and_blocks_do_not_matter(
    measure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    thetas = [Lazy(network(i)) for i in range(3)]
    whole = measure(thetas)
    for theta in thetas:
        assert set(theta.reads.values()) == {1}
        assert not {"stem.norm.running_mean", "stem.norm.running_var"} & set(theta.reads)
    monkeypatch.setattr(module, "_ENTRIES", 7)
    parts = measure(thetas)
    assert equal(parts, whole)


@pytest.mark.parametrize("measure", MEASURES)
def test_numpy_half_precision_gradients_and_files_give_the_same(measure: Any, tmp_path: Path) -> None:
    thetas = [network(i, torch.float16) for i in range(3)]
    before = [{name: x.clone() for name, x in theta.items()} for theta in thetas]
    expected = measure(
        [{name: x.double() for name, x in theta.items() if "num" not in name} for theta in thetas]
    )
    assert equal(measure(thetas), expected)
    assert all(torch.equal(a[name], b[name]) for a, b in zip(before, thetas, strict=True) for name in a)
    assert equal(measure([{name: x.numpy() for name, x in theta.items()} for theta in thetas]), expected)
    leaves = [
        {name: x.clone().requires_grad_(x.is_floating_point()) for name, x in theta.items()}
        for theta in thetas
    ]
    assert equal(measure(leaves), expected)
    for i, theta in enumerate(thetas):
        write_weights(tmp_path / f"{i}.safetensors", theta)
    for framework in ("torch", "numpy"):
        files = [open_weights(tmp_path / f"{i}.safetensors", framework=framework) for i in range(3)]
        assert equal(measure(files), expected)


def test_strides_and_byte_order_do_not_matter() -> None:
    x = np.arange(12.0).reshape(3, 4)
    y = x**2
    expected = weight_distance_matrix([{"w": x}, {"w": y}])
    assert torch.equal(
        weight_distance_matrix([{"w": np.asfortranarray(x)}, {"w": y.astype(">f8")}]), expected
    )
    torches = [{"w": torch.from_numpy(x.T.copy()).T}, {"w": torch.from_numpy(y)}]
    assert torch.equal(weight_distance_matrix(torches), expected)


def test_names_by_rule_and_one_by_one() -> None:
    thetas = [network(i) for i in range(2)]

    def chosen(names: Any) -> list[str]:
        return [name for name, _ in weight_blocks(thetas, names=names)]

    assert chosen(lambda name: name.startswith("stem.")) == ["stem.conv.weight", "stem.norm.weight"]
    assert chosen({name for name, x in thetas[0].items() if x.ndim == 4}) == ["stem.conv.weight"]
    assert chosen(["scale", "stem.norm.running_var", "scale"]) == ["stem.norm.running_var", "scale"]
    assert layer_of("a.b.weight") == "a.b"
    assert layer_of("scale") == "scale"


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (lambda name: False, "no float tensor is left to compare"),
        (lambda name: "num" in name, "no float tensor is left to compare.*'stem.conv.weight'"),
        ([], "no float tensor is left to compare"),
        (["fc.weigth"], r"no tensor is named 'fc.weigth'; there are \['stem.conv.weight'"),
        (["stem.norm.num_batches_tracked"], "'stem.norm.num_batches_tracked' is no float tensor"),
    ],
)
def test_names_that_choose_nothing(measure: Any, names: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        measure([network(0), network(1)], names=names)


@pytest.mark.parametrize("measure", MEASURES)
def test_members_that_do_not_fit(measure: Any) -> None:
    a, b = network(0), network(1)
    with pytest.raises(InputError, match="there is no member"):
        measure([])
    with pytest.raises(InputError, match=r"members 0 and 1 .*1 only in member 1: 'more'"):
        measure([a, b | {"more": torch.zeros(1)}])
    with pytest.raises(InputError, match=r"'fc.bias' has shape \(5,\) in member 0 and \(6,\) in member 2"):
        measure([a, b, b | {"fc.bias": torch.zeros(6)}])
    with pytest.raises(TypeError, match="'scale' is of torch in member 0 and numpy in member 1"):
        measure([a, b | {"scale": np.zeros(())}])
    with pytest.raises(InputError, match="complex"):
        measure([a | {"scale": torch.zeros((), dtype=torch.complex64)}] * 2)


def test_one_member_has_no_pair() -> None:
    for measure in MEASURES[:-1]:
        with pytest.raises(InputError, match="needs two members, got 1"):
            measure([network(0)])
    assert distance_to_average([network(0)]).tolist() == [0]


def test_members_come_from_an_iterator_and_a_mapping_or_a_text_is_no_list() -> None:
    expected = weight_distance_matrix([network(0), network(1)])
    assert torch.equal(weight_distance_matrix(network(i) for i in range(2)), expected)
    with pytest.raises(TypeError, match="got one mapping; put it in a list"):
        next(inspect.unwrap(weight_blocks)(network(0)))  # the tests' own check of types would come first
    with pytest.raises(TypeError, match=r"got one text; write \['fc.bias'\]"):
        next(weight_blocks([network(0)], names="fc.bias"))


def test_a_start_with_another_head_is_named() -> None:
    thetas, start = [network(1), network(2)], network(0)
    other = start | {"fc.weight": torch.zeros(9, 4)}
    with pytest.raises(
        InputError, match=r"'fc.weight' has shape \(9, 4\) in relative_to and \(5, 4\) in the members"
    ):
        weight_cosine(thetas, relative_to=other)
    del other["fc.weight"]
    with pytest.raises(InputError, match=r"relative_to holds no 'fc.weight'; leave it out"):
        weight_cosine(thetas, relative_to=other)
    body = weight_cosine(thetas, relative_to=other, names=lambda name: name != "fc.weight")
    assert body == weight_cosine(thetas, relative_to=start, names=lambda name: name != "fc.weight")
