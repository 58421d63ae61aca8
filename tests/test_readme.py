"""The README's Python examples run as they stand."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)


@pytest.mark.parametrize("code", EXAMPLES, ids=[f"example-{i}" for i in range(len(EXAMPLES))])
def test_example_runs(code):
    exec(compile(code, str(README), "exec"), {})


def test_the_readme_shows_examples_and_both_commands():
    text = README.read_text(encoding="utf-8")
    assert len(EXAMPLES) >= 2
    assert "make demo" in text and "make test" in text
