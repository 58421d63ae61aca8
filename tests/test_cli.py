import pytest

from vqkern import __version__, cli


def test_info_names_every_backend_and_why_not(capsys):
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    assert f"vqkern {__version__}" in out
    for word in ("torch", "cpp", "triton", "cuda", "python", "numpy", "cpu", "threads"):
        assert word in out


def test_a_user_s_mistake_is_one_line(capsys, tmp_path):
    assert cli.main(["demo", "--data", str(tmp_path), "--out", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("vqkern demo: ") and message.count("\n") == 1
    assert str(tmp_path) in message
    assert "Traceback" not in message


@pytest.mark.parametrize("arguments", [[], ["nonsense"]])
def test_an_unknown_command_shows_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert "usage: vqkern" in capsys.readouterr().err
