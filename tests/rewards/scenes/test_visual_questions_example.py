"""The example runs from a start to a front."""

import importlib.util
import json

import pytest

for_text = "pip install 'mirepoix[text]'"
pytest.importorskip("transformers", reason=for_text)
pytest.importorskip("sacrebleu", reason=for_text)
pytest.importorskip("nltk", reason=for_text)


def example(root, name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", root / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_opens_with_what_to_expect(root):
    opening = (root / "examples" / "visual_questions.py").read_text().split('"""')[1]
    for word in ("Paper:", "Command:  python examples/visual_questions.py", "Time:", "Expected:"):
        assert word in opening


def test_it_goes_from_a_start_to_a_front_and_does_nothing_twice(root, tmp_path, capsys):
    module = example(root, "visual_questions")
    module.report(module.SMOKE, tmp_path, claims=False)
    printed = capsys.readouterr().out
    for words in (
        "rewarded soup, 3 points",
        "MORL, 3 points",
        "Linear mode connectivity",
        "exact (not trained)",
    ):
        assert words in printed
    rows = [json.loads(line) for line in (tmp_path / "rewarded_soup.jsonl").read_text().splitlines()]
    assert [row["coefficients"]["bleu1"] for row in rows] == [0, 0.5, 1]
    module.report(module.SMOKE, tmp_path, claims=False)
    again = capsys.readouterr().out
    assert "steps" not in again
    assert again.strip() == printed[printed.index("\nstart, 1 points") :].strip()
