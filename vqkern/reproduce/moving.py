"""Codes that move towards synthetic features: the loop behind `gaussian-shift` and `non-gaussian`.

The parts are this package's own (parametrisations, update rules, alignments, optimiser), put
together as `VectorQuantizer` does it; only the codebook loss is taken by its closed form, which
spares autograd the [N, D] features: d/dc_k of mean_i |z_i - c(i)|^2 is 2/N (n_k c_k - S_k).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..ops import code_sums, gaussian_w2, nearest_code
from ..quantizers import EMA, MMD, Gradient, Linear, Online, Revival, Table, Wasserstein
from ..training.code_optimizer import code_optimizer
from ..training.stages import linear_decay, set_learning_rates
from .draws import Draws, Features, Numbered
from .frame import Row, State, Work


@dataclass(frozen=True)
class Moving:
    """How codes are moved and measured.

    Attributes:
        codes, dim: K and D; the codes start at N(0, I).
        features: N, drawn anew each step.
        steps: optimiser steps.
        test_features: on which error, utilization and perplexity are counted, drawn apart.
        our_features: the same for our own settings, which need fewer.
        lr, power: rate of our optimiser at step t, lr (1 - t / steps)^power.
        fade: share of the steps over which the weight of our alignments falls linearly to 0.
        mmd_points: features and codes in the MMD term of a step, drawn anew each time.
        revive_after: steps without use after which our settings set a code on a feature.
        seed: of everything that `draws.Numbered` draws.
    """

    codes: int = 16384
    dim: int = 8
    features: int = 50_000
    steps: int = 2000
    test_features: int = 200_000
    our_features: int = 20_000
    lr: float = 0.05
    power: float = 2.0
    fade: float = 0.25
    mmd_points: int = 2048
    revive_after: int = 20
    seed: int = 0


class Rule(NamedTuple):
    """How one method moves its codes.

    Attributes:
        codebook_weight: of the codebook loss, summed over channels, mean over features; 0: none.
        alignment: added to it, or None.
        optimizer: what takes the gradient, or None.
        scheduled, fading: whether its rate falls, and whether the alignment does.
    """

    parametrisation: nn.Module
    update: nn.Module
    codebook_weight: float
    alignment: Callable | None
    optimizer: torch.optim.Optimizer | None
    scheduled: bool = False
    fading: bool = False


def _sgd(codes: nn.Module, lr: float) -> torch.optim.Optimizer:
    moved = [p for p in codes.parameters() if p.requires_grad]
    return torch.optim.SGD(moved, lr=lr, momentum=0.9)


def _vanilla(table: Table, settings: Moving) -> Rule:
    return Rule(table, Gradient(), 1.0, None, _sgd(table, 1.0))


def _ema(table: Table, settings: Moving) -> Rule:
    rule = EMA(0.9)
    rule.attach(table)
    # The published runs start from counts of zero: a code's first features place it.
    rule.count.zero_()
    rule.total.zero_()
    return Rule(table, rule, 0.0, None, None)


def _online(table: Table, settings: Moving) -> Rule:
    rule = Online(Gradient(), decay=0.99, anchor="near")
    rule.attach(table)
    return Rule(table, rule, 1.0, None, _sgd(table, 3.0))


def _linear(table: Table, settings: Moving) -> Rule:
    codes = Linear(table.requires_grad_(False))
    return Rule(codes, Gradient(), 1.0, None, _sgd(codes, 0.02))


def _wasserstein(
    table: Table, settings: Moving, lr: float = 3.0, codebook_weight: float = 0.1
) -> Rule:
    alignment = Wasserstein(weight=10.0, squared=False)
    return Rule(table, Gradient(), codebook_weight, alignment, _sgd(table, lr))


# From four times the mean squared distance, which sees codes a whole data set away, down to the
# distance between neighbouring codes, in factors of four.
LADDER = tuple(4.0**power for power in range(1, -6, -1))


def _ours(table: Table, settings: Moving, alignment: Callable | None) -> Rule:
    rule = Revival(Gradient(), after=settings.revive_after, seed=settings.seed)
    rule.attach(table)
    optimizer = code_optimizer(table, lr=settings.lr)
    return Rule(table, rule, 1.0, alignment, optimizer, scheduled=True, fading=True)


def _ours_none(table: Table, settings: Moving) -> Rule:
    return _ours(table, settings, None)


def _ours_wasserstein(table: Table, settings: Moving) -> Rule:
    return _ours(table, settings, Wasserstein(weight=1.0))


def _ours_mmd(table: Table, settings: Moving) -> Rule:
    limits = {"max_features": settings.mmd_points, "max_codes": settings.mmd_points}
    return _ours(table, settings, MMD(weight=1.0, multiples=LADDER, **limits))


def _wide_mmd(table: Table, settings: Moving) -> Rule:
    limits = {"max_features": settings.mmd_points, "max_codes": settings.mmd_points}
    alignment = MMD(weight=1.0, multiples=(0.25, 0.5, 1.0, 2.0, 4.0), **limits)
    optimizer = code_optimizer(table, lr=settings.lr)
    return Rule(table, Gradient(), 1.0, alignment, optimizer, scheduled=True)


METHODS: dict[str, Callable[[Table, Moving], Rule]] = {
    "vanilla": _vanilla,
    "ema": _ema,
    "online": _online,
    "linear": _linear,
    "wasserstein": _wasserstein,
    # Of runs whose logs are published: see gaussian_shift.py.
    "wasserstein-2-1": partial(_wasserstein, lr=2.0, codebook_weight=1.0),
    "wasserstein-3-.5": partial(_wasserstein, codebook_weight=0.5),
    "wide-mmd": _wide_mmd,
    "ours-none": _ours_none,
    "ours-wasserstein": _ours_wasserstein,
    "ours-mmd": _ours_mmd,
}


@torch.no_grad()
def move_codes(
    method: str, features: Features, settings: Moving, work: Work, draws: Draws | None = None
) -> Row:
    """Moves codes by one method, from the last saved state if there is one, and measures them.

    `draws` are the random numbers, by default `Numbered` ones.
    """
    s = settings
    draws = Numbered(s) if draws is None else draws
    rule = METHODS[method](draws.table(), s)
    drawn = s.our_features if rule.scheduled else s.features
    valid = torch.ones(drawn, dtype=torch.bool)
    first = 0
    if work.resumed is not None:
        first = load_state(rule, work.resumed)
        draws.load_state({k: v for k, v in work.resumed.items() if k.startswith("draws.")})
        work.advance(first)
    for step in range(first, s.steps):
        take_step(rule, draws.step(features, drawn, step), valid, step, s)
        work.advance(1)
        work.offer(lambda done=step + 1: state_of(rule, done) | draws.state())
    return measure(draws.test(features), rule.parametrisation())


def take_step(rule: Rule, z: Tensor, valid: Tensor, step: int, settings: Moving) -> None:
    """One step of training on features z [N, D]."""
    with torch.enable_grad():
        codes = rule.parametrisation()
    places = codes.detach()
    index = nearest_code(z, places).index
    if rule.optimizer is None:
        rule.update.step(z, index)
        return
    gradient = rule.codebook_weight * codebook_gradient(z, index, places)
    faded = alignment_share(step, settings) if rule.fading else 1.0
    if rule.alignment is not None and faded > 0:
        with torch.enable_grad():
            leaf = places.clone().requires_grad_()
            loss = faded * rule.alignment(z, valid, leaf)
        gradient += torch.autograd.grad(loss, leaf)[0]
    rule.optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(codes, gradient)
    rule.update.step(z, index)
    if rule.scheduled:
        decay = linear_decay(step, settings.steps) ** settings.power
        set_learning_rates(rule.optimizer, decay)
    rule.optimizer.step()


def codebook_gradient(z: Tensor, index: Tensor, codes: Tensor) -> Tensor:
    """Gradient of mean_i |z_i - c(i)|^2, summed over channels, with respect to codes [K, D]."""
    count, total = code_sums(z, index, len(codes))
    return (count[:, None] * codes - total).mul_(2 / len(z))


def alignment_share(step: int, settings: Moving) -> float:
    """The factor of the alignment's weight at a step: from 1 to 0 over `fade` of the steps."""
    if settings.fade == 0:
        return 0.0
    return max(0.0, 1 - step / (settings.fade * settings.steps))


@torch.no_grad()
def measure(test: Tensor, codes: Tensor) -> Row:
    """Error (summed over channels), utilization, perplexity and unsquared Gaussian W2."""
    index, distance = nearest_code(test, codes)
    share = torch.bincount(index, minlength=len(codes)).double() / len(test)
    used = share[share > 0]
    return {
        "error": float(distance.double().mean()),
        "utilization": len(used) / len(codes),
        "perplexity": float(torch.exp(-(used * used.log()).sum())),
        "w2": float(gaussian_w2(test, codes).clamp_min(0).sqrt()),
    }


def state_of(rule: Rule, done: int) -> State:
    """All that a method must know after `done` steps, by name."""
    state = {"done": torch.tensor(done)}
    for part in ("parametrisation", "update"):
        for name, tensor in getattr(rule, part).state_dict().items():
            state[f"{part}.{name}"] = tensor
    if rule.optimizer is not None:
        for number, kept in rule.optimizer.state_dict()["state"].items():
            for name, tensor in kept.items():
                # SGD keeps None in place of a momentum that is not there yet.
                if tensor is not None:
                    state[f"optimizer.{number}.{name}"] = tensor
    return state


def load_state(rule: Rule, state: State) -> int:
    """Puts a method back where `state_of` found it; the steps that it had done."""
    for part in ("parametrisation", "update"):
        prefix = f"{part}."
        mine = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        getattr(rule, part).load_state_dict(mine)
    if rule.optimizer is not None:
        kept: dict[int, dict[str, Tensor]] = {}
        for name, tensor in state.items():
            if name.startswith("optimizer."):
                _, number, key = name.split(".", 2)
                kept.setdefault(int(number), {})[key] = tensor
        rule.optimizer.load_state_dict({**rule.optimizer.state_dict(), "state": kept})
    return int(state["done"])
