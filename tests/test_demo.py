"""`vqkern demo` from end to end on small settings: files, repeatability, Ctrl-C, bad input."""

import json
import re
from dataclasses import replace

import pytest
import torch
from PIL import Image

from vqkern.cli import main
from vqkern.demo import run_demo
from vqkern.demo.settings import DemoSettings, quick
from vqkern.demo.stages import Demo
from vqkern.tokenizers import ConvConfig, from_pretrained

SLUGS = ["base", "drawn", "mmd-stage-1", "mmd-stage-2", "vanilla"]


def tiny(out, **changes):
    small = quick(DemoSettings())
    return replace(
        small,
        codebook_size=64,
        base_codebook_size=16,
        pool_tokens=4096,
        usage_tokens_per_code=64,
        network=ConvConfig(latent_dim=4, widths=(8, 16), blocks=(1, 1), groups=4),
        base=replace(small.base, steps=4, batch=2, start_crops=8),
        substitution=replace(small.substitution, steps=5, tokens=256),
        adaptation=replace(small.adaptation, steps=3, batch=2),
        threads=1,
        device="cpu",
        out=str(out),
        **changes,
    )


@pytest.fixture(autouse=True)
def restored_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_quick_demo_writes_everything(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["demo", "--quick", "--out", str(out), "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    text = (out / "report.html").read_text()
    assert (
        "http:" not in text and "https:" not in text and len(re.findall("<figure>", text)) == 5 * 6
    )
    described = results(out)
    assert [r["codebook_size"] for r in described["rows"]] == [128, 2048, 2048, 2048, 2048]
    for name in [r["name"] for r in described["rows"]]:
        assert name in printed.out and name in text
    assert "not a benchmark" in printed.out and "not a benchmark" in text
    stage_1, stage_2 = described["rows"][3:]
    assert stage_2["psnr"] > stage_1["psnr"]
    assert stage_2["quantization_error"] == stage_1["quantization_error"]
    assert sorted(p.name for p in (out / "tokenizers").iterdir()) == SLUGS
    for slug in SLUGS:
        tokenizer = from_pretrained(out / "tokenizers" / slug)
        assert tokenizer.reconstruct(torch.zeros(1, 3, 16, 16)).shape == (1, 3, 16, 16)


def test_same_seed_same_table(tmp_path, capsys):
    tables = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert run_demo(tiny(tmp_path / name, seed=seed), "test") == 0
        rows = results(tmp_path / name)["rows"]
        tables.append(
            [{k: v for k, v in r.items() if "memory" not in k and "second" not in k} for r in rows]
        )
    assert tables[0] == tables[1] and tables[0] != tables[2]


@pytest.mark.parametrize(("stage", "rows"), [("base tokenizer", 0), ("stage I, mmd", 3)])
def test_ctrl_c_leaves_a_usable_run(tmp_path, monkeypatch, capsys, stage, rows):
    watch = Demo._watch

    def interrupting(self, name, steps, curve):
        on_step = watch(self, name, steps, curve)

        def wrapped(report):
            on_step(report)
            if name == stage and report.step == 2:
                raise KeyboardInterrupt

        return wrapped

    monkeypatch.setattr(Demo, "_watch", interrupting)
    assert run_demo(tiny(tmp_path), "test") == 130
    said = f"Interrupted during {stage}, 2 of"
    assert said in capsys.readouterr().err and said in (tmp_path / "report.html").read_text()
    described = results(tmp_path)
    assert len(described["rows"]) == rows and described["stopped"].startswith(said)
    slug = "base" if rows == 0 else "mmd-stage-1"
    from_pretrained(tmp_path / "tokenizers" / f"{slug}-interrupted")


def test_images_of_ones_own(tmp_path, capsys):
    folder = tmp_path / "my <b>images"
    folder.mkdir()
    noise = torch.randint(256, (200, 260, 3), dtype=torch.uint8)
    for name in ("one.png", "two <i>.png"):
        Image.fromarray(noise.numpy()).save(folder / name)
    assert run_demo(tiny(tmp_path / "out", data=str(folder)), f"--data {folder}") == 0
    text = (tmp_path / "out" / "report.html").read_text()
    assert (
        "two &lt;i&gt;.png" in text
        and "<i>" not in text
        and "<b>" not in text.split("<main>")[1].split("<table>")[0]
        and "my <b>" not in text
    )
    images = results(tmp_path / "out")["settings"]["images"]
    assert [i["held_out"] for i in images] == [
        {"top": 36, "left": 66, "height": 128, "width": 128}
    ] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--codebook-size", "1"], "--codebook-size: expected at least 2"),
        (["--seed", "-1"], "--seed: expected a number >= 0"),
        (["--threads", "0"], "--threads: expected at least 1"),
        (["--data", "/nowhere/at/all"], "'/nowhere/at/all' does not exist"),
    ],
)
def test_bad_options_get_one_line(tmp_path, capsys, options, message):
    assert main(["demo", "--out", str(tmp_path / "run"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_named(tmp_path, capsys):
    taken = tmp_path / "taken"
    taken.write_text("a file")
    for out in (taken, taken / "below"):
        assert main(["demo", "--quick", "--out", str(out)]) == 2
        message = capsys.readouterr().err
        assert message.startswith("vqkern demo: --out: cannot write") and str(out) in message
        assert message.count("\n") == 1
