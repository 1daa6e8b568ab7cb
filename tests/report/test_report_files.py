from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from report_samples import sample_report

import mirepoix.checkpoints
from mirepoix.report import read_report, write_report
from mirepoix.types import InputError


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return sample_report(("a", "<b> & c"), seeds=2, members=3)


@pytest.fixture(scope="module")
def folder(report: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jobs") / "new" / "job"
    write_report(report, folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_written_is_listed_page_last_and_read_back(report: dict[str, Any], tmp_path: Path) -> None:
    written = write_report(report, tmp_path)
    assert sorted(str(path.relative_to(tmp_path)) for path in written) == sorted(contents(tmp_path))
    assert written[0] == tmp_path / "report.json"
    assert written[-1] == tmp_path / "report.html"
    assert read_report(tmp_path) == report


def test_equal_reports_give_equal_files(report: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    write_report(report, tmp_path)
    assert contents(tmp_path) == contents(folder)


def test_figures_are_valid_files_of_their_own(folder: Path) -> None:
    figures = sorted((folder / "figures").iterdir())
    names = ["gains", "members", "members_0", "members_1", "ratio_error"]
    assert [path.name for path in figures] == [f"{name}.svg" for name in names]
    for path in figures:
        text = path.read_text(encoding="utf-8")
        root = ElementTree.fromstring(text)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert text.count("://") == 1, "only the name of the format"
        assert "var(--" not in text
        assert f"figures/{path.name}" in (folder / "report.md").read_text(encoding="utf-8")


def test_settings_of_matplotlib_do_not_change_the_figures(
    report: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    import matplotlib

    with matplotlib.rc_context({"font.size": 30.0, "lines.linewidth": 9.0, "text.parse_math": True}):
        write_report(report, tmp_path)
        assert matplotlib.rcParams["font.size"] == 30.0
    assert contents(tmp_path) == contents(folder)


@pytest.mark.parametrize("fails_at", range(3))
def test_a_failed_write_leaves_every_file_whole(
    report: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    monkeypatch.setattr("mirepoix.report._files.plots", lambda report: [])
    monkeypatch.setattr("mirepoix.report._files.html", lambda report: f"page of {report['name']}")
    write_report(report, tmp_path)
    before = contents(tmp_path)
    calls = []

    def full(path: Path, data: Any) -> None:
        calls.append(path)
        if len(calls) == fails_at + 1:
            raise OSError("No space left on device")
        path.write_text(data if isinstance(data, str) else json.dumps(data))

    monkeypatch.setattr(mirepoix.checkpoints, "write_atomically", full)
    monkeypatch.setattr(mirepoix.checkpoints, "write_json", full)
    with pytest.raises(OSError, match="No space left"):
        write_report({**report, "name": "new"}, tmp_path)
    new = {path.name for path in calls[:-1]}
    assert {name for name, data in contents(tmp_path).items() if data != before[name]} == new
    assert "report.html" not in new, "the page is written last"


def test_a_report_that_cannot_be_drawn_writes_nothing(
    report: dict[str, Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(report: Any) -> str:
        raise RuntimeError("no page")

    monkeypatch.setattr("mirepoix.report._files.html", broken)
    with pytest.raises(RuntimeError, match="no page"):
        write_report(report, tmp_path / "job")
    assert not (tmp_path / "job").exists()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: expected the folder of a job"):
        read_report(tmp_path / "nowhere")


def test_an_unfinished_job_says_how_to_continue(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has not finished. Run the same command again to continue"):
        read_report(tmp_path)


@pytest.mark.parametrize("content", [b"", b'{"format": 1', b"\xff\xfe", b"[" * 100_000])
def test_broken_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(InputError, match=r"report.json: expected a report in JSON.*Run the same command"):
        read_report(tmp_path)


@pytest.mark.parametrize(
    ("content", "got"), [('{"format": 2}', "2"), ("{}", "None"), ("[1]", "None"), ('{"format": "1"}', "'1'")]
)
def test_another_format_is_refused(tmp_path: Path, content: str, got: str) -> None:
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(InputError, match=rf"expected a report of format 1, got format {got}\. Run the same"):
        read_report(tmp_path)


def test_rendering_needs_no_torch_and_importing_needs_no_matplotlib() -> None:
    program = """
import sys, types
from pathlib import Path
import importlib.util
root = Path(importlib.util.find_spec("mirepoix").origin).parent
package = types.ModuleType("mirepoix")
package.__path__ = [str(root)]
sys.modules["mirepoix"] = package  # what the package itself imports is not the report's
import mirepoix.report
assert not {"torch", "matplotlib", "jinja2"} & set(sys.modules)
sys.modules["torch"] = None
mirepoix.report.html({"format": 1, "name": "x"})
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
