"""docs/transplant.md from end to end: its own commands, on its own small files."""

import os
import re
import shlex
import shutil
import string
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vqkern.cli import main
from vqkern.tokenizers import from_original, from_pretrained

PAGE = (Path(__file__).parents[1] / "docs" / "transplant.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)(?: (\w+))?\n(.*?)```", PAGE, re.S)
COMMANDS = [text for kind, name, text in BLOCKS if kind == "sh" and not name]


def block(kind, name):
    (found,) = (text for k, n, text in BLOCKS if (k, n) == (kind, name))
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the page's files are, and the commands run."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    exec(compile(block("python", "small"), "docs/transplant.md", "exec"), {})
    yield tmp_path
    torch.set_num_threads(threads)


def settings(*blocks):
    """The variables that a shell would have after the blocks."""
    return dict(word.split("=", 1) for text in blocks for word in shlex.split(text))


def check(folder, format, file):
    assert (folder / "report.html").stat().st_size > 100_000
    start, new = from_original(format, file), from_pretrained("runs/stage-2/tokenizer")
    for name, value in start.encoder.state_dict().items():
        assert torch.equal(value, new.encoder.state_dict()[name])
    one = from_pretrained("runs/stage-1/tokenizer")
    assert not torch.equal(one.decoder.conv_out.weight, new.decoder.conv_out.weight)
    assert torch.equal(start.decoder.conv_out.weight, one.decoder.conv_out.weight)
    assert one.quantizer.codebook_size == new.quantizer.codebook_size == 256
    assert (folder / "tokens").is_dir() and (folder / "runs/stage-2/eval-rgb.json").is_file()


def test_without_projectors_it_goes_back_into_the_public_format(folder, capsys):
    known = settings(block("sh", "var"), block("sh", "small"))
    for line in (COMMANDS[0].splitlines()[0], block("sh", "alone").strip()):
        _, *arguments = shlex.split(string.Template(line).substitute(known))
        arguments += ["--run.device", "cpu"] if arguments[0] == "train" else []
        assert main(arguments) == 0, capsys.readouterr().err
    from_pretrained("runs/alone/tokenizer").to_original("new.pth")
    new, old = from_original("var", "new.pth"), from_original("var", known["FILE"])
    assert torch.equal(new.encoder.conv_in.weight, old.encoder.conv_in.weight)
    assert not torch.equal(new.quantizer.codes[0], old.quantizer.codes[0])


@pytest.mark.parametrize("checkpoint", ["var", "llamagen"])
def test_the_commands_in_this_process(folder, checkpoint, capsys):
    known = settings(block("sh", checkpoint), block("sh", "small"))
    lines = [line for text in COMMANDS for line in text.splitlines() if line]
    assert len(lines) == 8
    for line in lines:
        name, *arguments = shlex.split(string.Template(line).substitute(known))
        if arguments[0] in ("train", "tokenize"):
            # As it stands, but for what a process of its own would bring along.
            arguments += {"train": ["--run.device", "cpu"], "tokenize": ["--workers", "0"]}[
                arguments[0]
            ]
        assert name == "vqkern" and main(arguments) == 0, (line, capsys.readouterr().err)
    check(folder, known["FORMAT"], known["FILE"])


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", ["var", "llamagen"])
def test_the_commands_in_a_shell(folder, checkpoint):
    """Each one a process, as a person runs them."""
    shell = shutil.which("bash")
    if shell is None:
        pytest.skip("no bash here")
    (folder / "vqkern").write_text(f'#!/bin/sh\nexec {sys.executable} -m vqkern.cli "$@"\n')
    (folder / "vqkern").chmod(0o755)
    script = ["set -eu", block("sh", checkpoint), block("sh", "small"), *COMMANDS]
    path = f"{folder}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [shell, "-c", "\n".join(script)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    known = settings(block("sh", checkpoint))
    check(folder, known["FORMAT"], known["FILE"])
