"""Averaging: oracles first, then laws, then what went wrong in other projects, then every error."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
import weakref
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from mirepoix.types import InputError
from mirepoix.weights import add, average, check_averageable, distance, interpolate, subtract

DTYPES = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}  # bits of the significand
TORCH = {name: getattr(torch, name) for name in DTYPES}
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
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


def bits(x: Any) -> bytes:
    if isinstance(x, Tensor):
        x = x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return x.tobytes()


def same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return (
        list(a) == list(b)
        and all(a[k].dtype == b[k].dtype for k in a)
        and all(bits(a[k]) == bits(b[k]) for k in a)
    )


def rounded(value: Fraction, precision: int) -> Fraction:
    """The nearest number with that many bits, ties to even; the range of exponents is not limited."""
    if value == 0:
        return value
    exponent = precision
    while abs(value) * Fraction(2) ** exponent >= 2**precision:
        exponent -= 1
    while abs(value) * Fraction(2) ** exponent < 2 ** (precision - 1):
        exponent += 1
    return Fraction(round(value * Fraction(2) ** exponent)) / Fraction(2) ** exponent


def ulp(largest: float, dtype: str) -> float:
    largest = max(largest, float(torch.finfo(TORCH[dtype]).tiny))
    return 2.0 ** (np.floor(np.log2(largest)) - DTYPES[dtype] + 1)


def random_members(
    count: int, *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> list[dict[str, Tensor]]:
    random = torch.Generator().manual_seed(seed)
    return [
        {
            "conv.weight": torch.randn(3, 2, 2, generator=random).to(dtype),
            "scale": torch.randn((), generator=random).to(dtype),
            "empty": torch.zeros(0, 4, dtype=dtype),
            "norm.running_var": torch.rand(3, generator=random).to(dtype),
            "norm.num_batches_tracked": torch.tensor(7),
            "mask": torch.tensor([True, False]),
        }
        for _ in range(count)
    ]


finite16 = st.floats(width=16, min_value=-1000, max_value=1000)
finite32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def members(draw: st.DrawFn, most: int = 9) -> tuple[str, list[dict[str, Tensor]]]:
    """A dtype, and members with one tensor and one number each."""
    dtype = draw(st.sampled_from(list(DTYPES)))
    values = finite32 if dtype in ("float32", "float64") else finite16
    rows = draw(st.lists(st.lists(values, min_size=3, max_size=3), min_size=1, max_size=most))
    return dtype, [
        {"w": torch.tensor(row[:2]).to(TORCH[dtype]), "b": torch.tensor(row[2]).to(TORCH[dtype])}
        for row in rows
    ]


# Numeric oracles.


def test_by_hand() -> None:
    thetas = [{"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 6.0])}]
    assert average(thetas)["w"].tolist() == [2.0, 4.0]
    assert interpolate(thetas, [0.75, 0.25])["w"].tolist() == [1.5, 3.0]
    assert interpolate(thetas, [2.0, -1.0], extrapolate=True)["w"].tolist() == [-1.0, -2.0]
    tau = subtract(thetas[1], thetas[0])
    assert tau["w"].tolist() == [2.0, 4.0]
    assert add(thetas[0], [tau, tau], [1.0, -0.5])["w"].tolist() == [2.0, 4.0]
    assert (
        distance({"w": np.array([0.0, 3.0]), "b": np.array(4.0)}, {"w": np.zeros(2), "b": np.zeros(())}) == 5
    )
    assert distance(thetas[0], thetas[1], squared=True) == 20


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("count", [2, 3, 5, 7, 8])
def test_average_is_the_exact_mean_rounded_once(dtype: str, count: int, device: str) -> None:
    # Exponents within 2^7 of each other keep the sums exact, and then no quotient is so near the middle of
    # two numbers that the rounding to float64 (or float32) before the last one matters.
    random = torch.Generator().manual_seed(count)
    precision = DTYPES[dtype]
    significands = torch.randint(-(2**precision), 2**precision, (count, 300), generator=random).double()
    exponents = torch.randint(-4, 4, (count, 300), generator=random)
    values = torch.ldexp(significands, exponents - precision).to(TORCH[dtype])
    got = average([{"w": row.to(device)} for row in values])["w"]
    assert got.dtype == TORCH[dtype]
    for column, value in zip(values.double().T.tolist(), got.double().tolist(), strict=True):
        exact = sum(map(Fraction, column), Fraction()) / count
        assert Fraction(value) == rounded(exact, precision)


@given(members())
def test_interpolate_is_the_exact_combination_within_one_ulp(
    drawn: tuple[str, list[dict[str, Tensor]]],
) -> None:
    dtype, thetas = drawn
    raw = [Fraction(i + 1) for i in range(len(thetas))]
    coefficients = [float(c / sum(raw)) for c in raw]
    got = interpolate(thetas, coefficients)["w"].double().tolist()
    for column, value in zip(zip(*(t["w"].double().tolist() for t in thetas), strict=True), got, strict=True):
        exact = sum(
            (Fraction(c) * Fraction(x) for c, x in zip(coefficients, column, strict=True)), Fraction()
        )
        assert abs(Fraction(value) - exact) <= Fraction(ulp(max(map(abs, column)), dtype)) * (
            len(thetas) if dtype == "float64" else 1
        )


def test_for_a_linear_model_averaging_weights_is_averaging_predictions() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 4, dtype=torch.float64)
    models = [nn.Linear(4, 3, dtype=torch.float64) for _ in range(4)]
    coefficients = [0.1, 0.2, 0.3, 0.4]
    theta = interpolate([model.state_dict() for model in models], coefficients)
    predictions = sum(c * model(x) for c, model in zip(coefficients, models, strict=True))
    torch.testing.assert_close(functional_call(models[0], theta, x), predictions)


def test_the_gap_to_the_ensemble_shrinks_as_the_square_of_the_distance() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    start = {name: value.detach() for name, value in net.named_parameters()}
    directions = [{name: torch.randn_like(value) for name, value in start.items()} for _ in range(3)]
    x = torch.randn(20, 4, dtype=torch.float64)

    def gap(step: float) -> float:
        thetas = [add(start, [direction], [step]) for direction in directions]
        ensemble = torch.stack([functional_call(net, theta, x) for theta in thetas]).mean(0)
        return float((functional_call(net, average(thetas), x) - ensemble).norm())

    assert gap(1e-2) / gap(1e-3) == pytest.approx(100, rel=0.05)
    assert gap(1e-3) / gap(1e-4) == pytest.approx(100, rel=0.05)


def test_torch_swa_utils_agrees() -> None:
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double() for _ in range(5)]
    for model in models:
        model(torch.randn(6, 3, dtype=torch.float64))
    swa = torch.optim.swa_utils.AveragedModel(models[0], use_buffers=True)
    for model in models:
        swa.update_parameters(model)
    theta = average([model.state_dict() for model in models])
    expected = swa.module.state_dict()
    assert list(theta) == list(expected)
    for name, value in theta.items():
        torch.testing.assert_close(value, expected[name])


def test_distance_is_taken_in_float64_without_batch_norm_statistics_and_integers() -> None:
    a, b = (
        {**theta, "norm.running_mean": torch.full((3,), float(i))}
        for i, theta in enumerate(random_members(2))
    )
    b["norm.num_batches_tracked"] = torch.tensor(100)
    parts = [(a[name].double() - b[name].double()).flatten() for name in ("conv.weight", "scale")]
    assert distance(a, b) == pytest.approx(float(torch.cat(parts).norm()), rel=1e-14)
    assert distance(a, b, squared=True) == pytest.approx(distance(a, b) ** 2, rel=1e-14)
    assert distance(a, a) == 0
    tiny = {"w": torch.tensor([1e-30])}
    assert distance(tiny, {"w": torch.tensor([0.0])}) == pytest.approx(1e-30, rel=1e-6)


@pytest.mark.parametrize("library", ["torch", "numpy"])
def test_distance_keeps_nan(library: str) -> None:
    a, b = {"w": torch.tensor([1.0, torch.nan])}, {"w": torch.zeros(2)}
    inf = {"w": torch.tensor([torch.inf, 1.0])}
    if library == "numpy":
        a, b, inf = ({"w": theta["w"].numpy()} for theta in (a, b, inf))
    assert np.isnan(distance(a, b))
    assert np.isnan(distance(inf, inf))
    assert distance(inf, b) == np.inf


# Laws.


@given(members(most=1), st.integers(2, 12))
def test_averaging_copies_changes_nothing(drawn: tuple[str, list[dict[str, Tensor]]], count: int) -> None:
    dtype, (theta,) = drawn
    got = average([theta] * count)
    if dtype == "float64":  # the sum itself is rounded
        torch.testing.assert_close(got, theta, rtol=2**-52, atol=0)
    else:
        assert same(got, theta)
        assert same(interpolate([theta] * count, [1 / count] * count), theta)
        assert same(interpolate([theta] * 3, [0.3333334] * 3), theta)


@given(members(), st.randoms(use_true_random=False))
def test_order_matters_within_one_ulp(drawn: tuple[str, list[dict[str, Tensor]]], random: Any) -> None:
    dtype, thetas = drawn
    shuffled = list(thetas)
    random.shuffle(shuffled)
    largest = max(float(theta["w"].double().abs().max()) for theta in thetas)
    gap = (average(thetas)["w"].double() - average(shuffled)["w"].double()).abs().max()
    assert float(gap) <= ulp(largest, dtype) * (2 * len(thetas) if dtype == "float64" else 1)


@given(members())
def test_uniform_is_equal_coefficients(drawn: tuple[str, list[dict[str, Tensor]]]) -> None:
    dtype, thetas = drawn
    uniform, equal = average(thetas), interpolate(thetas, [1 / len(thetas)] * len(thetas))
    largest = max(float(theta["w"].double().abs().max()) for theta in thetas)
    gap = (uniform["w"].double() - equal["w"].double()).abs().max()
    assert float(gap) <= ulp(largest, dtype) * (2 * len(thetas) if dtype == "float64" else 1)


@given(members(), st.data())
def test_one_hot_coefficients_return_the_member_bit_for_bit(
    drawn: tuple[str, list[dict[str, Tensor]]], data: st.DataObject
) -> None:
    _, thetas = drawn
    chosen = data.draw(st.integers(0, len(thetas) - 1))
    one_hot = [float(i == chosen) for i in range(len(thetas))]
    assert same(interpolate(thetas, one_hot), thetas[chosen])


@given(members())
def test_the_average_lies_between_the_members(drawn: tuple[str, list[dict[str, Tensor]]]) -> None:
    dtype, thetas = drawn
    got = average(thetas)["w"].double()
    stacked = torch.stack([theta["w"].double() for theta in thetas])
    slack = len(thetas) * 2.0**-52 * stacked.abs().amax(0) if dtype == "float64" else 0.0
    assert bool((stacked.amin(0) - slack <= got).all())
    assert bool((got <= stacked.amax(0) + slack).all())


@given(members(), st.integers(1, 8))
def test_an_average_of_averages_is_the_average(drawn: tuple[str, list[dict[str, Tensor]]], cut: int) -> None:
    _, thetas = drawn
    thetas = [{"w": theta["w"].double()} for theta in thetas]
    cut = min(cut, len(thetas) - 1)
    if cut == 0:
        return
    parts = [average(thetas[:cut]), average(thetas[cut:])]
    share = cut / len(thetas)
    got = interpolate(parts, [share, 1 - share])["w"]
    largest = max(float(theta["w"].abs().max()) for theta in thetas)
    torch.testing.assert_close(got, average(thetas)["w"], rtol=0, atol=20 * 2**-52 * largest)


@given(members(), st.sampled_from(["average", "interpolate", "extrapolate"]))
def test_numpy_and_torch_give_identical_bits(drawn: tuple[str, list[dict[str, Tensor]]], what: str) -> None:
    dtype, thetas = drawn
    if dtype == "bfloat16":
        return
    arrays = [{name: value.numpy() for name, value in theta.items()} for theta in thetas]
    coefficients = [0.3, *[-0.1] * (len(thetas) - 1)]
    coefficients[0] = 1 - sum(coefficients[1:])

    def combine(thetas: list[Any]) -> dict[str, Any]:
        if what == "average":
            return average(thetas, check="none")
        if what == "interpolate":
            raw = [1.0 + i for i in range(len(thetas))]
            return interpolate(thetas, [c / sum(raw) for c in raw], check="none")
        return interpolate(thetas, coefficients, extrapolate=True, check="none")

    ours, theirs = combine(thetas), combine(arrays)
    for name, value in ours.items():
        assert isinstance(theirs[name], np.ndarray)
        assert value.numpy().dtype == theirs[name].dtype
        assert bits(value) == bits(theirs[name])


def test_bfloat16_of_numpy_is_averaged_as_that_of_torch() -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    thetas = random_members(5, dtype=torch.bfloat16)
    arrays = [{"w": theta["conv.weight"].float().numpy().astype(bfloat16)} for theta in thetas]
    got = average(arrays)["w"]
    assert got.dtype == bfloat16
    assert got.tobytes() == bits(average(thetas)["conv.weight"])


@pytest.mark.parametrize("coefficients", [None, [0.5, 0.125, 0.375]])
def test_list_iterator_and_lazy_members_give_identical_bits(coefficients: list[float] | None) -> None:
    thetas = random_members(3)

    def combine(thetas: Any) -> dict[str, Any]:
        return average(thetas) if coefficients is None else interpolate(thetas, coefficients)

    expected = combine(thetas)
    assert same(combine(iter(thetas)), expected)
    assert same(combine(tuple(thetas)), expected)
    assert same(combine([Lazy(theta) for theta in thetas]), expected)


@pytest.mark.parametrize("source", [list, iter])
def test_each_tensor_of_each_member_is_read_once(source: Any) -> None:
    lazy = [Lazy(theta) for theta in random_members(3)]
    average(source(lazy))
    assert all(theta.reads == dict.fromkeys(theta.theta, 1) for theta in lazy)

    lazy = [Lazy(theta) for theta in random_members(3)]
    interpolate(source(lazy), [0.5, 0.0, 0.5])
    assert [sum(theta.reads.values()) for theta in lazy] == [6, 0, 6]

    lazy = [Lazy(theta) for theta in random_members(2)]
    tau = Lazy(subtract(*lazy))
    assert all(theta.reads == dict.fromkeys(theta.theta, 1) for theta in lazy)
    unused = Lazy(tau.theta)
    add(lazy[0], source([tau, unused]), [0.5, 0.0])
    assert set(lazy[0].reads.values()) == {2}
    assert set(tau.reads.values()) == {1}
    assert not unused.reads

    lazy = [Lazy(theta) for theta in random_members(2)]
    distance(*lazy)
    check_averageable(lazy)
    assert max(max(theta.reads.values()) for theta in lazy) == 2


def test_a_member_is_let_go_before_the_iterator_makes_the_next() -> None:
    class Member(dict[str, Tensor]):
        pass

    alive: list[weakref.ref[Any]] = []

    def make(i: int) -> Member:
        assert all(ref() is None for ref in alive)
        member = Member(w=torch.full((3,), float(i)), b=torch.zeros(()))
        alive.extend([weakref.ref(member), weakref.ref(member["w"])])
        return member

    assert average(make(i) for i in range(4))["w"].tolist() == [1.5] * 3
    assert interpolate((make(i) for i in range(2)), [0.5, 0.5])["w"].tolist() == [0.5] * 3
    assert (
        add({"w": torch.zeros(3), "b": torch.ones(())}, (make(i) for i in range(3)), [1, 1, 1])["w"][0] == 3
    )


@pytest.mark.parametrize("library", ["torch", "numpy"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_inputs_are_untouched_and_not_aliased(library: str, count: int) -> None:
    thetas: list[dict[str, Any]] = random_members(count)  # type: ignore[assignment]
    if library == "numpy":
        thetas = [{name: value.numpy() for name, value in theta.items()} for theta in thetas]
    before = [{name: bits(value) for name, value in theta.items()} for theta in thetas]
    tau = subtract(thetas[0], thetas[-1])
    results = [
        average(thetas),
        average(thetas, integers="max"),
        interpolate(thetas, [1.0] + [0.0] * (count - 1)),
        interpolate(thetas, [1 / count] * count, integers="first"),
        add(thetas[0], [tau], [0.5]),
        add(thetas[0], [], []),
        tau,
    ]
    for result in results:
        for value in result.values():
            if value.dtype in (torch.bool, np.bool_):
                value[...] = ~value
            else:
                value += 1
    assert [{name: bits(value) for name, value in theta.items()} for theta in thetas] == before


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_dtype_device_shape_and_order_are_kept(dtype: str, device: str) -> None:
    thetas = [
        {name: value.to(device) for name, value in theta.items()}
        for theta in random_members(3, dtype=TORCH[dtype])
    ]
    reordered = dict(reversed(list(thetas[1].items())))
    for result in (
        average([thetas[0], reordered, thetas[2]]),
        interpolate([thetas[0], reordered], [0.5, 0.5]),
        interpolate([thetas[0], reordered], [0.0, 1.0]),
        add(thetas[0], [subtract(reordered, thetas[0])], [0.5]),
    ):
        assert list(result) == list(thetas[0])
        for name, value in result.items():
            first = thetas[0][name]
            assert (value.dtype, value.device, value.shape) == (first.dtype, first.device, first.shape)
            assert value.is_contiguous()
            assert not value.requires_grad


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_members_on_other_devices_join_the_first() -> None:
    thetas = random_members(3)
    mixed = [{k: v.cuda() for k, v in thetas[0].items()}, *thetas[1:]]
    got = average(mixed)
    assert got["scale"].device.type == "cuda"
    assert same({k: v.cpu() for k, v in got.items()}, average(thetas))


def test_any_memory_layout_gives_a_contiguous_result_without_gradient() -> None:
    base = torch.randn(4, 3, 2, 2)
    layouts = [
        nn.Parameter(base.to(memory_format=torch.channels_last)),
        base.transpose(2, 3).contiguous().transpose(2, 3),
        torch.cat([base, base])[::2].clone().copy_(base),
    ]
    got = average([{"w": x} for x in layouts])["w"]
    assert torch.equal(got, base)
    assert got.is_contiguous()
    assert not got.requires_grad
    assert type(got) is Tensor
    expanded = average([{"w": torch.ones(1).expand(5)}])["w"]
    expanded[0] = 3
    assert expanded.tolist() == [3, 1, 1, 1, 1]
    fortran = average([{"w": np.asfortranarray(base.numpy())}, {"w": base.numpy().astype(">f4")}])["w"]
    assert fortran.flags.c_contiguous
    assert fortran.dtype == np.dtype("=f4")
    assert (fortran == base.numpy()).all()


def test_numpy_scalars_and_ordered_dicts_are_members() -> None:
    got = average([OrderedDict(w=np.float32(1)), OrderedDict(w=np.float32(2))])
    assert isinstance(got["w"], np.ndarray)
    assert got["w"] == np.float32(1.5)
    assert got["w"].dtype == np.float32


def test_task_vectors_lead_back_and_cancel() -> None:
    a, b = random_members(2, dtype=torch.bfloat16)
    tau = subtract(a, b)
    assert list(tau) == ["conv.weight", "scale", "empty", "norm.running_var"]
    assert {value.dtype for value in tau.values()} == {torch.float32}
    assert same(add(b, [tau], [1.0]), a)
    assert same(add(b, [tau, tau], [0.7, -0.7]), b)
    assert same(add(b, [], []), b)
    doubles = random_members(2, dtype=torch.float64)
    assert subtract(*doubles)["scale"].dtype == torch.float64
    thetas = random_members(3, seed=1)
    start = random_members(1, seed=2)[0]
    moved = add(start, (subtract(theta, start) for theta in thetas), [1 / 3] * 3)
    torch.testing.assert_close(moved, average(thetas), rtol=0, atol=1e-6)


# What went wrong in other projects.


def test_two_and_four_at_one_half_give_three() -> None:
    assert interpolate([{"w": torch.tensor(2.0)}, {"w": torch.tensor(4.0)}], [0.5, 0.5])["w"] == 3


def test_the_mean_of_0_1_2_3_counts_no_member_twice() -> None:
    assert average({"w": torch.tensor(float(i))} for i in range(4))["w"] == 1.5


@pytest.mark.parametrize("library", ["torch", "numpy"])
@pytest.mark.parametrize("combine", [average, lambda thetas: interpolate(thetas, [0.25, 0.25, 0.5])])
def test_networks_with_batch_norm_trained_for_different_steps_are_averaged(
    combine: Any, library: str
) -> None:
    torch.manual_seed(0)
    models = [nn.BatchNorm1d(4) for _ in range(3)]
    for steps, model in zip([3, 5, 2], models, strict=True):
        for _ in range(steps):
            model(torch.randn(8, 4))
    thetas: list[Any] = [model.state_dict() for model in models]
    if library == "numpy":
        thetas = [{name: value.numpy() for name, value in theta.items()} for theta in thetas]
    got = combine(thetas)
    assert got["num_batches_tracked"] == 5
    assert got["num_batches_tracked"].dtype in (torch.int64, np.int64)
    expected = combine([{"x": theta["running_var"]} for theta in thetas])["x"]
    assert (got["running_var"] == expected).all()
    assert not np.allclose(expected, thetas[0]["running_var"])


def test_half_precision_is_not_summed_in_half_precision() -> None:
    thetas = [{"w": x} for x in torch.randn(8, 4000, generator=torch.Generator().manual_seed(0)).bfloat16()]
    exact = torch.stack([theta["w"].double() for theta in thetas]).mean(0).bfloat16()
    naive = torch.zeros(4000, dtype=torch.bfloat16)
    for theta in thetas:
        naive += theta["w"]
    assert (naive / 8 != exact).float().mean() > 0.2
    assert torch.equal(average(thetas)["w"], exact)


def test_coefficients_are_not_rounded_to_the_dtype_of_the_members() -> None:
    thetas = [{"w": torch.tensor(256.0).bfloat16()}, {"w": torch.tensor(-256.0).bfloat16()}]
    got = interpolate(thetas, [0.501, 0.499])["w"]
    assert got == torch.tensor(0.512).bfloat16()


def test_tensors_are_paired_by_name_not_by_position() -> None:
    a = {"x": torch.tensor(1.0), "y": torch.tensor(10.0)}
    b = {"y": torch.tensor(20.0), "x": torch.tensor(3.0)}
    assert average([a, b]) == {"x": 2.0, "y": 15.0}
    assert interpolate([a, b], [0.5, 0.5]) == {"x": 2.0, "y": 15.0}
    assert subtract(b, a) == {"y": 10.0, "x": 2.0}
    assert add(a, [b], [1.0]) == {"x": 4.0, "y": 30.0}
    assert distance(a, b, squared=True) == 104


@pytest.mark.parametrize("source", [list, iter])
def test_different_names_are_an_error_before_anything_is_read(source: Any) -> None:
    lazy = [
        Lazy({"x": torch.zeros(1)}),
        Lazy({"x": torch.zeros(1)}),
        Lazy({"x": torch.zeros(1), "y": torch.zeros(1)}),
    ]
    with pytest.raises(
        InputError, match="members 0 and 2 cannot be averaged: names differ, 1 only in member 2: 'y'"
    ):
        average(source(lazy))
    if source is list:
        assert not any(theta.reads for theta in lazy)


# Integers.


@pytest.mark.parametrize("library", ["torch", "numpy"])
def test_integers_that_differ_follow_the_policy(library: str) -> None:
    make: Any = torch.tensor if library == "torch" else np.array
    a = {"ids": make([1, 5]), "flag": make([True, False]), "n.num_batches_tracked": make(3)}
    b = {"ids": make([4, 2]), "flag": make([False, False]), "n.num_batches_tracked": make(2)}

    def values(theta: dict[str, Any]) -> list[Any]:
        return [theta[name].tolist() for name in ("ids", "flag", "n.num_batches_tracked")]

    assert values(average([a, b], integers="first")) == [[1, 5], [True, False], 3]
    assert values(average([b, a], integers="first")) == [[4, 2], [False, False], 2]
    assert values(average([b, a], integers="max")) == [[4, 5], [True, False], 3]
    assert values(interpolate([b, a], [0.5, 0.5], integers="max")) == [[4, 5], [True, False], 3]
    assert values(interpolate([b, a], [0.0, 1.0], integers="error")) == [[1, 5], [True, False], 3]
    assert average([a, b], integers="max")["ids"].dtype == a["ids"].dtype
    message = (
        "members 0 and 1 cannot be averaged: 'ids' differs, 1 in member 0 and 4 in member 1 at [0], one of 2"
    )
    with pytest.raises(InputError, match=re.escape(message)) as error:
        average([a, b])
    assert "integers='first'" in str(error.value)
    assert "integers='max'" in str(error.value)
    with pytest.raises(
        InputError, match=r"'k\.num_batches_tracked' differs, 3 in member 0 and 2 in member 2"
    ):
        average(
            [{"k.num_batches_tracked": make(n)} for n in (3, 3, 2)],
            integers="error",
        )
    assert same(average([a, a, a], integers="error"), a)


@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "bool"]
)
def test_every_integer_dtype_is_kept(dtype: str) -> None:
    for x in (torch.tensor([0, 1], dtype=getattr(torch, dtype)), np.array([0, 1], dtype=dtype)):
        y = x[[1, 1]] if isinstance(x, np.ndarray) else torch.tensor([1, 1], dtype=x.dtype)
        got = average([{"i": x}, {"i": y}], integers="max")["i"]
        assert got.dtype == x.dtype
        assert got.tolist() == [1, 1]
        assert average([{"i": x}, {"i": y}], integers="first")["i"].tolist() == [0, 1]


# Dtypes, warnings, numbers that are not finite.


@pytest.mark.parametrize(
    ("dtypes", "widest"),
    [
        (("bfloat16", "float32"), "float32"),
        (("float64", "float16"), "float64"),
        (("float16", "bfloat16"), "float32"),
        (("float16", "float32", "float64"), "float64"),
    ],
)
def test_mixed_float_dtypes_give_the_widest_and_say_so(dtypes: tuple[str, ...], widest: str) -> None:
    values = [0.1, 0.7, 0.4]
    thetas = [{"w": torch.tensor(x).to(TORCH[d])} for x, d in zip(values, dtypes, strict=False)]
    exact = sum(float(theta["w"]) for theta in thetas) / len(thetas)
    message = f"'w' is {dtypes[0]} in member 0 and {dtypes[1]} in member 1"
    with pytest.warns(UserWarning, match=message) as caught:
        got = average(thetas)["w"]
    assert caught[0].filename == __file__
    assert got.dtype == TORCH[widest]
    assert float(got) == pytest.approx(exact, rel=1e-15 if widest == "float64" else 1e-7)
    with pytest.warns(UserWarning, match=message):
        assert same({"w": got}, average(iter(thetas)))


def test_extrapolation_raises_negative_variances_to_zero_with_a_warning() -> None:
    a = {"bn.running_var": torch.tensor([1.0, 4.0]), "w": torch.tensor(1.0)}
    b = {"bn.running_var": torch.tensor([3.0, 4.0]), "w": torch.tensor(3.0)}
    with pytest.warns(UserWarning, match=r"raised to 0 in 'bn.running_var'. Estimate") as caught:
        got = interpolate([a, b], [2.0, -1.0], extrapolate=True)
    assert caught[0].filename == __file__
    assert got["bn.running_var"].tolist() == [0, 4]
    assert got["w"] == -1
    with pytest.warns(UserWarning, match="raised to 0"):
        assert add(a, [subtract(b, a)], [-1.0])["bn.running_var"].tolist() == [0, 4]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert interpolate([a, b], [1.5, -0.5], extrapolate=True)["bn.running_var"].tolist() == [0, 4]


@pytest.mark.parametrize("library", ["torch", "numpy"])
def test_a_result_that_is_not_finite_names_tensor_and_member(library: str) -> None:
    thetas: list[Any] = [{"v": torch.zeros(1), "w": torch.zeros(3)} for _ in range(3)]
    thetas[2]["w"][1] = torch.nan
    if library == "numpy":
        thetas = [{name: value.numpy() for name, value in theta.items()} for theta in thetas]
    with pytest.raises(
        InputError, match="'w' of the result is not finite: member 2 holds NaN or infinity there"
    ):
        average(thetas)
    with pytest.raises(
        InputError, match="'w' of the result is not finite: members from an iterator cannot be"
    ):
        average(iter(thetas))
    with pytest.raises(InputError, match=r"member 2 holds.*check='none'"):
        interpolate(thetas, [0.5, 0.0, 0.5])
    interpolate(thetas, [0.5, 0.5, 0.0])
    with pytest.raises(InputError, match="'w' of the result is not finite: b holds"):
        subtract(thetas[0], thetas[2])
    with pytest.raises(InputError, match="delta 1 holds"):
        add(thetas[0], [thetas[1], thetas[2]], [1.0, 1.0])
    with pytest.raises(InputError, match="theta holds"):
        add(thetas[2], iter([thetas[1]]), [1.0])
    assert [x != x for x in average(thetas, check="none")["w"].tolist()] == [False, True, False]
    assert np.isnan(np.asarray(subtract(thetas[0], thetas[2], check="none")["w"])[1])
    infinite = [{"mask": theta["w"] - np.inf} for theta in thetas[:2]]
    assert (average(infinite, check="none")["mask"] == -np.inf).all()


@pytest.mark.parametrize("library", ["torch", "numpy"])
def test_overflow_is_told_from_a_guilty_member(library: str) -> None:
    thetas: list[Any] = [{"w": torch.tensor([6e4]).half()}, {"w": torch.tensor([-6e4]).half()}]
    if library == "numpy":
        thetas = [{"w": theta["w"].numpy()} for theta in thetas]
    with pytest.raises(InputError, match="all that went in is finite, so the sum or the dtype"):
        interpolate(thetas, [1.5, -0.5], extrapolate=True)


# Errors.


@pytest.mark.parametrize("combine", [average, check_averageable, lambda thetas: interpolate(thetas, [1.0])])
def test_no_member_is_an_error(combine: Any) -> None:
    with pytest.raises(InputError, match="there is no member to combine"):
        combine([])


def test_one_mapping_is_not_a_list_of_members() -> None:
    for combine in (average, check_averageable):
        with pytest.raises(TypeError, match="expected members, an iterable of mappings, got one mapping"):
            combine({"w": torch.zeros(1)})  # type: ignore[operator]


STRUCTURE: list[tuple[Any, Any, type[Exception], str]] = [
    (
        {"classifier.weight": torch.zeros(7, 4)},
        {"classifier.weight": torch.zeros(65, 4)},
        InputError,
        "members 0 and 2 cannot be averaged: 'classifier.weight' has shape (7, 4) in member 0 and (65, 4) in "
        "member 2. Members need the same architecture and the same head; attach one with `with_head(theta, "
        "head)` before fine-tuning.",
    ),
    (
        {f"a{i}": torch.zeros(1) for i in range(12)},
        {f"b{i}": torch.zeros(1) for i in range(3)},
        InputError,
        "members 0 and 2 cannot be averaged: names differ, 12 only in member 0: 'a0', 'a1', 'a2', 'a3', "
        "'a4', 'a5', 'a6', 'a7', 'a8', 'a9' and 2 more; 3 only in member 2: 'b0', 'b1', 'b2'. Members need",
    ),
    (
        {"w": torch.zeros(1)},
        {"module.w": torch.zeros(1)},
        InputError,
        "They agree without the prefix 'module.': remove it from the names.",
    ),
    (
        {"n": torch.zeros(1)},
        {"n": torch.zeros(1, dtype=torch.int64)},
        InputError,
        "'n' has dtype float32 in member 0 and int64 in member 2. Convert it to the dtype",
    ),
    (
        {"n": torch.zeros(1, dtype=torch.int32)},
        {"n": torch.zeros(1, dtype=torch.int64)},
        InputError,
        "'n' has dtype int32 in member 0 and int64 in member 2.",
    ),
    (
        {"w": torch.zeros(1)},
        {"w": np.zeros(1, np.float32)},
        TypeError,
        "'w' is of torch in member 0 and numpy in member 2. Convert all members to one of the two libraries.",
    ),
    (
        {"w": torch.zeros(1)},
        {"w": [0.0]},
        TypeError,
        "'w' in member 2 must be a torch tensor or a NumPy array, got list",
    ),
    (
        {"w": torch.zeros(1)},
        {"w": torch.zeros(1, dtype=torch.complex64)},
        InputError,
        "'w' in member 2 has dtype complex64, which has no average here. Split it into",
    ),
    (
        {"w": np.zeros(1)},
        {"w": np.zeros(1, dtype=np.complex128)},
        InputError,
        "'w' in member 2 has dtype complex128, which has no average here. Split it",
    ),
    (
        {"w": torch.zeros(1)},
        {"w": torch.zeros(1).to(torch.float8_e4m3fn)},
        InputError,
        "'w' in member 2 has dtype float8_e4m3fn, which has no average here. Convert it to",
    ),
    (
        {"w": np.zeros(1)},
        {"w": np.zeros(1, dtype="U3")},
        InputError,
        "which has no average here. Convert it to one of float16, bfloat16, float32, float64.",
    ),
    (
        {"w": torch.zeros(2)},
        {"w": torch.zeros(2).to_sparse()},
        InputError,
        "'w' in member 2 is sparse; pass dense tensors",
    ),
]


@pytest.mark.parametrize(("a", "b", "kind", "message"), STRUCTURE)
@pytest.mark.parametrize(
    "combine",
    [
        average,
        lambda thetas: average(iter(thetas)),
        lambda thetas: interpolate(thetas, [0.25, 0.25, 0.5]),
        check_averageable,
    ],
    ids=["average", "average of an iterator", "interpolate", "check_averageable"],
)
def test_structures_that_differ_are_errors(
    combine: Any, a: Any, b: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        combine([a, a, b])


@pytest.mark.parametrize("operation", [subtract, distance])
def test_two_weights_that_do_not_match_are_errors(operation: Any) -> None:
    with pytest.raises(
        InputError, match="a and b do not match: names differ, 1 only in a: 'x'; 1 only in b: 'y'"
    ):
        operation({"x": torch.zeros(1)}, {"y": torch.zeros(1)})
    with pytest.raises(
        InputError, match=re.escape("a and b do not match: 'x' has shape (1,) in a and (2,) in b")
    ):
        operation({"x": torch.zeros(1)}, {"x": torch.zeros(2)})


def test_deltas_that_do_not_fit_are_errors() -> None:
    theta = {"w": torch.zeros(1), "ids": torch.tensor([1])}
    tau = {"w": torch.ones(1)}
    with pytest.raises(
        InputError, match=r"the float tensors of theta and delta 1 do not match: .*only in delta 1: 'v'"
    ):
        add(theta, [tau, {"w": torch.ones(1), "v": torch.ones(1)}], [1.0, 1.0])
    with pytest.raises(InputError, match="only in delta 0: 'ids'"):
        add(theta, [theta], [1.0])
    with pytest.raises(InputError, match=r"theta and delta 0 do not match: 'w' has shape"):
        add(theta, [{"w": torch.ones(3)}], [1.0])
    with pytest.raises(InputError, match="expected one coefficient per delta, got 2 for 1 deltas"):
        add(theta, [tau], [1.0, 1.0])
    with pytest.raises(InputError, match="expected one coefficient per delta, got 1 and still more deltas"):
        add(theta, iter([tau, tau]), [1.0])


def test_coefficients_that_are_wrong_are_errors() -> None:
    thetas = [{"w": torch.tensor(float(i))} for i in range(2)]
    with pytest.raises(
        InputError, match=r"must sum to one, got \[0.5, 0.4\], which sum to 0.9. Divide .*`add\("
    ):
        interpolate(thetas, [0.5, 0.4])
    with pytest.raises(InputError, match=r"must lie in \[0, 1\], got 1.5 in .* Pass extrapolate=True"):
        interpolate(thetas, [1.5, -0.5])
    with pytest.raises(InputError, match="coefficients must be finite"):
        interpolate(thetas, [float("nan"), 1.0])
    with pytest.raises(InputError, match="expected one coefficient per member, got 3 for 2 members"):
        interpolate(thetas, [0.5, 0.25, 0.25])
    with pytest.raises(InputError, match="got 3 for 2 members"):
        interpolate(iter(thetas), [0.5, 0.25, 0.25])
    with pytest.raises(InputError, match="expected one coefficient per member, got 1 for 2 members"):
        interpolate(thetas, [1.0])
    with pytest.raises(InputError, match="got 1 and still more members"):
        interpolate(iter(thetas), [1.0])
    interpolate(thetas, [0.5, 0.5 + 9e-7])
    with pytest.raises(InputError, match="must sum to one"):
        interpolate(thetas, [0.5, 0.5 + 2e-6])


def test_options_that_do_not_exist_are_errors() -> None:
    with pytest.raises(
        InputError, match="integers must be one of 'auto', 'first', 'max', 'error', got 'mean'"
    ):
        average([{"w": torch.zeros(1)}], integers="mean")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="check must be one of 'output', 'none', got 'input'"):
        average([{"w": torch.zeros(1)}], check="input")  # type: ignore[arg-type]


def test_check_averageable_accepts_what_average_accepts() -> None:
    check_averageable(random_members(3))
    check_averageable([{"w": torch.zeros(1).half()}, {"w": torch.zeros(1)}])


def test_numpy_needs_no_torch() -> None:
    code = (
        "import sys, numpy as np\n"
        "from mirepoix.weights import average\n"
        "theta = average([{'w': np.zeros(2), 'n': np.array(1)}, {'w': np.ones(2), 'n': np.array(1)}])\n"
        "assert theta['w'].tolist() == [0.5, 0.5]\n"
        "print('torch' in sys.modules)"
    )
    source = "import types, sys, pathlib, importlib.util as u\n" + (
        "spec = u.find_spec('mirepoix')\n"
        "package = types.ModuleType('mirepoix')\n"
        "package.__path__ = list(spec.submodule_search_locations)\n"
        "sys.modules['mirepoix'] = package\n"
    )
    done = subprocess.run([sys.executable, "-c", source + code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stderr
