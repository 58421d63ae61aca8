"""`vqkern report`: what it reads from runs, what it shows of them, and what it says is missing."""

import json
import re

import numpy as np
import pytest
import report_runs
import torch
import yaml
from PIL import Image

from vqkern.cli import main
from vqkern.report.comparison import sample_strips
from vqkern.report.runs import read_runs, setting_differences
from vqkern.tokenizers import from_pretrained


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return report_runs.two_runs(tmp_path_factory.mktemp("runs"))


def page_of(capsys, *arguments):
    assert main(["report", *map(str, arguments)]) == 0
    printed = capsys.readouterr().out
    return printed, open(printed.split("Page: ")[1].strip(), encoding="utf-8").read()


def test_two_runs_on_one_page(runs, tmp_path, capsys):
    (runs[0] / "eval-rgb.json").write_text(
        json.dumps({"protocol": "rgb", "images": 5, "psnr": 21.234, "crop": "adm 256"})
    )
    printed, text = page_of(capsys, *runs, "--out", tmp_path / "two.html")
    (runs[0] / "eval-rgb.json").unlink()
    sources = re.findall(r"(?:src|href)=['\"]([^'\"]*)", text)
    assert sources and all(s.startswith(("data:image/png;base64,", "#")) for s in sources)
    assert "http:" not in text and "https:" not in text and text.count("<script>") == 1
    differing = text.split("Settings that differ")[1].split("</section>")[0]
    assert "optim.lr" in differing and "0.002" in differing and "optim.steps" not in differing
    for name in ("Quantization error", "Codes used (%)", "PSNR of training crops (dB)", "Loss"):
        assert f"aria-label='{name}'" in text
    assert "21.23" in text and "crop adm 256" in text and "Unfinished" not in text
    # Five held-out regions, of each the original and what both runs make of it.
    held_out = text.split("<h2>Held-out regions")[1].split("</section>")[0]
    assert held_out.count("<figure>") == 15


def test_of_a_run_on_a_folder_nothing_is_said_to_be_held_out(runs, tmp_path, capsys):
    recipe = runs[0] / "recipe.yaml"
    before = recipe.read_text()
    recipe.write_text(before.replace("folder: null", "folder: somewhere"))
    _, text = page_of(capsys, *runs, "--out", tmp_path / "two.html")
    recipe.write_text(before)
    assert "<h2>Photographs" in text and "Held-out" not in text
    assert "not of a run&#x27;s own images" in text or "not of a run's own images" in text


@pytest.mark.parametrize("crop", ["adm 256", "center <256>"])
def test_evaluations_of_different_images_are_warned_about(runs, tmp_path, capsys, crop):
    for run, cut in zip(runs, ("adm 256", crop), strict=True):
        figures = {"protocol": "rgb", "images": 5, "psnr": 20.0, "crop": cut, "data": "images"}
        (run / "eval-rgb.json").write_text(json.dumps(figures))
    _, text = page_of(capsys, *runs, "--out", tmp_path / "two.html")
    for run in runs:
        (run / "eval-rgb.json").unlink()
    assert ("Not comparable" in text) == (crop != "adm 256")
    assert crop == "adm 256" or "images, center &lt;256&gt;, 5" in text


def test_the_pictures_are_those_of_the_runs(runs, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    noise = torch.randint(256, (40, 32, 3), dtype=torch.uint8)
    Image.fromarray(noise.numpy()).save(folder / "a <b>.png")
    _, text = page_of(capsys, runs[0], "--data", folder, "--crop", "center", "--size", "32")
    assert "a &lt;b&gt;.png" in text and "a <b>" not in text
    image = noise.permute(2, 0, 1)[None, :, 4:36].float() / 127.5 - 1
    made = from_pretrained(runs[0] / "tokenizer").reconstruct(image)
    decibels = 10 * (4 / (made - image).double().square().mean()).log10()
    assert f"<b>{float(decibels):.2f} dB</b>" in text


def test_samples_are_the_tiles_of_the_first_and_the_last_grid(runs):
    (run,) = read_runs(runs[:1])
    strips = sample_strips(run)
    assert [name for name, _, _ in strips[0].reconstructions] == ["step 2", "step 4"]
    grid = torch.from_numpy(np.array(Image.open(run.samples[-1][1])))
    tile = grid[32:, 32:64].permute(2, 0, 1).float() / 127.5 - 1
    torch.testing.assert_close(strips[1].reconstructions[1][1], tile)
    torch.testing.assert_close(
        strips[1].original, grid[:32, 32:64].permute(2, 0, 1).float() / 127.5 - 1
    )


def copied(run, folder, **recipe):
    """The recipe, the log and the pictures of a run, without its tokenizer."""
    (folder / "samples").mkdir(parents=True)
    described = yaml.safe_load((run / "recipe.yaml").read_text())
    described["optim"] |= recipe
    (folder / "recipe.yaml").write_text(yaml.safe_dump(described))
    (folder / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes())
    for file in (run / "samples").iterdir():
        (folder / "samples" / file.name).write_bytes(file.read_bytes())
    return folder


def test_what_is_missing_or_damaged_is_said(runs, tmp_path, capsys):
    run = copied(runs[0], tmp_path / "run <i>", steps=100)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "loss": NaN, "error": 0.5}\n{"step": 6, "err')
    (run / "samples/step-00000004.png").write_bytes(b"half of it")
    (run / "eval-rgb.json").write_text("[")
    printed, text = page_of(capsys, run, runs[1], "--out", tmp_path / "page.html")
    assert "run &lt;i&gt; is at step 5 of 100" in text and "<i>" not in text
    assert "1 line of metrics.jsonl cannot be read" in text
    assert "step-00000004.png" in text and "eval-rgb.json cannot be read" in text
    assert "has no finished tokenizer" in text and "has no finished tokenizer" in printed
    (read,) = read_runs([run])
    assert read.curves["error"].steps[-1] == 5 and read.curves["loss"].steps[-1] == 4


def test_without_a_log_the_checkpoints_say_how_far_a_run_came(runs, tmp_path):
    run = copied(runs[0], tmp_path / "run", steps=20)
    (run / "metrics.jsonl").write_text("")
    (run / "checkpoints/step-00000020").mkdir(parents=True)
    (read,) = read_runs([run])
    assert read.step == 20 and "no readable line" in read.problems[0]


def test_a_run_that_cannot_take_the_images_is_named(runs, tmp_path, capsys):
    folder = tmp_path / "odd"
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "a.png")
    run = copied(runs[0], tmp_path / "run")
    (run / "tokenizer").mkdir()
    (run / "tokenizer/config.json").write_text("{}")
    printed, text = page_of(capsys, run, "--data", folder, "--size", "32")
    assert "run reconstructs none of these images" in printed
    assert "run reconstructs none of these images" in text


def test_names_and_differences(runs, tmp_path):
    one = copied(runs[0], tmp_path / "a/run", steps=4)
    two = copied(runs[0], tmp_path / "b/run", steps=5)
    read = read_runs([one, two])
    assert [run.name for run in read] == ["a/run", "b/run"]
    assert setting_differences(read) == [("optim.steps", ["4", "5"])]
    read[1].recipe["data"] = {"new": None}
    named = dict(setting_differences(read))
    assert named["data.new"] == ["not set", "none"] and named["data.crop"][1] == "not set"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{none}"], "is not a folder"),
        (["{empty}"], "has no recipe.yaml: expected a folder that `vqkern train` wrote"),
        (["{bad}"], "is not the recipe of a run"),
        (["{run}", "{run}/../{name}"], "is given twice"),
        (["{run}", "--data", "{empty}"], "holds no image"),
        (["{run}", "--pictures", "-1"], "--pictures: got -1"),
        (["{run}", "--size", "64"], "it goes with --data"),
        (["{run}", "--out", "{bad}/recipe.yaml/page.html"], "exists"),
    ],
)
def test_mistakes_are_named_in_one_line(runs, tmp_path, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/recipe.yaml").write_text("optim: 3")
    names = {key: tmp_path / key for key in ("none", "empty", "bad")}
    filled = [a.format(run=runs[0], name=runs[0].name, **names) for a in arguments]
    assert main(["report", *filled]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("vqkern report: ") and error.count("\n") == 1
