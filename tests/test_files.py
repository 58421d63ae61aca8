"""Files that exist whole or not at all."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vqkern
from vqkern import files
from vqkern.files import only_one, require_apart


def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path):
    path = tmp_path / "file"
    files.write_whole(path, b"old")
    with pytest.raises(ZeroDivisionError):
        with files.whole_file(path) as part:
            part.write_bytes(b"half")
            _ = 1 / 0
    assert path.read_bytes() == b"old"
    files.write_whole(path, b"new")
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_content_is_on_the_disk_before_the_file_has_its_name(tmp_path, monkeypatch):
    path, flushed = tmp_path / "file", []
    monkeypatch.setattr(files.os, "fsync", lambda descriptor: flushed.append(path.exists()))
    files.write_json(path, {})
    assert flushed == [False] and path.exists()
    files.flush(tmp_path)
    assert flushed == [False, True]


def test_sums_are_of_the_whole_file(tmp_path):
    content = b"a" * (2**22 + 1)
    (tmp_path / "file").write_bytes(content)
    assert files.sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "a thing '.*' cannot be read: Expecting"),
        (b"\xff", "a thing '.*' cannot be read: 'utf-8'"),
        (b"[]", "a thing '.*' is not a JSON object"),
        (b"[" * 90, "a thing '.*' cannot be read: more than 80 bytes"),
        (None, "a thing '.*' cannot be read: .*No such file"),
    ],
)
def test_what_is_no_json_object_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        files.read_json(tmp_path / "file", "a thing", 80)
    files.write_json(tmp_path / "file", {"a": 1})
    assert files.read_json(tmp_path / "file", "a thing") == {"a": 1}


def test_what_is_written_must_not_lie_among_what_is_read(tmp_path):
    data = tmp_path / "images"
    data.mkdir()
    (tmp_path / "link").symlink_to(data)
    for out in (data, data / "run", tmp_path / "link" / "run"):
        with pytest.raises(ValueError, match="lies in --data .*choose a folder outside"):
            require_apart(out, data)
    for out in (tmp_path / "run", tmp_path, tmp_path / "images-2"):
        require_apart(out, data)
    require_apart(data, None)


def test_one_process_at_a_time_and_the_other_is_named(tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from vqkern.files import only_one\n"
        "with only_one(Path(sys.argv[1])): print('in', flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(vqkern.__file__).parents[1])}
    command = [sys.executable, "-c", program, str(tmp_path / "run")]
    other = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(ValueError, match=f"run is in use by process {other.pid} on "):
            with only_one(tmp_path / "run"):
                pass
    finally:
        other.kill()
        other.wait()
    with only_one(tmp_path / "run"):  # what was killed holds nothing
        pass


class Call:
    def __init__(self, function, *arguments):
        self.called = function, arguments

    def __reduce__(self):
        return self.called


@pytest.mark.parametrize("function", [os.system, print, subprocess.run])
def test_what_a_pickle_asks_for_is_named_and_nothing_is_advised(tmp_path, function):
    torch.save({"a": Call(function, "true")}, tmp_path / "evil.pt")
    with pytest.raises(Exception) as caught:
        torch.load(tmp_path / "evil.pt", weights_only=True)
    text = files.refused(caught.value)
    # Under the module's name of old: torch.save writes the second version of pickle.
    assert re.search(rf"asks for (\w+\.)?{function.__qualname__}\. Where you trust it", text), text
    assert "weights_only" not in text and "add_safe_globals" not in text


def test_what_is_written_has_the_mode_that_new_files_have(tmp_path):
    (tmp_path / "plain").touch()
    with files.whole_file(tmp_path / "whole") as part:
        part.unlink(missing_ok=True)
        part.touch(0o600)
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode
