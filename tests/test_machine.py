"""The device that a user asks for, and what the machine says of itself."""

import pytest
import torch

from vqkern import cli, machine

DEVICE = {
    "bench": [],
    "demo": [],
    "eval": ["run"],
    "report": ["run"],
    "tokenize": ["tokenizer", "--data", "images", "--out", "tokens"],
}


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


@pytest.mark.parametrize("command", DEVICE)
def test_every_command_refuses_a_device_that_is_not_there(command, no_gpu, capsys):
    for name, message in (
        ("cuda", "argument --device: 'cuda' was asked for, but torch finds no CUDA device here"),
        ("meta", "argument --device: must be 'auto', 'cpu' or 'cuda[:i]', got 'meta'"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main([command, *DEVICE[command], "--device", name])
        assert stop.value.code == 2 and message in capsys.readouterr().err


def test_the_message_names_the_key(no_gpu):
    with pytest.raises(ValueError, match="^run.device: 'cuda' was asked for, but torch finds no"):
        machine.choose_device("cuda", "run.device")
    assert machine.choose_device("auto", "run.device") == torch.device("cpu")


def test_a_rank_has_its_own_gpu(two_gpus, monkeypatch):
    assert machine.choose_device("auto", "--device") == torch.device("cuda")
    assert machine.choose_device("cpu", "--device") == torch.device("cpu")
    assert not two_gpus
    monkeypatch.setenv("LOCAL_RANK", "1")
    for name in ("auto", "cuda", "cuda:0"):
        machine.choose_device(name, "--device")
    assert two_gpus == [torch.device(name) for name in ("cuda:1", "cuda:1", "cuda:0")]
    with pytest.raises(ValueError, match="'cuda:2' was asked for, but torch finds 2 CUDA devices"):
        machine.choose_device("cuda:2", "--device")


def test_peaks_are_bytes():
    assert machine.peak_since_start() > 2**24
    if machine.reset_peak_memory():
        before = machine.resident_memory()
        block = torch.ones(2**24)
        del block
        assert machine.peak_since_reset() > before + 2**25
    assert machine.cpu_name()
