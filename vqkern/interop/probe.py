"""Whether a module still computes the same once taken over, seen on copies of it."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from .adapter import Adapter, take_over

ITEMS = 64
# Float32 distances pick another code than exact arithmetic for some vectors, but not for many.
LEAST_AGREEMENT = 7 / 8
TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 5e-2}


def difference(module: nn.Module, adapter: type[Adapter]) -> str | None:
    """Where `module` taken over by `adapter` differs from its own code; None: nowhere.

    Both run on 64 random vectors: in eval mode their outputs must agree, but for an eighth of the
    vectors, where rounding may pick another code; on the vectors where they do, a training step
    must give the same outputs, gradients and state. The module itself, its hooks, the random state
    and the gradient mode are left as they are.
    """
    tensors = (*module.parameters(), *module.buffers())
    if any(tensor.is_meta for tensor in tensors):
        return "its tensors are on the meta device"
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        return f"its tensors are on several devices, {', '.join(sorted(map(str, devices)))}"
    (device,) = devices
    dtype = next(t.dtype for t in tensors if t.is_floating_point())
    cuda = [device] if device.type == "cuda" else []
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        torch.random.fork_rng(cuda),
    ):
        generator = torch.Generator().manual_seed(0)
        theirs, ours = _twin(module), _twin(module)
        for twin in (theirs, ours):
            torch.manual_seed(0)
            adapter.prepare(twin)
        take_over(ours, adapter)
        x = adapter.example(theirs, ITEMS, generator).detach()
        tolerance = TOLERANCE.get(dtype, 1e-4)
        return _compare(theirs, ours, adapter, x, tolerance)


def _compare(
    theirs: nn.Module, ours: nn.Module, adapter: type[Adapter], x: Tensor, tolerance: float
) -> str | None:
    try:
        expected = _outputs(theirs, adapter, x)
    except Exception as error:
        return f"its own code fails on a probe: {_first_line(error)}"
    try:
        found = _outputs(ours, adapter, x)
    except Exception as error:
        return f"a probe fails: {_first_line(error)}"
    if not expected or len(expected) != len(found):
        return f"it returns {len(expected)} values, not {len(found)}"
    same = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for a, b in zip(expected, found, strict=True):
        if _shape(a) != _shape(b):
            return f"it returns {_shape(a)}, not {_shape(b)}"
        if isinstance(a, Tensor) and a.dim() and a.numel() % len(x) == 0:
            error = (a.detach().double() - b.detach().double()).reshape(len(x), -1).norm(dim=1)
            scale = a.detach().double().reshape(len(x), -1).norm(dim=1)
            same &= (error <= tolerance * scale) | (error == 0)
    agree = int(same.sum())
    if agree < LEAST_AGREEMENT * len(x):
        return f"its outputs are not the nearest codes for {len(x) - agree} of {len(x)} inputs"
    return _compare_steps(theirs, ours, adapter, x[same], tolerance)


def _compare_steps(
    theirs: nn.Module, ours: nn.Module, adapter: type[Adapter], x: Tensor, tolerance: float
) -> str | None:
    try:
        expected = _step(theirs, adapter, x)
    except Exception as error:
        return f"its own training step fails on a probe: {_first_line(error)}"
    try:
        found = _step(ours, adapter, x)
    except Exception as error:
        return f"a training step fails on a probe: {_first_line(error)}"
    for name, a in expected.items():
        b = found.get(name)
        if _shape(a) != _shape(b):
            return f"in training its {name} is {_shape(a)}, not {_shape(b)}"
        if not _close(a, b, tolerance):
            return f"in training its {name} differs"
    return None


def _outputs(twin: nn.Module, adapter: type[Adapter], x: Tensor) -> list[Any]:
    torch.manual_seed(0)
    twin.eval()
    with torch.no_grad():
        return list(_leaves(adapter.call(twin, x)))


def _step(twin: nn.Module, adapter: type[Adapter], x: Tensor) -> dict[str, Any]:
    """Outputs, gradients and state of a step in training mode, by name."""
    torch.manual_seed(0)
    twin.train()
    leaf = x.clone().requires_grad_()
    outputs = list(_leaves(adapter.call(twin, leaf)))
    total = leaf.new_zeros((), dtype=torch.float64)
    for output in outputs:
        if isinstance(output, Tensor) and output.requires_grad:
            places = torch.arange(output.numel(), device=x.device).reshape(output.shape)
            total = total + (output.double() * torch.cos(places.double())).sum()
    seen: dict[str, Any] = {f"output {number}": value for number, value in enumerate(outputs)}
    if total.requires_grad:
        total.backward()
    seen["gradient of the input"] = _gradient(leaf)
    for name, parameter in twin.named_parameters():
        seen[f"gradient of {name}"] = _gradient(parameter)
        seen[f"parameter {name}"] = parameter
    return seen | {f"buffer {name}": buffer for name, buffer in twin.named_buffers()}


def _gradient(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad


def _leaves(value: Any):
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from _leaves(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from _leaves(part)
    else:
        yield value


def _shape(value: Any) -> str:
    if isinstance(value, Tensor):
        kind = "floats" if value.is_floating_point() else str(value.dtype).removeprefix("torch.")
        return f"{kind} {list(value.shape)}"
    return "a number" if isinstance(value, (int, float)) else type(value).__name__


def _close(a: Any, b: Any, tolerance: float) -> bool:
    if not isinstance(a, Tensor):
        return a == b or (isinstance(a, (int, float)) and abs(a - b) <= tolerance * abs(a))
    a, b = a.detach().double(), b.detach().double()
    return bool((a - b).norm() <= tolerance * a.norm() + 1e-10)


def _twin(module: nn.Module) -> nn.Module:
    """A copy without hooks; a tensor that belongs to a graph is copied too."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        copied = parameter.detach().clone()
        memo[id(parameter)] = nn.Parameter(copied, requires_grad=parameter.requires_grad)
    for buffer in module.buffers():
        memo.setdefault(id(buffer), buffer.detach().clone())
    for part in module.modules():
        for hooks in hook_dicts(part):
            memo[id(hooks)] = OrderedDict()
    return copy.deepcopy(module, memo)


def hook_dicts(module: nn.Module) -> list[dict]:
    """The dictionaries in which torch keeps a module's hooks."""
    state = module.__dict__.items()
    return [v for name, v in state if name.endswith("_hooks") and isinstance(v, dict)]


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:120]}" if text else type(error).__name__
