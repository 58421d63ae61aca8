"""torch.func over the operators: gradients in reverse mode, an error instead of zeros in forward
mode."""

from functools import partial

import pytest
import torch
from support import HAS_NATIVE
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

import vqkern
from vqkern.ops import Moments, moments
from vqkern.ops.gaussian_w2.api import _square_root
from vqkern.ops.index_backprop import index_backprop
from vqkern.ops.take_codes import take_codes
from vqkern.quantizers.entropy import bit_entropies
from vqkern.quantizers.pulls import pulled_through, two_pulls
from vqkern.quantizers.rounding import round_channels
from vqkern.quantizers.sphere import on_sphere

Z = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
CODES = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
INDEX = torch.tensor([0, 3, 3, 8, 1, 0])
ALL = torch.ones(6, dtype=torch.bool)
TERMS = torch.tensor([2.0, 0.5, 0.1, 2.0, 4.0])[:, None].expand(5, 4)


def fitted(z):
    return Moments(torch.tensor(6.0).double(), z.double().mean(0), z.double().T.cov())


# By operator, of z [6, 4] alone; each calls the operator once and has a gradient.
OF_Z = {
    "nearest_code": lambda z: vqkern.nearest_code(z, CODES).distance,
    "code_sums": lambda z: vqkern.code_sums(z, INDEX, 9).total,
    "take_codes": lambda z: take_codes(z, INDEX.clamp_max(5)),
    "index_backprop": lambda z: index_backprop(z, CODES, INDEX) * CODES[:6],
    "squared_mmd": lambda z: vqkern.squared_mmd(z, CODES, bandwidths=[1.0, 2.0]),
    "gaussian_w2_of_points": lambda z: vqkern.gaussian_w2(z, CODES),
    "gaussian_w2_of_points, of moments": lambda z: vqkern.prior_w2(z),
    "gaussian_w2": lambda z: vqkern.gaussian_w2(fitted(z), moments(CODES)),
    "moments": lambda z: moments(z).covariance,
    "square_root": lambda z: _square_root((z.T.double() @ z.double())[None])[0],
    "masked_mse": lambda z: two_pulls(z, CODES[:6], ALL, 0.25, 1.0),
    "pulled_through": lambda z: pulled_through(z, CODES[:6], ALL, 0.25, 1.0)[1],
    "bit_entropies": lambda z: torch.stack(bit_entropies(z, ALL, 2)),
    "round_channels": lambda z: round_channels(z, TERMS),
    "on_sphere": on_sphere,
}
of_z = pytest.mark.parametrize("name", OF_Z)
pytestmark = [
    pytest.mark.skipif(not HAS_NATIVE, reason="the native module is not built"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.jit"),
]


def scalar(name):
    """Weighted, so that every output's gradient is another."""

    def function(z):
        value = OF_Z[name](z)
        return (value * torch.arange(1.0, 1 + value.numel()).reshape(value.shape)).sum()

    return function


def by_autograd(function, z):
    z = z.clone().requires_grad_()
    return torch.autograd.grad(function(z), z)[0]


@of_z
def test_reverse_mode(name):
    want = by_autograd(scalar(name), Z)
    assert want.abs().sum() > 0
    assert torch.equal(grad(scalar(name))(Z), want)
    (rows,) = torch.func.vjp(scalar(name), Z)[1](torch.ones(()))
    assert torch.equal(rows, want)


@of_z
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_rows_of_a_jacobian_and_gradients_of_a_batch(name):
    value = OF_Z[name](Z)
    got = jacrev(OF_Z[name])(Z).reshape(-1, *Z.shape)
    for i, row in enumerate(got):
        torch.testing.assert_close(row, by_autograd(lambda z: OF_Z[name](z).flatten()[i], Z))  # noqa: B023
    assert len(got) == value.numel()
    batch = torch.stack([Z, Z * 2 + 1])
    each = torch.stack([by_autograd(scalar(name), z) for z in batch])
    torch.testing.assert_close(vmap(grad(scalar(name)))(batch), each)


@of_z
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_around_a_batch(name):
    """The gradient is asked for where the operator sees a batch that knows nothing of it."""
    batch = torch.stack([Z, Z * 2 + 1])
    each = torch.stack([by_autograd(scalar(name), z) for z in batch])
    torch.testing.assert_close(grad(lambda z: vmap(scalar(name))(z).sum())(batch), each)
    torch.testing.assert_close(by_autograd(lambda z: vmap(scalar(name))(z).sum(), batch), each)


@of_z
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_a_batch_of_gradients(name):
    z = Z.clone().requires_grad_()
    value = OF_Z[name](z)
    rows = torch.stack([torch.ones_like(value), torch.full_like(value, 2.0)])
    (got,) = torch.autograd.grad(value, z, rows, is_grads_batched=True)
    want = by_autograd(lambda z: OF_Z[name](z).sum(), Z)
    torch.testing.assert_close(got, torch.stack([want, 2 * want]))


@of_z
def test_forward_mode_says_that_it_is_not_there(name):
    operator = name.split(",")[0]
    with pytest.raises(NotImplementedError, match=f"^{operator}: has no forward-mode"):
        jvp(OF_Z[name], (Z,), (Z,))
    with pytest.raises(NotImplementedError, match=f"^{operator}: has no forward-mode"):
        jacfwd(OF_Z[name])(Z)
    for z in (Z, Z.clone().requires_grad_()):
        with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=operator):
            OF_Z[name](forward_ad.make_dual(z, Z))


@of_z
def test_without_a_tangent_forward_mode_does_not_matter(name):
    with forward_ad.dual_level():
        assert torch.equal(OF_Z[name](Z), OF_Z[name](Z))
        torch.testing.assert_close(by_autograd(scalar(name), Z), grad(scalar(name))(Z))


@of_z
def test_second_derivatives_raise_where_there_are_any(name):
    if name in ("code_sums", "take_codes"):
        assert not grad(lambda z: grad(scalar(name))(z).square().sum())(Z).any()
        return
    with pytest.raises(NotImplementedError):
        hessian(scalar(name))(Z)
    with pytest.raises((NotImplementedError, RuntimeError)):
        grad(lambda z: grad(scalar(name))(z).square().sum())(Z)


OF_TWO = {
    "squared_mmd": lambda x, y: vqkern.squared_mmd(x, y, bandwidths=[1.0, 2.0]),
    "gaussian_w2": vqkern.gaussian_w2,
    "of moments and points": lambda x, y: vqkern.gaussian_w2(fitted(x), y),
    "of points and moments": lambda x, y: vqkern.gaussian_w2(x, fitted(y)),
    "of moments": lambda x, y: vqkern.gaussian_w2(fitted(x), fitted(y)),
    "of means": lambda x, y: vqkern.gaussian_w2(mean_alone(x), mean_alone(y)),
}


def mean_alone(z):
    return fitted(z)._replace(covariance=torch.eye(4).double())


@pytest.mark.parametrize("name", OF_TWO)
def test_mixed_second_derivatives_raise(name):
    function, y = OF_TWO[name], CODES[:6].clone()
    for first, second in ((0, 1), (1, 0), (0, 0), (1, 1)):

        def slope(of, first=first, second=second):
            points = [of, y] if second == 0 else [Z, of]
            return grad(function, argnums=first)(*points).square().sum()

        of = Z if second == 0 else y
        with pytest.raises((NotImplementedError, RuntimeError)):
            grad(slope)(of)


@pytest.mark.parametrize("around", [True, False], ids=["jvp compiled", "compiled, then jvp"])
@of_z
def test_forward_mode_and_compile(name, around):
    torch._dynamo.reset()
    if around:
        function = torch.compile(lambda z: jvp(OF_Z[name], (z,), (z,))[1], backend="eager")
    else:
        function = partial(jvp, torch.compile(OF_Z[name], backend="eager"), tangents=(Z,))
    with pytest.raises(Exception, match="forward-mode"):
        function(Z if around else (Z,))


@pytest.mark.parametrize("name", ["vanilla", "wasserstein_vp2", "vanilla_sphere", "fsq", "lfq"])
def test_a_layer(name):
    layer = vqkern.build_quantizer(name, dim=4, codebook_size=16)

    def function(z):
        return layer(z).loss + (layer(z).quantized * Z).sum()

    want = by_autograd(function, Z)
    before = str(layer.usage())
    assert torch.equal(grad(function)(Z), want) and want.abs().sum() > 0
    assert str(layer.usage()) != before
    with pytest.raises(NotImplementedError, match="forward-mode"):
        jvp(function, (Z,), (Z,))


@pytest.mark.parametrize("name", ["vanilla", "vanilla_rq", "vanilla_sphere", "fsq", "lfq", "bsq"])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_a_batch_of_calls_of_a_layer(name):
    layer, other = (vqkern.build_quantizer(name, dim=4, codebook_size=16) for _ in range(2))
    other.load_state_dict(layer.state_dict())
    batch = torch.stack([Z, Z * 2 + 1])

    def function(z):
        result = layer(z)
        return result.loss + (result.quantized * Z).sum()

    got = vmap(grad(function))(batch)
    each = [other(z) for z in batch]
    assert str(layer.usage()) == str(other.usage())
    torch.testing.assert_close(got, torch.stack([by_autograd(function, z) for z in batch]))
    quantized = vmap(lambda z: layer(z).quantized)(batch)
    torch.testing.assert_close(quantized, torch.stack([result.quantized for result in each]))
