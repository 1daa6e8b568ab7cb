"""Who is the odd one out, and the words for it."""

from types import SimpleNamespace

import pytest

from mirepoix.merging._findings import listed, size_text, tensors, usual


def members(*values):
    return [SimpleNamespace(label=f"m{i}", value=value) for i, value in enumerate(values)]


def usual_of(*values):
    sources = members(*values)
    group, who = usual(sources, lambda source: source.value)
    return [source.label for source in group], who


def test_the_larger_half_is_expected_and_called_the_others():
    assert usual_of("b", "a", "a", "a") == (["m1", "m2", "m3"], "the other 3")
    assert usual_of("a", "a") == (["m0", "m1"], "the members")


def test_without_a_majority_the_first_of_the_largest_groups_gives_its_name():
    assert usual_of("a", "b") == (["m0"], "m0")
    assert usual_of("a", "b", "b", "c", "c") == (["m1", "m2"], "m1 (and 1 more)")
    assert usual_of("a", "a", "b", "b") == (["m0", "m1"], "m0 (and 1 more)")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (102_469_872, "102 MB"), (999_600, "1 MB"),
     (1_500_000_000, "1.5 GB"), (13 * 10**15, "1.3e+04 TB")],
)  # fmt: skip
def test_sizes_have_three_digits(count, text):
    assert size_text(count) == text


def test_long_lists_are_cut_and_counted():
    assert listed(["a"]) == "a"
    assert listed(["a", "b"]) == "a and b"
    assert listed(["a", "b", "c", "d"]) == "a, b, c and d"
    assert listed(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
    assert tensors(["w"]) == "'w'"
    assert tensors(["a", "b", "c", "d"]) == "4 tensors ('a', 'b', 'c' and 1 more)"
