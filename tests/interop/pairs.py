"""A layer of vector-quantize-pytorch and the drop-in with its weights."""

import torch

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
