"""Predictions of others: each format gives the same numbers, and what does not fit is named with its file."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from mirepoix.prediction_files import read_predictions
from mirepoix.predictions import Predictions
from mirepoix.types import InputError

CLASSES = ("ant", "bee", "cat")
LABELS = np.array([0, 2, 1, 1])


def scores(members=2, seed=0):
    return np.random.default_rng(seed).normal(size=(members, 4, 3))


def softmax(values):
    exps = np.exp(values)
    return exps / exps.sum(-1, keepdims=True)


def write_table(path, values, header=CLASSES, **columns):
    separator = "\t" if path.suffix == ".tsv" else ","
    lines = [separator.join([*header, *columns])]
    for row, numbers in enumerate(values):
        cells = [repr(float(number)) for number in numbers]
        lines.append(separator.join([*cells, *(str(column[row]) for column in columns.values())]))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def labels_file(tmp_path):
    np.save(tmp_path / "labels.npy", LABELS)
    return tmp_path / "labels.npy"


def test_what_we_saved_is_read_as_it_was(tmp_path):
    before = Predictions(
        torch.tensor(scores()).float(),
        torch.tensor(LABELS),
        torch.tensor([1, 0, 1, 2]),
        ("a", "b"),
        CLASSES,
        ("photo", "art", "none", "sketch"),
    )
    before.save(tmp_path / "p.safetensors")
    after = read_predictions(tmp_path / "p.safetensors")
    assert torch.equal(after.logits, before.logits)
    assert torch.equal(after.labels, before.labels)
    assert torch.equal(after.domains, before.domains)
    assert (after.members, after.classes) == (before.members, before.classes)
    assert after.domain_names == before.domain_names


def test_an_archive_tells_everything(tmp_path):
    path = tmp_path / "x.npz"
    values = scores()
    names = {"members": np.array(["a", "b"]), "classes": np.array(CLASSES)}
    np.savez(path, logits=values, labels=LABELS, domains=np.array(["q", "p", "q", "q"]), **names)
    found = read_predictions([path])
    assert found.logits.dtype == torch.float64
    np.testing.assert_array_equal(found.logits.numpy(), values)
    assert found.labels.tolist() == LABELS.tolist()
    assert found.domain_names == ("p", "q")
    assert found.domains.tolist() == [1, 0, 1, 1]
    assert (found.members, found.classes) == (("a", "b"), CLASSES)


def test_an_archive_without_names_is_numbered(tmp_path):
    np.savez(tmp_path / "x.npz", logits=scores(), labels=LABELS, domains=np.array([10, 9, 10, 10]))
    found = read_predictions(tmp_path / "x.npz")
    assert (found.members, found.classes, found.domain_names) == (
        ("x-0", "x-1"),
        ("0", "1", "2"),
        ("9", "10"),
    )
    assert found.domains.tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize("ending", [".npy", ".csv", ".tsv", ".parquet", ".npz"])
def test_every_format_gives_the_same_members(tmp_path, labels_file, ending):
    values = scores()
    paths = [tmp_path / f"{name}{ending}" for name in ("one", "two")]
    for path, member in zip(paths, values, strict=True):
        if ending == ".npy":
            np.save(path, member)
        elif ending == ".npz":
            np.savez(path, logits=member)
        elif ending == ".parquet":
            pyarrow = pytest.importorskip("pyarrow")
            from pyarrow import parquet

            parquet.write_table(pyarrow.table(dict(zip(CLASSES, member.T, strict=True))), path)
        else:
            write_table(path, member)
    found = read_predictions(paths, labels=labels_file)
    np.testing.assert_array_equal(found.logits.numpy(), values)
    assert found.members == ("one", "two")
    assert found.labels.tolist() == LABELS.tolist()
    assert found.classes == (("0", "1", "2") if ending in (".npy", ".npz") else CLASSES)
    assert found.domain_names == ("all",)


def test_columns_of_a_table_may_come_in_any_place_and_labels_by_name(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        "sample,domain,bee,label,ant\n"
        'x.png,art,1.5,bee,0.5\n"y,z.png",photo,2.5,ant,-1e3\nz.png,art,0,0,1\n'.replace(",0,1\n", ",ant,1\n")
    )
    found = read_predictions(path)
    assert found.classes == ("bee", "ant")
    assert found.labels.tolist() == [0, 1, 1]
    assert found.domains.tolist() == [0, 1, 0]
    assert found.logits.tolist() == [[[1.5, 0.5], [2.5, -1000.0], [0.0, 1.0]]]


@pytest.mark.parametrize("ending", [".npy", ".npz", ".txt", ".csv", ".parquet"])
@pytest.mark.parametrize("named", [False, True])
def test_labels_of_their_own_file(tmp_path, ending, named):
    write_table(tmp_path / "m.csv", scores(1)[0])
    values = [CLASSES[k] for k in LABELS] if named else LABELS.tolist()
    path = tmp_path / f"labels{ending}"
    if ending == ".npy":
        np.save(path, np.array(values))
    elif ending == ".npz":
        np.savez(path, labels=np.array(values))
    elif ending == ".txt":
        path.write_text("".join(f"{value}\n" for value in values))
    elif ending == ".csv":
        path.write_text("file,label\n" + "".join(f"x{i},{value}\n" for i, value in enumerate(values)))
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"label": values}), path)
    assert read_predictions(tmp_path / "m.csv", labels=path).labels.tolist() == LABELS.tolist()


def test_labels_and_domains_of_one_file_serve_all(tmp_path):
    write_table(
        tmp_path / "a.csv", scores(1)[0], label=["ant", "cat", "bee", "bee"], domain=["p", "p", "q", "q"]
    )
    np.save(tmp_path / "b.npy", scores(1, seed=1)[0])
    found = read_predictions([tmp_path / "b.npy", tmp_path / "a.csv"])
    assert found.members == ("b", "a")
    assert found.classes == CLASSES
    assert found.domain_names == ("p", "q")
    assert found.labels.tolist() == LABELS.tolist()


def test_probabilities_are_said_and_their_logarithm_is_taken(tmp_path, labels_file):
    values = softmax(scores())
    values[0, 0] = [1.0, 0.0, 0.0]
    np.save(tmp_path / "p.npy", values)
    found = read_predictions(tmp_path / "p.npy", labels=labels_file, probabilities=True)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(found.logits.numpy(), np.log(values), rtol=1e-15)
    assert found.logits[0, 0].tolist() == [0.0, -np.inf, -np.inf]
    np.savez(tmp_path / "p.npz", probabilities=values, labels=LABELS)
    assert torch.equal(read_predictions(tmp_path / "p.npz").logits, found.logits)


def test_what_looks_like_probabilities_is_refused_until_it_is_said(tmp_path, labels_file):
    path = tmp_path / "p.npy"
    np.save(path, softmax(scores()).astype(np.float16))
    with pytest.raises(
        InputError, match=rf"{re.escape(str(path))}: these look like probabilities.*--probabilities"
    ):
        read_predictions(path, labels=labels_file)
    found = read_predictions(path, labels=labels_file, probabilities=False)
    assert found.logits.dtype == torch.float32
    np.testing.assert_allclose(found.logits.numpy(), softmax(scores()), atol=1e-3)
    mixed = softmax(scores())
    mixed[1, 3] *= 2  # one row alone that is no distribution: logits
    np.save(path, mixed)
    np.testing.assert_array_equal(read_predictions(path, labels=labels_file).logits.numpy(), mixed)


def test_logits_are_not_taken_for_probabilities(tmp_path, labels_file):
    np.save(tmp_path / "x.npy", scores())
    with pytest.raises(
        InputError, match=r"from 0 to 1 with the sum 1; in row 0 of member 0, counted from 0 \("
    ):
        read_predictions(tmp_path / "x.npy", labels=labels_file, probabilities=True)
    np.savez(tmp_path / "p.npz", probabilities=softmax(scores()), labels=LABELS)
    with pytest.raises(InputError, match="cannot be taken as logits"):
        read_predictions(tmp_path / "p.npz", probabilities=False)


def test_names_that_collide_get_their_file_before(tmp_path, labels_file):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "logits.npy", scores(1)[0])
    paths = [tmp_path / folder / "logits.npy" for folder in ("a", "b")]
    assert read_predictions(paths, labels=labels_file).members == ("a/logits", "b/logits")
    for name in ("x", "y"):
        np.savez(
            tmp_path / f"{name}.npz",
            logits=scores(),
            labels=LABELS,
            members=np.array(["run-0", f"own-{name}"]),
        )
    paths = [tmp_path / "x.npz", tmp_path / "y.npz"]
    assert read_predictions(paths).members == ("x/run-0", "own-x", "y/run-0", "own-y")
    with pytest.raises(InputError, match="this member is given twice"):
        read_predictions([paths[0], paths[0]])


def test_the_widest_precision_is_kept(tmp_path, labels_file):
    np.save(tmp_path / "half.npy", scores(1).astype(np.float16))
    np.save(tmp_path / "double.npy", scores(1))
    both = read_predictions([tmp_path / "half.npy", tmp_path / "double.npy"], labels=labels_file)
    assert both.logits.dtype == torch.float64
    assert read_predictions(tmp_path / "half.npy", labels=labels_file).logits.dtype == torch.float32


def refused(paths, message, **options):
    with pytest.raises(InputError) as caught:
        read_predictions(paths, **options)
    text = str(caught.value)
    assert message in text, text
    first = options.get("labels") if "labels" in message else None
    named = [str(path) for path in ([paths] if not isinstance(paths, list) else paths)]
    assert first is not None or any(name in text for name in named), text


def test_files_that_do_not_fit_each_other_are_named(tmp_path, labels_file):
    np.save(tmp_path / "a.npy", scores(1)[0])
    for name, array, message in (
        ("fewer", scores(1)[0, :3], f"expected 4 samples as in {tmp_path / 'a.npy'}, got 3"),
        ("wide", np.zeros((4, 5)) - 1, "expected 3 classes as in"),
    ):
        np.save(tmp_path / f"{name}.npy", array)
        refused([tmp_path / "a.npy", tmp_path / f"{name}.npy"], message, labels=labels_file)
    np.save(tmp_path / "turned.npy", scores(1)[0].T)
    turned = f"{tmp_path / 'turned.npy'}: expected 4 samples of 3 classes as in {tmp_path / 'a.npy'}, got 3 samples of "
    for paths in (["a", "turned"], ["turned", "a"], ["turned", "a", "a"], ["a", "turned", "wide"]):
        refused(
            [tmp_path / f"{name}.npy" for name in paths],
            f"{turned}4 classes: transposed?",
            labels=labels_file,
        )
    few = [tmp_path / f"{name}.npy" for name in ("fewer", "a", "a")]
    refused(few, f"{few[0]}: expected 4 samples as in {few[1]}, got 3", labels=labels_file)
    one = write_table(
        tmp_path / "one.csv", scores(1)[0], label=[0, 2, 1, 1], sample=list("abcd"), domain=list("pppq")
    )
    two = tmp_path / "two.csv"
    for header, columns, message in (
        (("ant", "cat", "bee"), {}, f"{two}: expected the class 'bee' as in {one}, got 'cat'"),
        (CLASSES, {"label": [0, 2, 1, 0]}, "row 3, counted from 0, is 0 here and 1 there. 1 row differs"),
        (CLASSES, {"label": [0, 2, 0, 0]}, "row 2, counted from 0, is 0 here and 1 there. 2 rows differ:"),
        (CLASSES, {"sample": list("abdc")}, "row 2, counted from 0, is d here and c there"),
        (CLASSES, {"domain": list("qppq")}, "expected the domains of"),
    ):
        refused([one, write_table(two, scores(1)[0], header, **columns)], message)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], "expected 4 labels, one per sample of "),
        ([0, 1], "a.npy, got 2."),
        ([0, 1, 2, 3], "expected labels from 0 to 2, got 3 in row 3"),
        ([0, -1, 2, 1], "got -1 in row 1"),
        ([0.0, 0.5, 1.0, 2.0], "got 0.5 in row 1"),
        ([0.0, np.nan, 1.0, 2.0], "got nan in row 1"),
        (["0", "dog", "1", "2"], "as the predictions do not name their classes, got 'dog'. Name the classes"),
        (["ant", "bee", "cat", "bee"], "as 'classes' in an .npz, or in the header of a .csv"),
        ([1, 3, 2, 2], "the labels run from 1 to 3, and there are 3 classes 0 to 2: subtract 1"),
        (["1", "3", "2", "2"], "the labels run from 1 to 3, and there are 3 classes 0 to 2: subtract 1"),
        ([0, 3, 2, 2], "expected labels from 0 to 2, got 3 in row 1"),
        ([[0, 1], [1, 2]], "expected one label per sample, got an array of shape (2, 2)"),
    ],
)
def test_labels_that_fit_nothing_are_named(tmp_path, labels, message):
    np.save(tmp_path / "a.npy", scores(1)[0])
    path = tmp_path / "own.npy"
    np.save(path, np.array(labels))
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read_predictions(tmp_path / "a.npy", labels=path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_number_that_may_be_a_name_is_not_guessed(tmp_path):
    path = write_table(tmp_path / "a.csv", scores(1)[0], header=("1", "2", "3"), label=[0, 1, 2, 2])
    refused(path, "or their numbers from 0, got '0'")
    named = write_table(tmp_path / "b.csv", scores(1)[0], header=("1", "2", "3"), label=[1, 1, 2, 3])
    assert read_predictions(named).labels.tolist() == [0, 0, 1, 2]
    whole = tmp_path / "whole.npy"
    np.save(whole, LABELS.astype(float))
    np.save(tmp_path / "c.npy", scores(1)[0])
    assert read_predictions(tmp_path / "c.npy", labels=whole).labels.dtype == torch.int64


def test_scores_that_are_no_numbers_are_named_with_their_row(tmp_path, labels_file):
    path = tmp_path / "x.npy"
    for value, message in ((np.nan, "one is NaN"), (np.inf, "one is infinity")):
        wrong = scores()
        wrong[1, 2, 0] = value
        np.save(path, wrong)
        for probabilities in (None, True, False):
            refused(path, message, labels=labels_file, probabilities=probabilities)
            refused(path, "in row 2 of member 1", labels=labels_file, probabilities=probabilities)
            refused(path, "; 1 row in all.", labels=labels_file, probabilities=probabilities)
    wrong = scores(1)
    wrong[0, 3] = -np.inf
    np.save(path, wrong)
    refused(path, "in row 3, counted from 0, all are minus infinity", labels=labels_file)
    Predictions(
        torch.tensor([[[0.0, np.nan]]]), torch.tensor([0]), torch.tensor([0]), ("m",), ("a", "b"), ("d",)
    ).save(tmp_path / "own.safetensors")
    refused(tmp_path / "own.safetensors", "one is NaN")


def test_predicted_classes_alone_are_not_enough(tmp_path, labels_file):
    np.save(tmp_path / "x.npy", LABELS)
    refused(tmp_path / "x.npy", "Predicted classes alone do not tell", labels=labels_file)
    (tmp_path / "x.csv").write_text("label,domain\n0,a\n")
    refused(tmp_path / "x.csv", "expected a column of scores for each class beside label, domain")


def test_arrays_of_a_wrong_kind_are_named(tmp_path, labels_file):
    path = tmp_path / "x.npy"
    for array, message in (
        (scores()[0, :, 0], "got shape (4,)"),
        (scores()[..., :1], "got shape (2, 4, 1)"),
        (np.zeros((0, 4, 3)), "got shape (0, 4, 3)"),
        (np.array([["a", "b"]]), "expected scores that are numbers, got <U1"),
        (scores() + 1j, "expected scores that are numbers, got complex128"),
    ):
        np.save(path, array)
        refused(path, message, labels=labels_file)
    np.save(path, np.array([{}]), allow_pickle=True)
    refused(path, "without objects", labels=labels_file)
    np.savez(tmp_path / "x.npz", logits=np.array([{}], dtype=object), labels=LABELS)
    refused(tmp_path / "x.npz", "without objects")
    np.save(path, scores())
    path.rename(tmp_path / "x.npz")
    refused(tmp_path / "x.npz", "Call it .npy")
    np.savez(tmp_path / "x.npz", logits=scores(), labels=LABELS)
    (tmp_path / "x.npz").rename(path)
    refused(path, "Call it .npz", labels=labels_file)
    path.write_bytes(b"no array")
    refused(path, "expected arrays saved by NumPy", labels=labels_file)
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 broken")
    refused(tmp_path / "x.npz", "expected arrays saved by NumPy")


def test_scores_that_are_transposed_against_their_labels_are_named(tmp_path, labels_file):
    path = tmp_path / "x.npy"
    np.save(path, scores(1)[0].T)
    with pytest.raises(
        InputError, match=r"got 4\. The scores of .*x\.npy are 3 samples of 4 classes: transposed"
    ):
        read_predictions(path, labels=labels_file)
    np.savez(tmp_path / "x.npz", logits=scores(1)[0].T, labels=LABELS)
    refused(tmp_path / "x.npz", "got an array of shape (4,). The scores of")


def test_archives_say_what_they_lack(tmp_path):
    path = tmp_path / "x.npz"
    for arrays, message in (
        ({"a": scores()}, "expected an array 'logits' or 'probabilities', got a. Write it with"),
        ({"logits": scores(), "probabilities": scores()}, "got logits and probabilities"),
        ({"logits": scores()}, "holds no labels, and nor does another file"),
        (
            {"logits": scores(), "labels": LABELS[:3]},
            "'labels': expected one per sample, 4, got an array of shape (3,)",
        ),
        ({"logits": scores(), "domains": LABELS[None]}, "'domains': expected one per sample, 4"),
        (
            {"logits": scores(), "labels": LABELS, "members": np.array(["a"])},
            "expected 2 names in 'members', got 1",
        ),
        (
            {"logits": scores(), "labels": LABELS, "classes": np.array(["a", "b", "a"])},
            "expected 3 different names in 'classes', got a, b, a",
        ),
    ):
        np.savez(path, **arrays)
        refused(path, message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "got an empty file"),
        ("0.5,1.5\n1,2\n", "expected a header with a name for each column"),
        ("a;b;label\n1;2;0\n", "got semicolons"),
        ("a,a\n1,2\n", "got 'a' twice"),
        (
            "a,b,label\n1,x,0\n",
            "column 'b' is read as the scores of a class, and row 0, counted from 0, has 'x'",
        ),
        ("a,b,label\n1,,0\n", "and row 0, counted from 0, has ''"),
        ("a,b,label\n1,2\n", "expected 3 cells in each row, as in the header, got 2 in row 0"),
        (",a,b,label\n0,1.5,2,0\n", "column '' would be read as the scores of a class"),
        ("id,a,b,label\n7,1.5,2,0\n", "column 'id' would be read as"),
        (
            "n,a,b,label\n0,1,2,0\n1,3,3,0\n2,3,5,1\n",
            "column 'n' would be read as the scores of a class, and numbers",
        ),
        ("a,b,label\nx,1,2,0\n", "expected 3 cells in each row, as in the header, got 4 in row 0"),
        ("a,b,label\n", "got shape (0, 2)"),
        ("a,b,label\n1,2,c\n", "among the classes a, b, or their numbers from 0, got 'c'"),
    ],
)
def test_tables_say_what_is_wrong(tmp_path, text, message):
    path = tmp_path / "x.csv"
    path.write_text(text)
    refused(path, message)


def test_other_files_are_refused(tmp_path, labels_file):
    for name, message in (
        ("x.pt", "Files of torch can run code and are not read"),
        ("x", "got 'no ending'"),
        ("x.json", "expected predictions in .safetensors, .npz"),
    ):
        (tmp_path / name).write_text("x")
        refused(tmp_path / name, message)
    refused(tmp_path, "is a folder; name the files in it")
    refused(tmp_path / "none.npy", "does not exist")
    (tmp_path / "latin.csv").write_bytes(b"\xe9,b\n1,2\n")
    refused(tmp_path / "latin.csv", "in UTF-8")
    (tmp_path / "x.parquet").write_bytes(b"none")
    if "pyarrow" in sys.modules or __import__("importlib.util").util.find_spec("pyarrow"):
        refused(tmp_path / "x.parquet", "cannot be read as Parquet")
    with pytest.raises(InputError, match="expected at least one file"):
        read_predictions([])
    np.save(tmp_path / "m.npy", scores(1)[0])
    for name, text, message in (
        ("l.csv", "a,b\n0,1\n", "expected a column 'label', or one column, got a, b"),
        ("l.pt", "", "expected labels in .npy"),
        ("none.txt", None, "expected a file of labels, and there is none"),
        ("m.csv", "x,label\na,0\nb\n", "row 1, counted from 0, has no label"),
    ):
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=re.escape(message)):
            read_predictions(tmp_path / "m.npy", labels=tmp_path / name)


def test_without_pyarrow_a_table_says_what_is_needed(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"none")
    code = (
        "import sys; sys.modules['pyarrow'] = None\nfrom mirepoix.prediction_files import read_predictions\n"
        f"try:\n    read_predictions({str(tmp_path / 'x.parquet')!r})\n"
        "except Exception as e:\n    print(type(e).__name__, e)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.startswith("InputError")
    assert "needs pyarrow" in out


def test_labels_of_a_file_must_agree_with_those_of_the_predictions(tmp_path, labels_file):
    np.savez(tmp_path / "x.npz", logits=scores(1), labels=LABELS)
    assert read_predictions(tmp_path / "x.npz", labels=labels_file).labels.tolist() == LABELS.tolist()
    np.savez(tmp_path / "x.npz", logits=scores(1), labels=LABELS[::-1])
    refused(tmp_path / "x.npz", "expected the labels of", labels=labels_file)


def test_bytes_that_are_no_text_are_refused_with_the_file(tmp_path):
    latin = tmp_path / "latin.csv"
    latin.write_bytes(
        b"a,b,label\n" + b"1,2,a\n" * 5000 + b"1,2,\xe9\n"
    )  # behind what is read for the header
    with pytest.raises(InputError, match=r"latin\.csv: expected a text file in UTF-8"):
        read_predictions(latin)
    np.save(tmp_path / "m.npy", np.array([[3.0, 1.0], [0.0, 2.0]]))
    for name in ("labels.txt", "labels.csv"):
        (tmp_path / name).write_bytes(b"a\n\xe9\n")
        with pytest.raises(InputError, match=rf"{name}: expected labels as text in UTF-8"):
            read_predictions(tmp_path / "m.npy", labels=tmp_path / name)
    np.save(tmp_path / "labels.npy", np.array([b"a", b"\xe9"]))
    with pytest.raises(InputError, match=r"labels\.npy: expected labels as text"):
        read_predictions(tmp_path / "m.npy", labels=tmp_path / "labels.npy")
    np.save(tmp_path / "labels.npy", np.array([1j, 0]))
    with pytest.raises(InputError, match=r"names or numbers of classes, got complex128"):
        read_predictions(tmp_path / "m.npy", labels=tmp_path / "labels.npy")


def test_an_archive_whose_content_is_damaged_is_refused(tmp_path):
    path = tmp_path / "m.npz"
    np.savez_compressed(
        path, logits=np.random.default_rng(0).normal(size=(300, 3)), labels=np.zeros(300, int)
    )
    content = bytearray(path.read_bytes())
    content[200:260] = b"\xff" * 60
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"m\.npz: expected arrays saved by NumPy"):
        read_predictions(path)
