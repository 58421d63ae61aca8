"""A layer of vector-quantize-pytorch and the drop-in with its weights; VAR's golden case."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from vqkern import interop


def both(cls, *arguments, **options):
    """The library's layer and ours with its weights."""
    theirs = getattr(_library(), cls)(*arguments, **options)
    torch.manual_seed(1)
    ours = getattr(interop, cls)(*arguments, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def assert_same_state(theirs, ours):
    a, b = theirs.state_dict(), ours.state_dict()
    assert list(a) == list(b)
    for key in a:
        assert a[key].shape == b[key].shape and a[key].dtype == b[key].dtype, key
        torch.testing.assert_close(b[key], a[key], rtol=1e-4, atol=1e-5, msg=key)


def _library():
    import vector_quantize_pytorch

    return vector_quantize_pytorch


def var_case(name):
    """State of a VAR quantizer of 64 codes of 32 channels, and all tensors of that golden case."""
    tensors = load_file(Path(__file__).parents[1] / "data" / "structures.safetensors")
    case = {k.split("/", 1)[1]: v for k, v in tensors.items() if k.startswith(f"{name}/")}
    state = {"embedding.weight": case["codes"], "ema_vocab_hit_SV": torch.zeros(4, 64)}
    for i in range(4):
        weight = case[f"phi.{i}.weight"].float() * case[f"phi_scale.{i}.weight"]
        state[f"quant_resi.qresi_ls.{i}.weight"] = weight
        state[f"quant_resi.qresi_ls.{i}.bias"] = case[f"phi.{i}.bias"]
    return state, case
