"""The bar of bytes: only where somebody watches, and only for what takes long."""

import sys

from mirepoix.cli import _bytes
from mirepoix.cli._bytes import bytes_bar


def test_nobody_watching_means_no_bar(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    with bytes_bar("merging") as progress:
        assert progress is None


def test_a_terminal_sees_text_and_share_after_a_while(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with bytes_bar("merging") as progress:
        progress(1, 1000)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(_bytes, "PATIENCE", -1.0)
    with bytes_bar("merging") as progress:
        progress(500_000, 1_000_000)
        progress(1_000_000, 1_000_000)
    assert "merging" in capsys.readouterr().err
