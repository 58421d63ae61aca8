import os
import pickle
import socket
import subprocess
from pathlib import Path

import pytest


@pytest.fixture
def no_harm(tmp_path, monkeypatch):
    """No input starts a program, opens a connection, or writes beside what the test wrote."""

    def refuse(*args, **kwargs):
        raise AssertionError("an input ran something")

    for module, name in ((os, "system"), (subprocess, "Popen"), (socket, "socket")):
        monkeypatch.setattr(module, name, refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.chdir(tmp_path)
    outside = tmp_path.parent / "escaped"
    yield
    assert not outside.exists() and not Path("/tmp/vqkern-escaped").exists()
