"""The grid on a CUDA device: indices are the CPU's, autocast rounds nothing, one graph compiles."""

import copy

import pytest
import torch
from support import grid_names, grid_sizes

import vqkern

pytestmark = pytest.mark.gpu


def build(name):
    torch.manual_seed(1)
    return vqkern.build_quantizer(name, **grid_sizes(name), channel_dim=1)


@pytest.mark.parametrize("name", grid_names())
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_on_cuda(name, dtype):
    on_cpu = build(name).eval()
    q = copy.deepcopy(on_cpu).cuda()
    z = torch.randn(3, on_cpu.in_channels, 4, 4)
    with torch.autocast("cuda", dtype=dtype):
        result = q(z.cuda())
        assert torch.equal(q.decode(q.encode(z.cuda())), result.quantized)
    if name.partition("_")[0] in ("vanilla", "ema", "online", "mmd", "wasserstein"):
        assert torch.equal(result.index.cpu(), on_cpu.encode(z)) or name.endswith(("_var", "_rq"))
    q.train()
    leaf = z.cuda().requires_grad_()
    with torch.autocast("cuda", dtype=dtype):
        quantized, _, loss = q(leaf)
        (quantized.float().square().mean() + loss).backward()
    assert loss.dtype == torch.float32 and bool(leaf.grad.isfinite().all())


@pytest.mark.parametrize("name", ["vanilla", "ema", "fvq", "vanilla_vp2", "lfq"])
def test_compiles_in_one_graph_on_cuda(name):
    q = build(name).cuda()
    compiled = torch.compile(copy.deepcopy(q), fullgraph=True)
    z = torch.randn(3, q.in_channels, 4, 4, device="cuda", requires_grad=True)
    assert torch.equal(compiled(z).index, q(z).index)


def test_index_backpropagation_on_cuda():
    from vqkern.ops.index_backprop import index_backprop

    z, codes = torch.randn(300, 8).double(), torch.randn(90, 8).double()
    index = torch.cdist(z, codes).argmin(1)
    gradients = []
    for device in ("cpu", "cuda"):
        leaves = [t.to(device).requires_grad_() for t in (z, codes)]
        out = index_backprop(*leaves, index.to(device))
        gradients.append([g.cpu() for g in torch.autograd.grad(out.square().sum(), leaves)])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
