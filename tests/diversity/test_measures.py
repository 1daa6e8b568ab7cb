"""All measures of predictions at once: one battery on every row of the table, and the pass over blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mirepoix.diversity import (
    mean_over_pairs,
    pooled_ratio_error,
    q_diversity,
    q_statistic,
    q_statistic_matrix,
    ratio_error,
    ratio_error_matrix,
)
from mirepoix.diversity._difficulty import difficulty
from mirepoix.diversity._disagreement import (
    agreement,
    agreement_matrix,
    disagreement,
    disagreement_matrix,
    oracle_disagreement,
    oracle_disagreement_matrix,
)
from mirepoix.diversity._double_fault import double_fault, double_fault_matrix
from mirepoix.diversity._entropy import entropy_of_correctness, vote_entropy
from mirepoix.diversity._error_correlation import error_correlation, error_correlation_matrix
from mirepoix.diversity._generalised_diversity import generalised_diversity
from mirepoix.diversity._interrater_agreement import interrater_agreement
from mirepoix.diversity._jensen_shannon import jensen_shannon, jensen_shannon_matrix
from mirepoix.diversity._kohavi_wolpert import kohavi_wolpert, label_variance
from mirepoix.diversity._kullback_leibler import kullback_leibler, kullback_leibler_matrix
from mirepoix.diversity._measures import MEASURES, Spread, measure_predictions
from mirepoix.diversity._mutual_information import mutual_information
from mirepoix.diversity._normalised_difference import normalised_difference, normalised_difference_matrix
from mirepoix.types import InputError

Alone = Callable[[Tensor, Tensor], Tensor]

VALUES: dict[str, Alone] = {
    "ratio_error": lambda z, y: ratio_error(z.argmax(-1) == y),
    "pooled_ratio_error": lambda z, y: pooled_ratio_error(z.argmax(-1) == y),
    "q_statistic": lambda z, y: q_statistic(z.argmax(-1) == y, zero_denominator="haldane"),
    "q_diversity": lambda z, y: q_diversity(z.argmax(-1) == y, zero_denominator="haldane"),
    "oracle_disagreement": lambda z, y: oracle_disagreement(z.argmax(-1) == y),
    "double_fault": lambda z, y: double_fault(z.argmax(-1) == y),
    "error_correlation": lambda z, y: error_correlation(z.argmax(-1) == y),
    "disagreement": lambda z, y: disagreement(z.argmax(-1)),
    "agreement": lambda z, y: agreement(z.argmax(-1)),
    "normalised_difference": lambda z, y: normalised_difference(z.argmax(-1), y),
    "kullback_leibler": lambda z, y: kullback_leibler(z),
    "jensen_shannon": lambda z, y: jensen_shannon(z),
    "mutual_information": lambda z, y: mutual_information(z),
    "kohavi_wolpert": lambda z, y: kohavi_wolpert(z.argmax(-1) == y),
    "label_variance": lambda z, y: label_variance(z.argmax(-1), z.shape[2]),
    "vote_entropy": lambda z, y: vote_entropy(z.argmax(-1), z.shape[2]),
    "entropy_of_correctness": lambda z, y: entropy_of_correctness(z.argmax(-1) == y),
    "interrater_agreement": lambda z, y: interrater_agreement(z.argmax(-1) == y),
    "generalised_diversity": lambda z, y: generalised_diversity(z.argmax(-1) == y),
    "difficulty": lambda z, y: difficulty(z.argmax(-1) == y),
}
MATRICES: dict[str, Alone] = {
    "ratio_error": lambda z, y: ratio_error_matrix(z.argmax(-1) == y),
    "q_statistic": lambda z, y: q_statistic_matrix(z.argmax(-1) == y, zero_denominator="haldane"),
    "q_diversity": lambda z, y: 1 - q_statistic_matrix(z.argmax(-1) == y, zero_denominator="haldane"),
    "oracle_disagreement": lambda z, y: oracle_disagreement_matrix(z.argmax(-1) == y),
    "double_fault": lambda z, y: double_fault_matrix(z.argmax(-1) == y),
    "error_correlation": lambda z, y: error_correlation_matrix(z.argmax(-1) == y),
    "disagreement": lambda z, y: disagreement_matrix(z.argmax(-1)),
    "agreement": lambda z, y: agreement_matrix(z.argmax(-1)),
    "normalised_difference": lambda z, y: normalised_difference_matrix(z.argmax(-1), y),
    "kullback_leibler": lambda z, y: kullback_leibler_matrix(z),
    "jensen_shannon": lambda z, y: jensen_shannon_matrix(z),
}
EVERY = pytest.mark.parametrize("name", MEASURES)

drawn = {
    "members": st.integers(2, 5),
    "samples": st.integers(1, 30),
    "classes": st.integers(1, 5),
    "seed": st.integers(0, 2**31),
    "skill": st.sampled_from([0.0, 2.0, 9.0]),
}


def draw(members: int, samples: int, classes: int, seed: int, skill: float) -> tuple[Tensor, Tensor]:
    """Logits that are larger for the label by ``skill``, and labels."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(members, samples, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (samples,), generator=generator)
    return logits + skill * torch.nn.functional.one_hot(labels, classes), labels


def same(got: float, expected: float, **tolerance: float) -> bool:
    return got == pytest.approx(expected, nan_ok=True, **tolerance)


def test_the_table_is_complete() -> None:
    assert list(MEASURES) == list(VALUES)
    assert [name for name, measure in MEASURES.items() if measure.pairwise] == list(MATRICES)
    assert all(name == measure.name for name, measure in MEASURES.items())
    labels = [measure.label for measure in MEASURES.values()]
    assert len(set(labels)) == len(labels)
    assert [name for name, measure in MEASURES.items() if not measure.default] == ["jensen_shannon"]


@given(**drawn)
def test_each_is_what_its_function_returns(**shape: Any) -> None:
    logits, labels = draw(**shape)
    measured = measure_predictions(logits, labels, names=MEASURES)
    assert list(measured.values) == list(VALUES)
    assert list(measured.matrices) == list(MATRICES)
    for name, alone in VALUES.items():
        expected = float(alone(logits, labels))
        if name == "ratio_error" and not math.isfinite(expected):
            expected = float(pooled_ratio_error(logits.argmax(-1) == labels))
            assert "the value is the ratio of the pooled counts" in " ".join(measured.notes)
        assert same(measured.values[name], expected, rel=0, abs=0), name
    for name, alone in MATRICES.items():
        torch.testing.assert_close(
            measured.matrices[name], alone(logits, labels), rtol=0, atol=0, equal_nan=True
        )


@settings(max_examples=15)
@given(**drawn, block_samples=st.integers(1, 40))
def test_names_and_blocks_change_no_value(block_samples: int, **shape: Any) -> None:
    logits, labels = draw(**shape)
    together = measure_predictions(logits, labels, names=MEASURES, block_samples=block_samples)
    for name, measure in MEASURES.items():
        alone = measure_predictions(logits, labels, names={name})
        assert list(alone.values) == [name]
        assert list(alone.matrices) == [name] * measure.pairwise
        # Blocks that begin elsewhere round probabilities differently, and nothing else.
        tolerance = 1e-12 if measure.of == "logits" else 0.0
        assert same(together.values[name], alone.values[name], rel=tolerance, abs=tolerance), name


@given(**drawn)
def test_values_stay_in_their_range_and_members_and_samples_have_no_order(**shape: Any) -> None:
    logits, labels = draw(**shape)
    measured = measure_predictions(logits, labels, names=MEASURES)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(shape["seed"]))
    shuffled = measure_predictions(logits.flip(0)[:, order], labels[order], names=MEASURES)
    for name, value in measured.values.items():
        assert math.isnan(value) or MEASURES[name].lowest <= value <= MEASURES[name].highest + 1e-12, name
        assert same(shuffled.values[name], value, rel=1e-6, abs=1e-6), name
    for matrix in measured.matrices.values():
        torch.testing.assert_close(matrix, matrix.T, rtol=0, atol=0, equal_nan=True)


@EVERY
def test_copies_are_least_diverse(name: str) -> None:
    logits, labels = draw(1, 60, 4, 0, 1.0)
    copies = measure_predictions(logits.expand(3, 60, 4), labels, names=[name]).values[name]
    measure = MEASURES[name]
    if name in ("double_fault", "difficulty"):  # their worst value depends on how good the members are
        error = float((logits[0].argmax(-1) != labels).double().mean())
        expected = error if name == "double_fault" else error * (1 - error)
    else:
        expected = measure.lowest if measure.higher_is_diverse else measure.highest
    assert same(copies, expected, abs=1e-6)
    # Members that are as good but fail elsewhere: within each class they answer the samples in another order.
    others = logits.expand(3, 60, 4).clone()
    for label in range(4):
        where = (labels == label).nonzero()[:, 0]
        for member in (1, 2):
            others[member, where] = logits[0, where.roll(member)]
    value = measure_predictions(others, labels, names=[name]).values[name]
    assert value > copies + 0.01 if measure.higher_is_diverse else value < copies - 0.01


@EVERY
def test_one_sample_is_enough(name: str) -> None:
    logits = torch.tensor([[[2.0, 0.0, 0.0]], [[0.0, 2.0, 0.0]], [[0.0, 0.0, 0.0]]])
    for labels in (torch.tensor([0]), torch.tensor([2])):
        measured = measure_predictions(logits, labels, names=[name])
        assert same(measured.values[name], float(VALUES[name](logits, labels))) or measured.notes


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_and_the_input_untouched(name: str, dtype: torch.dtype) -> None:
    logits, labels = draw(3, 50, 4, 0, 1.0)
    logits = logits.to(dtype)
    before = logits.clone(), labels.clone()
    got = measure_predictions(logits, labels, names=[name])
    assert torch.equal(logits, before[0])
    assert torch.equal(labels, before[1])
    wide = measure_predictions(logits.double(), labels, names=[name])
    assert same(got.values[name], wide.values[name], rel=1e-5, abs=1e-6)
    assert all(matrix.dtype == torch.float32 for matrix in got.matrices.values())


@EVERY
def test_one_member_is_an_error(name: str) -> None:
    with pytest.raises(InputError, match="diversity needs two members and one sample, got 1 and 3"):
        measure_predictions(torch.zeros(1, 3, 2), torch.zeros(3, dtype=torch.long), names=[name])


def test_without_names_all_but_the_slow_one_are_there() -> None:
    logits, labels = draw(4, 50, 5, 1, 1.0)
    measured = measure_predictions(logits, labels)
    assert list(measured.values) == [name for name in MEASURES if name != "jensen_shannon"]
    assert list(measured.matrices) == [name for name in MATRICES if name != "jensen_shannon"]
    assert measured.notes == ()


def test_measures_agree_with_each_other() -> None:
    logits, labels = draw(5, 80, 4, 2, 1.0)
    value = measure_predictions(logits, labels).values
    assert same(value["q_diversity"], 1 - value["q_statistic"], abs=1e-6)
    assert same(value["agreement"], 1 - value["disagreement"], abs=1e-6)
    assert same(value["kohavi_wolpert"], 4 / 10 * value["oracle_disagreement"], abs=1e-6)
    assert same(value["label_variance"], 4 / 10 * value["disagreement"], abs=1e-6)


def test_logits_with_a_gradient_are_measured_without_it() -> None:
    logits, labels = draw(3, 20, 4, 0, 1.0)
    measured = measure_predictions(logits.clone().requires_grad_(), labels, names=MEASURES)
    assert measured.values == measure_predictions(logits, labels, names=MEASURES).values
    assert not any(matrix.requires_grad for matrix in measured.matrices.values())


def test_the_spread_of_pairs() -> None:
    logits, labels = draw(5, 80, 4, 2, 1.0)
    measured = measure_predictions(logits, labels)
    matrix = measured.matrices["disagreement"]
    pairs = [float(matrix[i, j]) for i in range(5) for j in range(i + 1, 5)]
    mean = sum(pairs) / 10
    spread = measured.spread("disagreement")
    assert (spread.lowest, spread.highest) == (min(pairs), max(pairs))
    assert spread.std == pytest.approx(math.sqrt(sum((x - mean) ** 2 for x in pairs) / 10))
    assert measured.values["disagreement"] == float(mean_over_pairs(matrix))
    two = measure_predictions(logits[:2], labels).spread("double_fault")
    assert two == Spread(two.lowest, two.lowest, 0.0)
    with pytest.raises(
        InputError, match=r"spread: expected a measure of pairs that was computed, .*'difficulty'"
    ):
        measured.spread("difficulty")


def test_equal_logits_predict_the_first_class() -> None:
    logits = torch.tensor([[[1.0, 1.0, 0.0]], [[0.0, 1.0, 1.0]]])
    measured = measure_predictions(logits, torch.tensor([1]))
    assert measured.matrices["double_fault"].tolist() == [[1, 0], [0, 0]]


def test_notes_say_where_a_value_is_not_its_formula() -> None:
    z = torch.tensor([[[3.0, 0.0], [3.0, 0.0], [3.0, 0.0]]]).repeat(3, 1, 1)
    z[0, 0] = z[1, 1] = z[2, 1] = torch.tensor([0.0, 3.0])
    labels = torch.zeros(3, dtype=torch.long)
    measured = measure_predictions(z, labels)
    assert measured.values["ratio_error"] == 4.0  # 2 + 2 + 0 apart, 0 + 0 + 1 together
    assert measured.matrices["ratio_error"][0, 1] == math.inf
    assert measured.notes == (
        "ratio_error: 2 of 3 pairs (first members 0 and 1) without a shared error; "
        "the value is the ratio of the pooled counts.",
    )
    z[1, 1] = z[2, 1] = torch.tensor([3.0, 0.0])
    z[2, 2, 1] = -torch.inf
    notes = measure_predictions(z, labels).notes
    assert notes == (
        "ratio_error: 3 of 3 pairs (first members 0 and 1) without a shared error; "
        "the value is the ratio of the pooled counts.",
        "q_statistic: 3 of 3 pairs (first members 0 and 1) without a denominator; "
        "Q is 1 if they are right on the same samples, else half a sample was added to each of their counts.",
        "q_diversity: 3 of 3 pairs (first members 0 and 1) without a denominator; "
        "Q is 1 if they are right on the same samples, else half a sample was added to each of their counts.",
        "pooled_ratio_error is inf: no two members share an error.",
        "error_correlation is nan, 3 of 3 pairs (first members 0 and 1): a member is always right or always wrong.",
        "kullback_leibler is inf, 2 of 3 pairs (first members 0 and 2): "
        "one member gives probability 0 to a class and the other does not.",
    )
    z[0, 0] = torch.tensor([3.0, 0.0])
    notes = measure_predictions(z, labels, names=["interrater_agreement", "generalised_diversity"]).notes
    assert notes == (
        "interrater_agreement is nan: all answers are right, or all are wrong.",
        "generalised_diversity is nan: no member ever errs.",
    )


def test_errors_say_what_is_wrong() -> None:
    logits, labels = draw(2, 3, 4, 0, 1.0)
    with pytest.raises(
        InputError, match=r"names: expected names of measures, ratio_error, .*; got 'variety'"
    ):
        measure_predictions(logits, labels, names=["disagreement", "variety"])
    with pytest.raises(InputError, match="labels must lie in 0 to 3, as there are 4 logits, got 0 to 4"):
        measure_predictions(logits, torch.tensor([0, 4, 1]))
    with pytest.raises(InputError, match="got 2 and 0"):
        measure_predictions(logits[:, :0], labels[:0])
    with pytest.raises(InputError, match="block_samples: expected at least 1, got 0"):
        measure_predictions(logits, labels, block_samples=0)
    logits[1, 2] = torch.nan
    with pytest.raises(InputError, match="the largest of member 1 for sample 2 is nan"):
        measure_predictions(logits, labels, names=["disagreement"], block_samples=1)


def test_nothing_grows_with_pairs_times_samples() -> None:
    """A hundred members on ten thousand samples: one byte per pair and sample would be 100 MB."""
    import resource

    logits, labels = (
        torch.randn(100, 10_000, 2, generator=torch.Generator().manual_seed(0)),
        torch.zeros(10_000),
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    measure_predictions(logits, labels.long())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 80_000
