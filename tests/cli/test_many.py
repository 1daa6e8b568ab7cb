"""Options that take all words up to the next option."""

from mirepoix.cli._many import _repeated


def test_each_word_up_to_the_next_option_belongs_to_the_option():
    found = _repeated(["a", "--ood", "b", "c", "--json", "d", "--ood", "e"], ("--ood",))
    assert found == ["a", "--ood", "b", "--ood", "c", "--json", "d", "--ood", "e"]


def test_several_options_do_not_mix_and_others_keep_their_value():
    found = _repeated(["--id", "a", "b", "--weights", "c", "-o", "out", "d"], ("--id", "--weights"))
    assert found == ["--id", "a", "--id", "b", "--weights", "c", "-o", "out", "d"]


def test_an_option_without_a_word_stays_an_error_of_its_own():
    assert _repeated(["--ood"], ("--ood",)) == ["--ood"]
    assert _repeated(["--ood", "--json"], ("--ood",)) == ["--ood", "--json"]
    assert _repeated([], ("--ood",)) == []
