"""One-line errors, aligned columns and bars."""

import sys

import pytest

from vqkern import terminal


def test_errors_are_one_line():
    assert terminal.one_line(ValueError("a\n  b\tc")) == "a b c"
    assert terminal.one_line(ValueError("a\n  b\tc"), 3) == "a b"
    assert terminal.one_line(MemoryError()) == "MemoryError"


def test_columns_are_aligned():
    rows = [["name", "one", ""], ["a", "1.25", "no"], ["longer", "3", ""]]
    assert terminal.aligned(rows) == ["name     one", "a       1.25  no", "longer     3"]


def test_stages_are_lines_where_there_is_no_terminal(capsys):
    with terminal.stage_bar(2) as bar:
        terminal.name_stage(bar, "the first")
        bar.update(1)
    assert capsys.readouterr().err == "the first\n"


def test_a_missing_tqdm_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ValueError, match=r"needs tqdm.*vqkern\[data\]"):
        terminal.progress_bar(1)
