import pytest

from mirepoix.domainbed import COMBINES, FAMILIES, ROWS, Row
from mirepoix.domainbed._rows import BY_NAME, family_of
from mirepoix.objectives._named import NOT_IN_RECIPES, OBJECTIVES
from mirepoix.runs import COLLECTED
from mirepoix.types import InputError


def test_every_published_name_is_a_point_of_the_grid():
    points = {}
    for name in ROWS:
        row = Row.of(name)
        assert row.key == name
        assert row.family in FAMILIES
        assert row.combine in COMBINES
        points.setdefault((row.family, row.combine), []).append(name)
    assert [names for names in points.values() if len(names) > 1] == []
    assert len({Row.of(name).label for name in ROWS}) == len(ROWS)


def test_any_point_of_the_grid_is_a_row():
    for family in FAMILIES:
        for combine in COMBINES:
            row = Row.of(f"{family}/{combine}")
            assert (row.family, row.combine) == (family, combine)
            assert row.key == f"{family}/{combine}"
            assert row.label


@pytest.mark.parametrize(
    ("name", "family", "combine"),
    [
        ("mean_member", "fine_tuning", "mean"),
        ("diwa", "fine_tuning", "average"),
        ("diwa_dagger", "fine_tuning", "dagger"),
        ("ratatouille", "inter_training", "average"),
        ("robust_ratatouille_greedy", "robust", "greedy"),
        ("fusing_ensemble", "fusing", "ensemble"),
        ("sam_moving_average", "sam_moving_average", "best"),
        ("diverse_objectives", "objectives", "average"),
    ],
)
def test_names_mean_what_the_papers_say(name, family, combine):
    assert (Row.of(name).family, Row.of(name).combine) == (family, combine)


def test_a_row_says_its_equation():
    assert Row.of("diwa").equation == "1/M sum_i Train(theta_pt, D; c_i)"
    assert Row.of("ratatouille").equation == "1/M sum_i Train(Train(theta_pt, A_i), D; c_i)"
    assert Row.of("wise").equation == "(1 - lambda) best_i Train(theta_pt, D; c_i) + lambda (its start)"
    assert Row.of("swad").equation == "best_i mean_(t in valley) theta_t along Train(theta_pt, D; c_i)"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ratatouile", r"no strategy 'ratatouile' \(did you mean 'ratatouille'\?\); known: mean_member, "),
        ("coraal", r"no strategy 'coraal' \(did you mean 'coral'\?\)"),
        (
            "coral/avg",
            "'coral/avg': 'avg' is no way to combine members; expected one of mean, best, .*dagger$",
        ),
        ("fishr/moving_average", "^'fishr/moving_average': 'moving_average' is no way to combine members; "),
        ("fishr/best/mean", "'best/mean' is no way to combine members"),
        ("fishrr/average", r"no strategy .*, or an objective \(erm, .*\), and a combination of mean, best"),
        ("diwa-greedy", r"did you mean 'diwa_greedy'\?"),
        (
            "fusing/avarage",
            "'avarage' is no way to combine members; expected one of mean, best, wise, average",
        ),
        ("fusin/average", r"no strategy 'fusin/average'.*with a family of fine_tuning, moving_average"),
        ("diwa/average", r"no strategy 'diwa/average'"),
        ("", "no strategy ''"),
    ],
)
def test_an_unknown_name_is_an_error_with_the_known_ones(name, message):
    with pytest.raises(InputError, match=message):
        Row.of(name)


def test_families_ask_for_what_a_trainer_can_collect_and_optimise():
    for family in FAMILIES.values():
        assert family.collect in COLLECTED
        assert family.objective in {None, *OBJECTIVES}


def test_the_name_of_an_objective_is_a_family_and_its_best_row():
    assert {*BY_NAME, *NOT_IN_RECIPES, "sam"} == set(OBJECTIVES)
    row = Row.of("fishr/average")
    assert (row.family, row.combine, row.label) == ("fishr", "average", "Fishr, uniform average")
    assert row.equation == "1/M sum_i Train_fishr(theta_pt, D; c_i)"
    alone = Row.of("coral")
    assert (alone.key, alone.label, alone.family, alone.combine) == ("coral", "CORAL", "coral", "best")
    assert alone.equation == "best_i Train_coral(theta_pt, D; c_i)"
    for name in BY_NAME:
        assert family_of(name).objective == name
        assert (family_of(name).collect, family_of(name).auxiliaries) == ("best", False)
    assert family_of("sam") is FAMILIES["sam"]
    assert Row.of("sam").label == "SAM"


@pytest.mark.parametrize("key", ["mtl", "urm/best", "arm/average"])
def test_a_row_by_an_objective_that_needs_more_than_weights_says_why(key):
    with pytest.raises(InputError, match=f"'{key[:3]}' can be no row: .*In Python"):
        Row.of(key)


def test_an_unknown_family_is_told_the_known_ones():
    with pytest.raises(
        InputError, match=r"expected one of fine_tuning, .*, or an objective \(erm, .*\), got 'fine'"
    ):
        family_of("fine")
