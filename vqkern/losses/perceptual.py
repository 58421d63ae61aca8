"""LPIPS (Zhang et al. 2018) through the lpips package, with the network from a local file."""

import hashlib
from pathlib import Path

import torch
from torch import nn

VGG_FILE = "vgg16-397923af.pth"
VGG_ADDRESS = "https://download.pytorch.org/models/vgg16-397923af.pth"
VGG_SHA256 = "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"


def load_lpips(weights: str | Path) -> nn.Module:
    """LPIPS on VGG-16, frozen: called with two batches in [-1, 1] it gives [B, 1, 1, 1].

    Args:
        weights: The file vgg16-397923af.pth, or a folder that holds it. Nothing is downloaded.

    Raises:
        ValueError: the file is missing or another one, or the lpips package is not usable.
    """
    path = Path(weights)
    path = path / VGG_FILE if path.is_dir() else path
    wanted = f"{VGG_FILE} from {VGG_ADDRESS} (sha256 {VGG_SHA256})"
    if not path.is_file():
        raise ValueError(
            f"perceptual: LPIPS needs {wanted}, and {str(path)!r} is not there; "
            f"'perceptual: none' trains without it"
        )
    if _sha256(path) != VGG_SHA256:
        raise ValueError(f"perceptual: {str(path)!r} is another file than {wanted}")
    try:
        import lpips
    except (ImportError, RuntimeError, OSError) as error:  # torchvision may fail to load
        raise ValueError(
            f"perceptual: the lpips package cannot be used here ({error}): "
            f"pip install 'vqkern[train]' beside a matching torchvision"
        ) from error
    # pnet_rand: the package would download the network otherwise. Its own linear weights, which it
    # carries along, are loaded all the same.
    network = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    features = {k.removeprefix("features."): v for k, v in tensors.items() if "features." in k}
    own = {name: name.split(".", 1)[1] for name in network.net.state_dict()}
    network.net.load_state_dict({name: features[key] for name, key in own.items()})
    return network.eval().requires_grad_(False)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
