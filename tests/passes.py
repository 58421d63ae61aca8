"""What the tests of passes over memory share: sizes, and the same in plain PyTorch."""

import sys

import pytest
from support import HAS_NATIVE

needs_native = pytest.mark.skipif(not HAS_NATIVE, reason="the native module was not built")
SIZES = [(0, 3), (1, 1), (63, 16), (700, 5), (300, 100)]


def plain(monkeypatch, function, *arguments):
    """What `function` gives without the native module."""
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[function.__module__], "runs_natively", lambda *_, **__: False)
        return function(*arguments)
