"""The training loop: what moves, what is skipped, what stops it, and what it says."""

import copy
import errno
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import train_ranks
from PIL import Image

from vqkern import training
from vqkern.cli import main
from vqkern.tokenizers import from_pretrained
from vqkern.training import checkpoint, engine
from vqkern.training.batches import training_samples
from vqkern.training.build import build_tokenizer_of
from vqkern.training.config import from_mapping, load_recipe, to_mapping
from vqkern.training.engine import Result, rate_factor, train
from vqkern.training.recipe import OptimSettings, Recipe
from vqkern.training.state import State, check_same_recipe
from vqkern.training.trained import Trained

pytestmark = pytest.mark.usefixtures("one_thread")
PLAIN = {"discriminator": "none", "start": 0}


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def recipe(**changes):
    small = {
        "data": {"workers": 0, "micro_batch": None},
        "loss": {"adversarial": PLAIN},
        "optim": {"steps": 4, "ema": None},
        "run": {"save_every": 2, "log_every": 1},
    }
    described = train_ranks.merged(train_ranks.merged(train_ranks.RECIPE, small), changes)
    return from_mapping(Recipe, described)


def pretrained(tmp_path):
    out = tmp_path / "base"
    train(recipe(optim={"steps": 1}), out)
    return out


def transplant(base, trainer, name="vanilla", **changes):
    quantizer = {"name": name, "codebook_size": 32, "options": {}}
    if trainer != "stage_1":
        quantizer = {"name": None}
    tokenizer = {"pretrained": str(base), "architecture": None, "start_images": 0}
    return recipe(trainer=trainer, tokenizer=tokenizer, quantizer=quantizer, **changes)


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_the_package_loads_the_trainer_when_it_is_asked_for():
    assert training.train is train and training.Result is Result and training.Recipe is Recipe
    assert training.load_recipe("photographs-base") == load_recipe("photographs-base")
    assert set(training.__all__) <= set(dir(training))
    with pytest.raises(AttributeError, match="'vqkern.training' has no attribute 'trainer'"):
        _ = training.trainer
    program = "import sys, vqkern.training; print('vqkern.training.engine' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert found.stdout == "False\n", found.stderr


@pytest.mark.parametrize("codebook_lr", [None, 0.01])
@pytest.mark.parametrize(
    ("trainer", "moving"),
    [
        ("stage_1", {"quantizer"}),
        ("stage_2", {"decoder"}),
        ("stage_2_joint", {"encoder", "quantizer", "decoder"}),
    ],
)
def test_a_trainer_moves_its_parts_alone(tmp_path, trainer, moving, codebook_lr):
    base = pretrained(tmp_path)
    out = tmp_path / "run"
    plan = transplant(base, trainer, optim={"codebook_lr": codebook_lr})
    assert train(plan, out) == Result(step=4, skipped=0, signal=None)
    before, after = from_pretrained(base / "tokenizer"), from_pretrained(out / "tokenizer")
    if trainer == "stage_1":
        assert after.quantizer.codebook_size == 32 and before.quantizer.codebook_size == 64
        before.quantizer = after.quantizer
        moving = set()
    different = {
        name.split(".")[0]
        for name, value in after.state_dict().items()
        if not torch.equal(value, before.state_dict()[name])
    }
    assert different == moving
    assert ("pixel" in lines(out)[0]) == (trainer != "stage_1")


def early(out):
    """The mean error of the first four steps: single batches of few crops differ by more."""
    return sum(line["error"] for line in lines(out)[:4]) / 4


def late(out):
    return sum(line["error"] for line in lines(out)[-4:]) / 4


def test_stage_1_lowers_the_quantization_error(tmp_path):
    base = pretrained(tmp_path)
    train(transplant(base, "stage_1", optim={"steps": 60, "codebook_lr": 0.1}), tmp_path / "run")
    assert late(tmp_path / "run") < 0.8 * early(tmp_path / "run")


def test_several_pixel_terms_add_up(tmp_path):
    pixels = {}
    for name, pixel in (
        ("l2", "l2"),
        ("charbonnier", {"charbonnier": 1}),
        ("both", {"l2": 2.0, "charbonnier": 0.5}),
    ):
        train(recipe(loss={"pixel": pixel}, optim={"steps": 1}), tmp_path / name)
        pixels[name] = lines(tmp_path / name)[0]["pixel"]
    assert pixels["both"] == pytest.approx(2 * pixels["l2"] + 0.5 * pixels["charbonnier"], 1e-5)


@pytest.mark.parametrize(
    ("pixel", "message"),
    [
        ("l3", "loss.pixel: got 'l3'"),
        ({"l2": -1.0}, "loss.pixel.l2"),
        ({}, "loss.pixel: got 'no"),
        ({"l2": None}, "loss.pixel.l2: expected a number, got None"),
        ({"l2": "nan"}, "loss.pixel.l2: expected a number, got 'nan'"),
        ({"l2": True}, "loss.pixel.l2: expected a number, got True"),
    ],
)
def test_pixel_terms_are_checked(pixel, message):
    with pytest.raises(ValueError, match=message):
        recipe(loss={"pixel": pixel})


def test_codes_without_gradients_are_trained_too(tmp_path):
    base = pretrained(tmp_path)
    train(transplant(base, "stage_1", name="ema", optim={"steps": 60}), tmp_path / "run")
    assert late(tmp_path / "run") < 0.9 * early(tmp_path / "run")
    assert "lr" not in lines(tmp_path / "run")[0]


def test_accumulated_micro_batches_are_one_batch(tmp_path):
    """Group norms alone: each image by itself, so that only the order of sums differs."""
    base = pretrained(tmp_path)
    states = []
    for size in (None, 2):
        out = tmp_path / f"run-{size}"
        train(transplant(base, "stage_2", data={"micro_batch": size}), out)
        states.append(from_pretrained(out / "tokenizer").state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_autocast_leaves_quantization_exact(tmp_path, precision, monkeypatch):
    seen = []
    forward = Trained.forward

    def watched(self, images):
        quantizer = self.tokenizer.quantizer
        handle = quantizer.register_forward_hook(
            lambda module, given, result: seen.append(
                (given[0], result.index, module.codes.detach().clone())
            )
        )
        outcome = forward(self, images)
        handle.remove()
        return outcome

    monkeypatch.setattr(Trained, "forward", watched)
    result = train(recipe(optim={"precision": precision, "steps": 3}), tmp_path / "run")
    assert result.step == 3
    z, index, codes = seen[0]
    assert z.dtype == codes.dtype == torch.float32
    rows = z.detach().movedim(1, -1).double()
    distances = (rows[..., None, :] - codes.double()).square().sum(-1)
    assert torch.equal(distances.argmin(-1), index)


def test_compiled_networks_train_and_save_under_their_own_names(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(type(self)))
    train(recipe(optim={"compile": True, "steps": 1}), tmp_path / "run")
    assert [kind.__name__ for kind in compiled] == ["Encoder", "Decoder"]


def poisoned(monkeypatch, steps):
    """The images of these steps (from 1) hold a NaN."""
    fetch, seen = engine._fetch, []

    def with_nan(*given):
        images, problem = fetch(*given)
        seen.append(0)
        if len(seen) in steps:
            images[0][0, 0, 0, 0] = float("nan")
        return images, problem

    monkeypatch.setattr(engine, "_fetch", with_nan)


def test_a_step_that_is_not_finite_leaves_nothing_behind(tmp_path, monkeypatch):
    poisoned(monkeypatch, {2, 4})
    gan = {"discriminator": "patchgan", "start": 0, "lecam": 0.1, "adaptive": True}
    quantizer = {"name": "online", "codebook_size": 32}
    states = []
    update = engine._update

    def watched(state, values):
        update(state, values)
        kept = {name: t.clone() for name, t in state.tensors().items()}
        states.append({name: t for name, t in kept.items() if "counter" not in name})

    monkeypatch.setattr(engine, "_update", watched)
    result = train(recipe(loss={"adversarial": gan}, quantizer=quantizer), tmp_path / "run")
    assert result == Result(step=4, skipped=2, signal=None)
    assert all(bool(t.isfinite().all()) for state in states for t in state.values())
    same = [torch.equal(states[1][name], value) for name, value in states[0].items()]
    assert all(same) and not all(torch.equal(states[2][n], v) for n, v in states[0].items())
    assert lines(tmp_path / "run")[-1]["skipped"] == 2


def test_three_such_steps_in_a_row_end_the_run(tmp_path, monkeypatch):
    poisoned(monkeypatch, {3, 4, 5})
    with pytest.raises(ValueError, match="not finite in 3 steps in a row.*step 5.*pixel nan"):
        train(recipe(optim={"steps": 9}), tmp_path / "run")
    assert checkpoint.newest_checkpoint(tmp_path / "run/checkpoints").name == "step-00000004"


def test_a_full_disk_keeps_the_old_checkpoint_says_so_and_goes_on(tmp_path, monkeypatch, capsys):
    writer = checkpoint.HuggingFaceStorageWriter
    write = writer.write_data

    def full(self, plan, planner):
        if "00000004" in str(self.path):
            (Path(self.path) / "half").write_bytes(b"0" * 100)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, plan, planner)

    monkeypatch.setattr(writer, "write_data", full)
    assert train(recipe(optim={"steps": 6}), tmp_path / "run").step == 6
    said = capsys.readouterr().err
    assert "no checkpoint at step 4" in said and "No space left on device" in said
    names = sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir())
    assert names == ["step-00000002", "step-00000006"]


def test_a_full_disk_in_the_end_is_an_error(tmp_path, monkeypatch):
    def full(self, plan, planner):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint.HuggingFaceStorageWriter, "write_data", full)
    with pytest.raises(OSError, match="last checkpoint, at step 2, .*No space left on device"):
        train(recipe(optim={"steps": 2}), tmp_path / "run")
    assert list((tmp_path / "run/checkpoints").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT])
def test_signals_save_and_end_the_run_after_the_step(tmp_path, monkeypatch, number):
    update = engine._update

    def signalled(state, values):
        update(state, values)
        if state.step == 2:  # within step 3
            os.kill(os.getpid(), number)

    whole = tmp_path / "whole"
    train(recipe(optim={"steps": 5}), whole)
    monkeypatch.setattr(engine, "_update", signalled)
    before = signal.getsignal(number)
    stopped = train(recipe(optim={"steps": 5}), tmp_path / "run")
    assert stopped == Result(step=3, skipped=0, signal=number)
    assert signal.getsignal(number) == before
    monkeypatch.setattr(engine, "_update", update)
    assert train(recipe(optim={"steps": 5}), tmp_path / "run").step == 5
    ends = [from_pretrained(out / "tokenizer").state_dict() for out in (whole, tmp_path / "run")]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_a_folder_that_vanishes_is_named_and_nothing_is_lost(tmp_path, monkeypatch):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(4):
        noise = torch.randint(256, (40, 50, 3), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(folder / f"{number}.png")
    update = engine._update

    def vanishing(state, values):
        update(state, values)
        if state.step == 2:
            for file in folder.iterdir():
                file.unlink()

    monkeypatch.setattr(engine, "_update", vanishing)
    with pytest.raises(ValueError, match=r"No such file.*images/\d.png.*step 4.*saved"):
        train(recipe(data={"folder": str(folder)}), tmp_path / "run")
    assert checkpoint.newest_checkpoint(tmp_path / "run/checkpoints").name == "step-00000003"


def noisy_folder(tmp_path, count):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(count):
        noise = torch.randint(256, (40, 50, 3), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(folder / f"{number}.png")
    return folder


def test_damaged_images_are_left_out_where_a_share_of_them_may_be(tmp_path, capfd):
    folder = noisy_folder(tmp_path, 5)
    (folder / "3.png").write_bytes(b"not an image")
    data = {"folder": str(folder)}
    with pytest.raises(ValueError, match="3.png.*with --data.max_damaged 0.01, say, the next"):
        train(recipe(data=data), tmp_path / "strict")
    assert train(recipe(data={**data, "max_damaged": 0.2}), tmp_path / "run").step == 4
    assert capfd.readouterr().err.count("left out: ") == 1
    (folder / "2.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match="2 of 5 images are damaged, more than the allowed share"):
        train(recipe(data={**data, "max_damaged": 0.2}), tmp_path / "more")


def test_a_run_goes_on_with_its_own_images_alone(tmp_path):
    folder = noisy_folder(tmp_path, 4)
    data = {"folder": str(folder)}
    train(recipe(data=data, optim={"steps": 2}), tmp_path / "run")
    moved = folder.rename(tmp_path / "elsewhere")
    data = {"folder": str(moved)}
    assert train(recipe(data=data, optim={"steps": 2}), tmp_path / "run").step == 2
    (moved / "more.png").write_bytes((moved / "0.png").read_bytes())
    with pytest.raises(ValueError, match="on other images .4 images.*here 5 images.*another --out"):
        train(recipe(data=data, optim={"steps": 2}), tmp_path / "run")


def test_a_run_inside_its_images_is_refused(tmp_path):
    folder = noisy_folder(tmp_path, 4)
    with pytest.raises(ValueError, match="lies in --data"):
        train(recipe(data={"folder": str(folder)}), folder / "run")
    assert len(list(folder.iterdir())) == 4


def test_crops_that_the_tokenizer_cannot_take_are_named(tmp_path):
    with pytest.raises(ValueError, match="data.crop: 33 is not a multiple of 8"):
        train(recipe(data={"crop": 33}), tmp_path / "run")
    scales = {"name": "vanilla_var", "codebook_size": 8, "options": {"patch_sizes": [1, 2]}}
    with pytest.raises(ValueError, match="last scale has 2 x 2 tokens, which are crops of 16"):
        train(recipe(quantizer=scales, data={"crop": 32}), tmp_path / "run")


def test_a_terminal_that_takes_nothing_ends_no_training(tmp_path, monkeypatch):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Full())
    assert train(recipe(), tmp_path / "run").step == 4
    assert (tmp_path / "run/tokenizer/config.json").is_file()


def test_a_worker_that_dies_costs_nothing_that_is_done(tmp_path, monkeypatch):
    folder = noisy_folder(tmp_path, 6)
    # Another loader of the process has set torch's handler for good.
    next(iter(torch.utils.data.DataLoader([1, 2], num_workers=1)))
    update = engine._update

    def deadly(state, values):
        update(state, values)
        if state.step == 2:
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, signal.SIGKILL)
            time.sleep(0.2)  # torch's own handler would raise here, in the middle of a step

    data = {"folder": str(folder), "workers": 2}
    monkeypatch.setattr(engine, "_update", deadly)
    with pytest.raises(ValueError, match="worker.*what is done is saved"):
        train(recipe(data=data, optim={"steps": 40}, run={"save_every": 100}), tmp_path / "run")
    (saved,) = (tmp_path / "run/checkpoints").iterdir()
    assert int(saved.name.removeprefix("step-")) >= 2


def test_damaged_checkpoints_do_not_push_out_whole_ones(tmp_path, capfd):
    run = {"save_every": 2, "keep": 2}
    whole = recipe(optim={"steps": 8}, run=run)
    train(whole, tmp_path / "run")
    checkpoints = tmp_path / "run/checkpoints"
    for kept in checkpoints.iterdir():
        file = next(f for f in kept.iterdir() if f.suffix == ".safetensors")
        file.write_bytes(file.read_bytes()[:-1])
    capfd.readouterr()
    train(whole, tmp_path / "run")
    said = capfd.readouterr().err
    assert said.count("is damaged and passed over") == 2 and "beginning at step 0" in said
    assert sorted(p.name for p in checkpoints.iterdir()) == [
        "step-00000006", "step-00000006-damaged", "step-00000008", "step-00000008-damaged",
    ]  # fmt: skip


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    train(recipe(optim={"steps": 2}), tmp_path / "run")
    with pytest.raises(ValueError, match=r"another recipe \(optim.lr: 0.001, now 0.002\)"):
        train(recipe(optim={"steps": 2, "lr": 2e-3}), tmp_path / "run")
    with pytest.raises(ValueError, match=r"run.seed: 0, now 1"):
        train(recipe(optim={"steps": 2}, run={"seed": 1}), tmp_path / "run")
    train(recipe(optim={"steps": 2}, data={"workers": 1}, run={"keep": 1}), tmp_path / "run")


def test_a_checkpoint_older_than_a_setting_has_its_default():
    now = to_mapping(recipe())
    then = copy.deepcopy(now)
    del then["optim"]["codebook_weight_decay"], then["loss"]["adversarial"]["weight_decay"]
    check_same_recipe(Path("step"), then, now)
    plain = to_mapping(recipe(quantizer={"options": {}}))
    then = copy.deepcopy(plain)
    # A section, and a key whose default is made anew each time.
    del then["log"], then["quantizer"]["options"]
    then["run"]["keep_best"] = 3
    with pytest.raises(ValueError, match=r"another recipe \(run.keep_best: 3, now None\)"):
        check_same_recipe(Path("step"), then, plain)
    for nothing in (None, "x"):
        with pytest.raises(ValueError, match="checkpoint step: its manifest holds no recipe"):
            check_same_recipe(Path("step"), nothing, plain)
    now["optim"]["codebook_weight_decay"] = 0.5
    with pytest.raises(ValueError, match="optim.codebook_weight_decay: 0.0, now 0.5"):
        check_same_recipe(Path("step"), then, now)


def test_weight_decay_of_the_codes_is_that_of_the_quantizer_alone():
    optim = {"lr": 1e-3, "codebook_lr": 1e-2, "weight_decay": 0.1, "codebook_weight_decay": 3.0}
    chosen = recipe(optim=optim)
    tokenizer = build_tokenizer_of(chosen, training_samples(chosen.data, 0))
    state = State(chosen, Trained(tokenizer, chosen.trainer), torch.device("cpu"))
    networks, codes = state.optimizer.param_groups
    assert (networks["lr"], networks["weight_decay"]) == (1e-3, 0.1)
    assert (codes["lr"], codes["weight_decay"]) == (1e-2, 3.0)
    assert {id(p) for p in codes["params"]} == {id(p) for p in tokenizer.quantizer.parameters()}


def test_sample_grids_leave_the_training_as_it_is(tmp_path):
    for every, name in ((0, "without"), (1, "with")):
        train(recipe(run={"sample_every": every}), tmp_path / name)
    ends = [from_pretrained(tmp_path / n / "tokenizer").state_dict() for n in ("with", "without")]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    grid = Image.open(tmp_path / "with/samples/step-00000004.png")
    assert grid.size == (8 * 32, 2 * 32)


def test_tensorboard_gets_the_log_and_the_pictures(tmp_path):
    pytest.importorskip(
        "tensorboard", reason="needs tensorboard: pip install 'vqkern[tensorboard]'"
    )
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = {"sample_every": 2}
    train(recipe(log={"tensorboard": True}, run=run, optim={"steps": 2}), tmp_path / "run")
    # A run that goes on adds to it, and may be told to stop doing so.
    train(recipe(log={"tensorboard": True}, run=run), tmp_path / "more")
    events = EventAccumulator(str(tmp_path / "more/tensorboard")).Reload()
    logged = [line["loss"] for line in lines(tmp_path / "more")]
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [e.value for e in events.Scalars("loss")] == pytest.approx(logged, rel=1e-6)
    assert [e.step for e in events.Images("samples")] == [2, 4]
    assert (tmp_path / "run/tensorboard").is_dir()


def test_missing_tensorboard_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(
        ValueError, match=r"log.tensorboard: .*not installed.*vqkern\[tensorboard\]"
    ):
        train(recipe(log={"tensorboard": True}), tmp_path / "run")


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(tmp_path, capsys, monkeypatch):
    train(recipe(optim={"steps": 2}), tmp_path / "lines")
    said = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in said] == ["step 1/2", "step 2/2"]
    assert all("images/s" in line and "left" in line and "\r" not in line for line in said)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    train(recipe(optim={"steps": 2}), tmp_path / "bar")
    assert "\r" in (drawn := capsys.readouterr().err) and "2/2" in drawn


def test_rates_rise_hold_and_fall():
    linear = OptimSettings(steps=100, warmup=10, hold=0.5, final=0.1)
    factors = [rate_factor(linear, step) for step in range(100)]
    assert factors[0] == pytest.approx(1 / 11) and factors[10:51] == [1.0] * 41
    assert factors[75] == pytest.approx(0.55) and factors[99] == pytest.approx(0.118)
    cosine = OptimSettings(steps=100, shape="cosine")
    assert rate_factor(cosine, 50) == pytest.approx(0.5)
    assert rate_factor(OptimSettings(steps=100, shape="constant"), 99) == 1.0


def test_command_trains_and_measures(tmp_path, capsys):
    file = tmp_path / "tiny.yaml"
    from vqkern.training.config import to_yaml

    file.write_text(to_yaml(recipe()))
    out = tmp_path / "run"
    assert main(["train", str(file), "--out", str(out), "--optim.steps", "2"]) == 0
    assert "steps: 2" in (out / "recipe.yaml").read_text()
    assert main(["eval", str(out)]) == 0
    assert main(["eval", str(out), "--size", "32"]) == 2
    figures = json.loads((out / "eval-rgb.json").read_text())
    assert figures["images"] == 5 and 0 < figures["utilization"] <= 1
    assert f"{figures['psnr']:.6g}" in capsys.readouterr().out
