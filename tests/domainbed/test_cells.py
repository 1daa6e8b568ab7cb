import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirepoix.domainbed._cells import (
    Cell,
    aggregate,
    average_over_datasets,
    average_over_seeds,
    average_over_targets,
    read_cells,
    write_cells,
)
from mirepoix.types import InputError


def cell(row="erm", target="sketch", data_seed=0, whole=0.5, **others):
    fields = {"dataset": "PACS", "label": row.upper(), "selection": "training-domain"}
    fields |= {"sources": ("weights/a",)} if whole is not None else {"missing": "run 3 diverged"}
    return Cell(row=row, target=target, data_seed=data_seed, whole=whole, **{**fields, **others})


def table(values, **others):
    """Cells from ``values[row][target]``, a list over data seeds."""
    return [
        cell(row, target, seed, value, **others)
        for row, targets in values.items()
        for target, accuracies in targets.items()
        for seed, value in enumerate(accuracies)
    ]


# One cell


def test_a_cell_comes_back_from_json(tmp_path):
    cells = [
        cell(
            "diwa",
            whole=np.float32(0.25),
            part=0.5,
            id_accuracy=1,
            members=20,
            inference_cost=20,
            sources=("weights/a", "weights/b"),
            choice={"kept": (0, 2), "coefficients": {"a": (0.5, 0.5)}},
        ),
        cell("dagger", data_seed=None, selection="oracle"),
        cell(whole=None),
    ]
    write_cells(tmp_path / "cells.json", cells)
    assert read_cells(tmp_path / "cells.json") == cells
    assert [Cell.from_dict(each.to_dict()) for each in cells] == cells
    assert {type(each.whole) for each in cells[:2]} == {float}
    assert cells[0].choice["kept"] == [0, 2]
    assert len(set(cells)) == 3


@pytest.mark.parametrize("name", ["whole", "part", "id_accuracy"])
@pytest.mark.parametrize("value", [71.0, -0.1, math.nan, math.inf])
def test_an_accuracy_is_a_fraction(name, value):
    message = rf"cell PACS, erm, training-domain, sketch, data seed 0: expected {name} as a fraction .*Divide"
    with pytest.raises(InputError, match=message):
        cell(**{name: value})


def test_a_cell_has_a_number_with_its_records_or_a_reason():
    with pytest.raises(InputError, match="reason why there is none, got neither"):
        cell(whole=None, missing=None)
    with pytest.raises(InputError, match="reason why there is none, got both"):
        cell(missing="forgotten")
    with pytest.raises(InputError, match="the records the number was computed from, got none"):
        cell(sources=())
    with pytest.raises(
        InputError, match="sketch, all data seeds: expected a selection among training-domain"
    ):
        cell(data_seed=None, selection="best")


def test_files_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "cells.json"
    for content, found in (
        ({"format": "mirepoix-cells-0", "cells": []}, "'mirepoix-cells-0'"),
        ({"cells": []}, "no format"),
        ([], "no format"),
        ({"format": "mirepoix-cells-1"}, "'mirepoix-cells-1'"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(InputError, match=f"cells.json: expected cells in the format .* got {found}"):
            read_cells(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row": None}, "expected row of a cell as str, got None"),
        ({"members": "20"}, "expected members of a cell as int, got '20'"),
        ({"data_seed": True}, "expected data_seed of a cell as int or NoneType, got True"),
        ({"sources": [1]}, r"expected sources of a cell as list or tuple, got \[1\]"),
        ({"whole": 2.0}, "expected whole as a fraction"),
        ({"more": 1}, "expected a cell with the fields choice, data_seed"),
    ],
)
def test_a_wrong_cell_in_a_file_is_named(tmp_path, change, message):
    path = tmp_path / "cells.json"
    content = {"format": "mirepoix-cells-1", "cells": [cell().to_dict(), {**cell().to_dict(), **change}]}
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"cells.json: cell 1: .*{message}"):
        read_cells(path)
    content["cells"] = ["text"]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"cell 0: expected a cell with the fields .*, got str"):
        read_cells(path)


# Means and errors


def test_three_seeds_have_the_error_of_the_benchmark():
    (entry,) = aggregate(table({"erm": {"sketch": [0.70, 0.71, 0.75]}}))
    assert entry.mean == pytest.approx(0.72)
    assert entry.error == pytest.approx(np.std([0.70, 0.71, 0.75]) / np.sqrt(3))
    assert f"{100 * entry.mean:.1f} ± {100 * entry.error:.1f}" == "72.0 ± 1.2"
    assert (entry.count, entry.missing) == (3, ())
    assert (entry.dataset, entry.row, entry.label, entry.target) == ("PACS", "erm", "ERM", "sketch")


def test_one_number_has_no_error():
    (entry,) = aggregate([cell(whole=0.6)])
    assert (entry.mean, entry.error, entry.count) == (0.6, None, 1)
    cells = [*table({"erm": {"sketch": [0.5, 0.7]}}), cell("dagger", data_seed=None, whole=0.8)]
    erm, dagger = aggregate(cells)
    assert (erm.count, erm.error) == (2, pytest.approx(0.1 / math.sqrt(2)))
    assert (dagger.mean, dagger.error, dagger.count, dagger.missing) == (0.8, None, 1, ())


def test_the_measure_is_one_of_two():
    cells = [cell(whole=0.6, part=0.4), cell(data_seed=1, whole=0.6, part=0.5)]
    assert aggregate(cells)[0].mean == pytest.approx(0.6)
    assert aggregate(cells, "part")[0].mean == pytest.approx(0.45)
    assert average_over_seeds(cells, "part")[0].mean == pytest.approx(0.45)
    with pytest.raises(InputError, match="measure: expected one of whole, part, got 'out'"):
        aggregate(cells, "out")


def test_a_missing_cell_takes_the_mean_with_it_and_says_why():
    (entry,) = aggregate(table({"erm": {"sketch": [0.70, None, 0.75]}}))
    assert (entry.mean, entry.error, entry.count) == (None, None, 2)
    assert entry.missing == ("data seed 1: run 3 diverged",)
    (entry,) = aggregate([cell(whole=0.6)], "part")
    assert entry.missing == ("data seed 0: no accuracy on the 80 % part of the target",)
    (entry,) = aggregate([cell("dagger", data_seed=None, whole=None)])
    assert entry.missing == ("run 3 diverged",)


def test_what_other_rows_have_is_expected_of_a_row():
    cells = table({"erm": {"art": [0.5, 0.6], "sketch": [0.5, 0.6]}, "diwa": {"art": [0.7]}})
    found = {(entry.row, entry.target): entry.missing for entry in aggregate(cells)}
    assert found == {
        ("erm", "art"): (),
        ("erm", "sketch"): (),
        ("diwa", "art"): ("data seed 1: no cell",),
        ("diwa", "sketch"): ("data seed 0: no cell", "data seed 1: no cell"),
    }


def test_rows_of_one_selection_are_not_expected_of_another():
    cells = [cell("erm"), cell("diwa", selection="oracle"), cell("erm", dataset="VLCS", target="caltech")]
    entries = aggregate(cells)
    assert [(each.dataset, each.selection, each.row) for each in entries] == [
        ("PACS", "training-domain", "erm"),
        ("PACS", "oracle", "diwa"),
        ("VLCS", "training-domain", "erm"),
    ]
    assert not any(each.missing for each in entries)


def test_cells_that_contradict_each_other_are_refused():
    with pytest.raises(InputError, match="sketch, data seed 0: expected one cell there, got two"):
        aggregate([cell(), cell(whole=0.6)])
    with pytest.raises(InputError, match="row 'erm': expected one label, got 'ERM' and 'Other'"):
        aggregate([cell(), cell(data_seed=1, label="Other")])
    with pytest.raises(InputError, match=r"row 'erm' of PACS: .* got both"):
        aggregate([cell(), cell(data_seed=None)])


# Averages


BY_HAND = {"erm": {"art": [0.8, 0.6], "sketch": [0.4, 0.4], "photo": [0.9, 0.8]}}


def test_the_average_over_targets_is_the_mean_of_the_domain_means():
    (average,) = average_over_targets(aggregate(table(BY_HAND)))
    assert average.mean == pytest.approx((0.7 + 0.4 + 0.85) / 3)
    assert (average.error, average.target, average.count) == (None, None, 3)


def test_the_average_over_seeds_has_the_error_of_the_averages():
    (average,) = average_over_seeds(table(BY_HAND))
    per_seed = [0.7, 0.6]
    assert average.mean == pytest.approx(0.65)
    assert average.error == pytest.approx(np.std(per_seed) / np.sqrt(2))
    assert (average.target, average.count) == (None, 2)


def test_targets_that_move_against_each_other_leave_the_average_where_it_is():
    cells = table({"erm": {"art": [0.4, 0.6], "sketch": [0.6, 0.4]}})
    assert all(entry.error > 0.05 for entry in aggregate(cells))
    assert average_over_seeds(cells)[0].error == pytest.approx(0)


def test_a_row_of_all_seeds_has_an_average_without_error():
    cells = [cell("dagger", target, None, value) for target, value in (("art", 0.5), ("sketch", 0.6))]
    for average in (*average_over_seeds(cells), *average_over_targets(aggregate(cells))):
        assert (average.mean, average.error) == (pytest.approx(0.55), None)


def test_a_missing_cell_takes_both_averages_with_it():
    cells = table({"erm": {"art": [0.8, 0.6], "sketch": [0.4, None]}})
    reason = ("sketch: data seed 1: run 3 diverged",)
    (average,) = average_over_targets(aggregate(cells))
    assert (average.mean, average.count, average.missing) == (None, 1, reason)
    (average,) = average_over_seeds(cells)
    assert (average.mean, average.error, average.count, average.missing) == (None, None, 1, reason)


def test_the_average_over_datasets_needs_all_of_them():
    cells = [
        *table({"erm": {"sketch": [0.4, 0.6]}, "diwa": {"sketch": [0.6, 0.8]}}),
        *table({"erm": {"caltech": [0.9, 0.9]}}, dataset="VLCS"),
    ]
    erm, diwa = average_over_datasets(average_over_seeds(cells))
    assert (erm.mean, erm.error, erm.dataset, erm.count) == (pytest.approx(0.7), None, None, 2)
    assert (diwa.mean, diwa.missing) == (None, ("VLCS: no cell",))
    cells.append(cell("diwa", "caltech", 0, None, dataset="VLCS"))
    diwa = average_over_datasets(average_over_seeds(cells))[1]
    assert diwa.missing == (
        "VLCS, caltech: data seed 0: run 3 diverged",
        "VLCS, caltech: data seed 1: no cell",
    )


accuracies = st.one_of(st.none(), st.floats(0, 1))
grids = st.dictionaries(
    st.sampled_from(["erm", "diwa", "ratatouille"]),
    st.dictionaries(
        st.sampled_from(["art", "photo", "sketch"]), st.lists(accuracies, min_size=1, max_size=3), min_size=1
    ),
    min_size=1,
)


@given(grids, st.randoms())
def test_the_order_of_cells_does_not_move_a_number(values, random):
    cells = table(values)
    shuffled = random.sample(cells, len(cells))
    for summary in (aggregate, average_over_seeds):
        before = {(each.row, each.target): replace(each, missing=()) for each in summary(cells)}
        after = {(each.row, each.target): replace(each, missing=()) for each in summary(shuffled)}
        assert before == after


@given(grids)
def test_means_and_errors_are_numpys(values):
    cells = table(values)
    targets = {each.target for each in cells}
    count = len({each.data_seed for each in cells})
    for entry in aggregate(cells):
        own = values[entry.row].get(entry.target, [])
        if len(own) < count or None in own:
            assert entry.mean is None
            assert entry.missing
            continue
        assert entry.mean == pytest.approx(np.mean(own))
        assert entry.error == (pytest.approx(np.std(own) / np.sqrt(count), abs=1e-9) if count > 1 else None)
    published = average_over_targets(aggregate(cells))
    for plain, ours in zip(published, average_over_seeds(cells), strict=True):
        own = values[plain.row]
        if set(own) < targets or any(len(each) < count or None in each for each in own.values()):
            assert plain.mean is ours.mean is None
            continue
        per_seed = np.mean([own[target] for target in own], axis=0)
        assert plain.mean == pytest.approx(ours.mean)
        assert ours.mean == pytest.approx(per_seed.mean())
        if count > 1:
            assert ours.error == pytest.approx(per_seed.std() / np.sqrt(count), abs=1e-9)
