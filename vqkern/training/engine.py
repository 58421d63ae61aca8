"""The training loop: one for all trainers, alone or under torchrun.

A step: micro-batches through the model and the losses, gradients summed up; the same for the
discriminator; then all ranks agree whether everything was finite, and either all update or none.
Checkpoints, signals and unreadable images are dealt with between steps, by all ranks together.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vqkern.distributed import (
    any_rank,
    mean_over_ranks,
    number_of_ranks,
    random_state,
    ranks_of_this_run,
    seed_rank,
    this_rank,
)
from vqkern.files import only_one, require_apart, write_whole
from vqkern.losses import PIXEL, adaptive_weight, load_lpips
from vqkern.machine import choose_device
from vqkern.quantizers.usage import usages
from vqkern.terminal import one_line, say
from vqkern.training.batches import Share, Unreadable, micro_batches, training_samples
from vqkern.training.build import build_tokenizer_of
from vqkern.training.checkpoint import CheckpointError, newest_checkpoint, save_checkpoint
from vqkern.training.config import to_yaml
from vqkern.training.log import Log, save_grid
from vqkern.training.recipe import LossSettings, OptimSettings, Recipe
from vqkern.training.signals import StopSignals
from vqkern.training.state import State
from vqkern.training.trained import Trained

MOST_SKIPPED = 3  # steps in a row without a finite loss and gradient, after which a run ends
GRID_IMAGES = 8
CHECKPOINTS, TOKENIZER, RECIPE, SAMPLES = "checkpoints", "tokenizer", "recipe.yaml", "samples"


@dataclass(frozen=True)
class Result:
    """How a run ended: `step` steps are done; `signal` stopped it, or it is complete (None)."""

    step: int
    skipped: int
    signal: int | None


def train(recipe: Recipe, out: str | Path) -> Result:
    """Trains by a recipe, from the newest checkpoint in `out` on where there is one.

    Writes out/recipe.yaml, metrics.jsonl, checkpoints/, samples/, and in the end tokenizer/, which
    `from_pretrained` reads. SIGTERM, SIGUSR1 and Ctrl-C save and end the run after the step.

    Raises:
        ValueError: the recipe does not fit the machine, the images or the checkpoint; an image
            cannot be read; three steps in a row were not finite. Finished steps are saved.
        OSError: the finished tokenizer or its checkpoint cannot be written.
    """
    out = Path(out)
    with ranks_of_this_run(), StopSignals() as signals:
        share = Share.of(recipe.data, this_rank(), number_of_ranks())
        require_apart(out, recipe.data.folder)
        device = choose_device(recipe.run.device, "run.device")
        torch.manual_seed(recipe.run.seed)
        samples = training_samples(recipe.data, recipe.run.seed)
        tokenizer = build_tokenizer_of(recipe, samples).to(device)
        model = Trained(tokenizer, recipe.trainer, recipe.optim.precision)
        state = State(recipe, model, device, samples.identity)
        losses = Losses(recipe.loss, state)
        seed_rank(recipe.run.seed, 0)
        with only_one(out) if this_rank() == 0 else nullcontext():
            found = newest_checkpoint(out / CHECKPOINTS, _say)
            if found is not None:
                state.resume(found)
                done = state.step >= recipe.optim.steps
                _say(f"nothing left to do after {found}" if done else f"going on from {found}")
            if this_rank() == 0:
                _write_recipe(out, recipe)
            log = _log_of(recipe, out, state.step) if this_rank() == 0 else None
            steps = range(state.step, recipe.optim.steps)
            batches = micro_batches(samples, share, steps, recipe.data.workers)
            try:
                count = share.count
                return _loop(recipe, out, count, samples, batches, state, losses, signals, log)
            finally:
                batches.close()
                if log is not None:
                    log.close()


def _loop(recipe, out, count, samples, batches, state, losses, signals, log) -> Result:
    optim, run = recipe.optim, recipe.run
    if optim.compile:
        state.model.tokenizer.encoder.compile()
        state.model.tokenizer.decoder.compile()
    model, discriminator = _distributed(state.model), _distributed(state.discriminator)
    saved = state.step if state.step else None
    for step in range(state.step, optim.steps):
        images, problem = _fetch(batches, count, state.device)
        unreadable, stop = any_rank(problem is not None, signals.received is not None)
        if unreadable or stop:
            if state.step != saved:
                _save(out, state, run.keep, log, final=True)
            if unreadable:
                raise ValueError(
                    f"{problem or 'another rank could not read an image'} (step {step + 1}; "
                    f"what is done is saved)"
                )
            return Result(state.step, state.skipped, signals.received or signals.default)
        state.undo.keep()
        set_rates(state, rate_factor(optim, step))
        adversarial = state.discriminator is not None and step >= recipe.loss.adversarial.start
        values, fakes = _generator_pass(model, losses, images, adversarial, state)
        if adversarial:
            values |= _discriminator_pass(discriminator, images, fakes, state)
        mean_over_ranks(state.network_buffers())  # before they go into the average
        _update(state, values)
        state.step = step + 1
        if log is not None:
            log.step()
        if state.step % run.log_every == 0 or state.step == optim.steps:
            _report(state, values, log)
        if run.sample_every and state.step % run.sample_every == 0 and log is not None:
            _save_samples(out, state, samples, log)
        if state.step % run.save_every == 0 and state.step < optim.steps:
            if _save(out, state, run.keep, log):
                saved = state.step
    _finish(out, state, run.keep, saved, log)
    return Result(state.step, state.skipped, None)


def _fetch(batches, count: int, device: torch.device) -> tuple[list[Tensor], str | None]:
    try:
        images = [next(batches) for _ in range(count)]
    except (RuntimeError, OSError) as error:  # a worker process died
        return [], one_line(error)
    problems = [batch for batch in images if isinstance(batch, Unreadable)]
    if problems:
        return [], str(problems[0])
    return [batch.to(device, non_blocking=True) for batch in images], None


def _generator_pass(model, losses, images, adversarial, state) -> tuple[dict, list[Tensor]]:
    """Gradients of encoder, quantizer and decoder over all micro-batches of a step."""
    if state.discriminator is not None:
        state.discriminator.requires_grad_(False)
    if state.optimizer is not None:
        state.optimizer.zero_grad(set_to_none=True)
    total: dict[str, Tensor] = {}
    fakes = []
    for number, batch in enumerate(images):
        with _synchronised(model, number == len(images) - 1):
            outcome = model(batch)
            loss, values = losses(outcome, batch, adversarial)
            if loss.requires_grad:  # not where an update rule alone moves the codes
                state.scaler.scale(loss / len(images)).backward()
        fakes.append(outcome.images.detach())
        for name, value in values.items():
            total[name] = total.get(name, 0) + value.detach().float() / len(images)
    return total, fakes


def _discriminator_pass(discriminator, images, fakes, state) -> dict[str, Tensor]:
    """Gradients of the discriminator on the same images and what the decoder made of them."""
    state.discriminator.requires_grad_(True)
    state.discriminator_optimizer.zero_grad(set_to_none=True)
    total = torch.zeros(3, device=state.device)
    for number, (batch, fake) in enumerate(zip(images, fakes, strict=True)):
        with _synchronised(discriminator, number == len(images) - 1):
            with state.model.autocast(batch):
                loss, logits = discriminator(batch, fake)
            state.scaler.scale(loss / len(images)).backward()
        total += torch.cat([loss.detach().float()[None], logits.float()]) / len(images)
    return {"discriminator_loss": total[0], "logit_real": total[1], "logit_fake": total[2]}


def _update(state: State, values: dict[str, Tensor]) -> None:
    """One step of all optimizers, or of none if something is not finite on a rank."""
    stacked = torch.stack([value.to(state.device) for value in values.values()])
    finite = bool(stacked.isfinite().all())
    overflow = False
    used = [o for o in state.optimizers() if any(p.grad is not None for p in _parameters(o))]
    for optimizer in used:
        state.scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(_parameters(optimizer), state.recipe.optim.clip or math.inf)
        overflow |= not bool(norm.isfinite())
    not_finite, overflow = any_rank(not finite, overflow)
    if state.scaler.is_enabled() and used:
        state.scaler.update()
    if not_finite or overflow:
        state.undo.restore()
        state.skipped += 1
        # In fp16 an overflow of gradients is what lowers the loss scale: it is no failure.
        if not_finite or state.scaler.get_scale() <= 1:
            state.streak += 1
        if state.streak >= MOST_SKIPPED:
            raise ValueError(
                f"loss or gradient was not finite in {MOST_SKIPPED} steps in a row, the last of "
                f"them step {state.step + 1}: {_described(values)}; the newest checkpoint is kept; "
                f"a smaller learning rate or finite inputs are needed"
            )
        return
    state.streak = 0
    for optimizer in used:
        optimizer.step()
    if state.average is not None:
        state.average.update(state.step)


class Losses:
    """The weighted sum that a recipe asks for, and its terms by name."""

    def __init__(self, settings: LossSettings, state: State) -> None:
        self.settings, self.state = settings, state
        self.lpips = None
        if settings.perceptual == "lpips":
            try:
                self.lpips = load_lpips(settings.lpips_file).to(state.device)
            except ValueError as error:
                raise ValueError(f"{error}; 'perceptual: none' trains without it") from None

    def __call__(self, outcome, images: Tensor, adversarial: bool) -> tuple[Tensor, dict]:
        s = self.settings
        loss = s.quantizer_weight * outcome.loss
        values = {"quantizer": outcome.loss, "error": outcome.error}
        if len(outcome.images):
            # Several branches of one image weigh the same (VAEVQ eqs. 3 and 4).
            wanted = images.repeat(len(outcome.images) // len(images), 1, 1, 1)
            values["pixel"] = sum(
                weight * PIXEL[name](outcome.images, wanted)
                for name, weight in s.pixel_terms.items()
            )
            values["psnr"] = _decibels(outcome.images.detach(), wanted)
            reconstruction = s.pixel_weight * values["pixel"]
            if self.lpips is not None:
                values["lpips"] = self.lpips(outcome.images, wanted).mean()
                reconstruction = reconstruction + s.perceptual_weight * values["lpips"]
            loss = loss + reconstruction
            if adversarial:
                with self.state.model.autocast(images):
                    generator_loss = self.state.discriminator.generator_loss(outcome.images)
                weight = torch.as_tensor(s.adversarial.weight, device=images.device)
                if s.adversarial.adaptive:
                    last = self.state.model.last_layer()
                    weight = weight * adaptive_weight(reconstruction, generator_loss, last)
                values |= {"generator_loss": generator_loss, "weight": weight}
                loss = loss + weight * generator_loss
        values["loss"] = loss
        return loss, values


def _decibels(images: Tensor, wanted: Tensor) -> Tensor:
    """Mean PSNR of images in [-1, 1], finite for equal ones: a step is skipped where it is not."""
    error = (images.clamp(-1, 1) - wanted).square().mean((1, 2, 3))
    return 10 * (4 / error.clamp(min=1e-10)).log10().mean()


def rate_factor(optim: OptimSettings, step: int) -> float:
    """Factor of the learning rates in step 0 .. steps - 1: up, constant, and down to `final`."""
    rise = min(1.0, (step + 1) / (optim.warmup + 1))
    begin = max(optim.hold * optim.steps, float(optim.warmup))
    gone = max(step - begin, 0.0) / max(optim.steps - begin, 1.0)
    if optim.shape == "constant":
        return rise
    fall = 1 - gone if optim.shape == "linear" else 0.5 * (1 + math.cos(math.pi * gone))
    return rise * (optim.final + (1 - optim.final) * fall)


def set_rates(state: State, factor: float) -> None:
    for optimizer in state.optimizers():
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor


def _distributed(module: nn.Module | None) -> nn.Module | None:
    if module is None or number_of_ranks() == 1:
        return module
    if not any(p.requires_grad for p in module.parameters()):
        return module
    # Buffers are brought together after each step. With find_unused_parameters the order in which
    # gradients are summed stays what it is in the first step, so that a resumed run has the same.
    return DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=True)


def _synchronised(module: nn.Module, last: bool):
    """Gradients are brought together in the last micro-batch alone."""
    distributed = isinstance(module, DistributedDataParallel)
    return nullcontext() if last or not distributed else module.no_sync()


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _report(state: State, values: dict[str, Tensor], log: Log | None) -> None:
    numbers = list(values.values())
    stacked = torch.stack([value.to(state.device, torch.float64) for value in numbers])
    mean_over_ranks([stacked])
    quantizer = state.model.tokenizer.quantizer
    shares = [usage.utilization for usage in usages(quantizer.usage()) if usage.tokens]
    quantizer.reset_usage()
    if log is None:
        return
    record = dict(zip(values, stacked.tolist(), strict=True))
    if shares:
        record["utilization"] = sum(shares) / len(shares)
    if state.optimizer is not None:
        record["lr"] = state.optimizer.param_groups[0]["lr"]
    if state.skipped:
        record["skipped"] = state.skipped
    log.write(state.step, record)


def _described(values: dict[str, Tensor]) -> str:
    return ", ".join(f"{name} {float(value):.4g}" for name, value in values.items())


def _save(out: Path, state: State, keep: int, log: Log | None, final: bool = False) -> bool:
    tensors = state.tensors() | random_state(state.device)
    try:
        save_checkpoint(out / CHECKPOINTS, state.step, tensors, state.described(), keep=keep)
    except CheckpointError as error:
        if final:
            raise CheckpointError(
                f"the last checkpoint, at step {state.step}, cannot be written: {error}; the "
                f"earlier ones are kept, and the same command goes on from them"
            ) from error
        if log is not None:
            log.say(
                f"no checkpoint at step {state.step}: {error}; the earlier ones are kept, "
                f"training goes on"
            )
        return False
    return True


def _save_samples(out: Path, state: State, samples, log: Log) -> None:
    tokenizer = state.model.tokenizer
    try:
        images = torch.stack([samples[n] for n in range(GRID_IMAGES)]).to(state.device)
        with state.averaged():
            reconstructions = tokenizer.reconstruct(images)
        path = out / SAMPLES / f"step-{state.step:08d}.png"
        save_grid(path, images, reconstructions)
        log.picture(state.step, path)
    except (OSError, ValueError) as error:  # the disk is full, or an image has gone
        log.say(f"no picture at step {state.step}: {error}; training goes on")


def _finish(out: Path, state: State, keep: int, saved: int | None, log: Log | None) -> None:
    if state.step != saved:
        _save(out, state, keep, log, final=True)
    if this_rank() == 0:
        with state.averaged():
            state.model.tokenizer.save_pretrained(out / TOKENIZER)


def _write_recipe(out: Path, recipe: Recipe) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / RECIPE, to_yaml(recipe).encode("utf-8"))


def _log_of(recipe: Recipe, out: Path, start: int) -> Log:
    return Log(out, start, recipe.optim.steps, recipe.data.batch, recipe.log.tensorboard)


def _say(text: str) -> None:
    if this_rank() == 0:
        say(text)
