"""The two pulls, alone and with the straight-through value, and their derivatives."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import vqkern
from vqkern.quantizers.entropy import _bit_entropies_backward_op, _bit_entropies_op
from vqkern.quantizers.estimators import straight_through
from vqkern.quantizers.joint_index import _join_index_op
from vqkern.quantizers.pulls import (
    _masked_mse_op,
    _pulled_through_op,
    _slopes_op,
    masked_mse,
    pulled_through,
    two_pulls,
)


def some_rows(dtype=torch.float32):
    z = torch.randn(40, 3, dtype=dtype, requires_grad=True)
    codes = torch.randn(40, 3, dtype=dtype, requires_grad=True)
    return z, codes, torch.rand(40) > 0.3


def test_two_pulls_are_two_losses():
    z, codes, valid = some_rows()
    loss = two_pulls(z, codes, valid, 0.25, 2.0)
    separate = 0.25 * masked_mse(z, codes.detach(), valid)
    separate = separate + 2 * masked_mse(z.detach(), codes, valid)
    torch.testing.assert_close(loss, separate)
    pairs = (torch.autograd.grad(x, (z, codes)) for x in (loss, separate))
    for one, other in zip(*pairs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("used", ["both", "quantized", "loss"])
def test_pulled_through_is_the_estimate_and_the_pulls(dtype, used):
    z, codes, valid = some_rows(dtype)
    upstream = torch.randn(40, 3).to(dtype)
    weights = 0.25, 2.0

    def gradients(quantized, loss):
        outputs = {"both": (quantized, loss), "quantized": (quantized,), "loss": (loss,)}[used]
        slopes = [upstream if output.dim() else torch.tensor(3.0) for output in outputs]
        return torch.autograd.grad(outputs, (z, codes), slopes, allow_unused=True)

    ours = pulled_through(z, codes, valid, *weights)
    apart = straight_through(z, codes.detach()), two_pulls(z, codes, valid, *weights)
    assert torch.equal(ours[0], apart[0]) and ours[0].dtype == dtype
    assert torch.equal(ours[1], apart[1])
    for one, other in zip(gradients(*ours), gradients(*apart), strict=True):
        assert (one is None) == (other is None) and (one is None or one.dtype == dtype)
        assert one is None or torch.allclose(one, other, rtol=1e-6, atol=1e-7)


def test_rows_that_are_not_valid_pass_the_gradient_and_add_none():
    z, codes, valid = some_rows()
    with torch.no_grad():
        codes[~valid] = torch.nan
    quantized, loss = pulled_through(z, codes, valid, 0.25, 1.0)
    assert bool(quantized[~valid].isnan().all()) and bool(loss.isfinite())
    upstream = torch.randn(40, 3)
    slopes = torch.autograd.grad((quantized, loss), (z, codes), (upstream, torch.ones(())))
    assert torch.equal(slopes[0][~valid], upstream[~valid])
    assert not slopes[1][~valid].any() and bool(slopes[1][valid].any())


@pytest.mark.parametrize("loss", [masked_mse, lambda *rows: pulled_through(*rows, 1.0, 1.0)[1]])
@pytest.mark.parametrize("by", ["z", "codes"])
@pytest.mark.parametrize("factor", ["constant", "of z"])
def test_a_second_derivative_raises(loss, by, factor):
    z, codes, valid = some_rows()
    wanted = z if by == "z" else codes
    value = loss(z, codes, valid) * (z.mean() if factor == "of z" else 1.0)
    (slope,) = torch.autograd.grad(value, wanted, create_graph=True)
    # Were the slope taken for a constant, the sum would still have the derivative of the others.
    with pytest.raises(RuntimeError, match="pull_slopes.*no autograd formula"):
        torch.autograd.grad(slope.square().sum() + z.sum() + codes.sum(), wanted)


class Watched(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.seen.add(function.name())
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("name", ["vanilla_vp2", "ema", "lfq", "bsq"])
def test_what_is_watched_is_an_operator_and_has_the_same_bits(name):
    quantizer = vqkern.build_quantizer(name, dim=8, codebook_size=256)
    start = {key: value.clone() for key, value in quantizer.state_dict().items()}
    z = torch.randn(200, 8)

    def step():
        quantizer.load_state_dict(start)
        latents = z.clone().requires_grad_()
        result = quantizer(latents)
        (result.quantized.sum() + result.loss).backward()
        return result.quantized.detach(), result.loss.detach(), latents.grad

    plain = step()
    with Watched() as watched:
        seen = step()
    for one, other in zip(plain, seen, strict=True):
        assert torch.equal(one, other)
    wanted = {
        "vanilla_vp2": ("pulled_through", "pull_slopes", "take_codes"),
        "ema": ("masked_mse", "pull_slopes", "take_codes"),
        "lfq": ("pulled_through", "pull_slopes", "bit_entropies"),
        "bsq": ("on_sphere", "bit_entropies"),
    }
    expected = {f"vqkern::{op}" for op in wanted[name]}
    assert {name.split(".")[0] for name in watched.seen} >= expected


def test_they_are_proper_ops():
    z, codes, valid = some_rows()
    plain = z.detach(), codes.detach(), valid
    one, hits = torch.ones(()), torch.zeros(4).long()
    a = torch.randn(6, 4, requires_grad=True)
    kept = torch.rand(6) > 0.3
    means = _bit_entropies_op(a, kept, 3, 0.0)[2].detach()
    for op, arguments in (
        (_masked_mse_op, (z, codes, valid, 1.0, 1.0, 1.0)),
        (_pulled_through_op, (z, codes, valid, 0.25, 1.0)),
        (_slopes_op, (one, one, *plain, 0.25, 1.0, torch.randn(40, 3))),
        (_slopes_op, (one, one, *plain, None, 1.0, None)),
        (_bit_entropies_op, (a, kept, 3, 0.0)),
        (_bit_entropies_op, (a, kept, 1, 0.0)),
        (_bit_entropies_backward_op, (one, one, a.detach(), kept, means, 3, 0.0)),
        (_join_index_op, (torch.randint(0, 2, (5, 3)), [2, 2, 2])),
        (torch.ops.vqkern.sign_index, (torch.randn(6, 4),)),
        (torch.ops.vqkern.sign_values, (torch.tensor([3, 5]), 4, 0.5)),
        (
            torch.ops.vqkern.count_codes,
            (torch.tensor([3, -1]), torch.ones(2, dtype=torch.bool), hits, hits.sum()),
        ),
    ):
        torch.library.opcheck(op, arguments)
