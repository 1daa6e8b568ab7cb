"""The example runs from a start to a table."""

import importlib.util
import json

import pytest

pytest.importorskip("transformers", reason="pip install 'mirepoix[text]'")


def example(root, name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", root / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_opens_with_what_to_expect(root):
    opening = (root / "examples" / "grounding.py").read_text().split('"""')[1]
    for word in ("Paper:", "Command:  python examples/grounding.py", "Time:", "Expected:"):
        assert word in opening


def test_it_goes_from_a_start_to_a_table_and_does_nothing_twice(root, tmp_path, capsys):
    module = example(root, "grounding")
    module.report(module.SMOKE, tmp_path, claims=False)
    printed = capsys.readouterr().out
    for words in ("rewarded soup, 6 points", "MORL, 4 points", "Linear mode connectivity", "soup, 0.8 small"):
        assert words in printed
    rows = [json.loads(line) for line in (tmp_path / "rewarded_soup.jsonl").read_text().splitlines()]
    assert rows[-1]["coefficients"] == module.MOSTLY_SMALL
    module.report(module.SMOKE, tmp_path, claims=False)
    again = capsys.readouterr().out
    assert "steps" not in again
    assert again.strip() == printed[printed.index("\nstart, 1 points") :].strip()
