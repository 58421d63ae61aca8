"""Tensors that no kernel can read are refused by every public function, by name."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

import vqkern
from vqkern import ops

Z, CODES = torch.randn(6, 4), torch.randn(8, 4)
INDEX = torch.arange(6)

CALLS = {
    "nearest_code: z": lambda odd: vqkern.nearest_code(odd(Z), CODES),
    "nearest_code: codes": lambda odd: vqkern.nearest_code(Z, odd(CODES)),
    "code_sums: z": lambda odd: vqkern.code_sums(odd(Z), INDEX, 8),
    "squared_mmd: y": lambda odd: vqkern.squared_mmd(Z, odd(CODES)),
    "gaussian_w2: x": lambda odd: vqkern.gaussian_w2(odd(Z), CODES),
    "prior_w2: y": lambda odd: vqkern.prior_w2(odd(CODES)),
    "covariance_sqrt: y": lambda odd: vqkern.covariance_sqrt(odd(CODES)),
    "moments: x": lambda odd: ops.moments(odd(Z)),
    "VectorQuantizer: z": lambda odd: vqkern.build_quantizer("ema", dim=4, codebook_size=8)(odd(Z)),
}


def _nested(layout: torch.layout):
    return lambda t: torch.nested.nested_tensor([t[:2], t[2:]], layout=layout)


ODD = {
    "sparse": (Tensor.to_sparse, "dense tensor, got layout torch.sparse_coo.*to_dense"),
    "csr": (Tensor.to_sparse_csr, "dense tensor, got layout torch.sparse_csr.*to_dense"),
    "mkldnn": (Tensor.to_mkldnn, "dense tensor, got layout torch._mkldnn.*to_dense"),
    "nested": (_nested(torch.strided), r"dense tensor, got a nested one.*values\(\)"),
    "jagged": (_nested(torch.jagged), r"dense tensor, got a nested one.*values\(\)"),
    "complex": (lambda t: t.to(torch.complex64), "floating point.*complex64"),
    "float8": (lambda t: t.to(torch.float8_e4m3fn), "floating point.*float8_e4m3fn"),
}


@pytest.mark.parametrize("argument", CALLS)
@pytest.mark.parametrize("kind", ODD)
def test_tensors_that_no_kernel_can_read_are_refused(kind, argument):
    make, message = ODD[kind]
    wanted = f"{argument} must be.*{message}"
    with warnings.catch_warnings(), pytest.raises(TypeError, match=wanted):
        warnings.simplefilter("ignore")  # torch's, about types that it calls prototypes
        CALLS[argument](make)


def test_an_index_that_is_not_dense_is_refused():
    with pytest.raises(TypeError, match="code_sums: index must be a dense tensor"):
        vqkern.code_sums(Z, INDEX.to_sparse(), 8)
