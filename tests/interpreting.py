"""Tests that need Triton to interpret, run in a process in which it does.

Triton decides on import whether it interprets, and other tests need it to compile: where it does
not interpret, a module of such tests runs once more in a process of its own, and every test of it
reports how it did there.
"""

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import pytest

KINDS = ("failure", "error", "skipped")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def outcomes_of(module):
    """Test name -> what it said in the interpreting process if it did not pass there, else None."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", module]
            + [f"--junitxml={report}"],
            env={**os.environ, "TRITON_INTERPRET": "1"},
            capture_output=True,
            text=True,
        )
        if not report.exists():
            pytest.fail(f"the interpreting process failed:\n{done.stdout}\n{done.stderr}")
        outcomes = {}
        for case in ElementTree.parse(report).iter("testcase"):
            problems = [child.text or child.tag for child in case if child.tag in KINDS]
            outcomes[case.get("name")] = problems[0] if problems else None
        return outcomes


def interpreted(test):
    """Run `test` if Triton interprets here, else report how it did in the process that does."""

    @functools.wraps(test)
    def run(**arguments):
        if INTERPRETED:
            return test(**arguments)
        name = os.environ["PYTEST_CURRENT_TEST"].split("::")[-1].rsplit(" ", 1)[0]
        outcomes = outcomes_of(test.__code__.co_filename)
        assert name in outcomes, f"{name} did not run in the interpreting process"
        if outcomes[name] is not None:
            pytest.fail(outcomes[name], pytrace=False)

    return run
