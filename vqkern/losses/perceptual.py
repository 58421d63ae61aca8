"""LPIPS (Zhang et al. 2018) through the lpips package, with the network from a local file."""

from pathlib import Path

import torch
from torch import nn

from vqkern.public_files import PublicFile

VGG = PublicFile(
    "vgg16-397923af.pth",
    "https://download.pytorch.org/models/vgg16-397923af.pth",
    "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
)
ALEXNET = PublicFile(
    "alexnet-owt-7be5be79.pth",
    "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
)
LPIPS_FILES = {"vgg": VGG, "alex": ALEXNET}


def load_lpips(
    weights: str | Path, network: str = "vgg", *, expected: PublicFile | None = None
) -> nn.Module:
    """LPIPS, frozen: called with two batches in [-1, 1] it gives [B, 1, 1, 1].

    Args:
        weights: The network's file, or a folder that holds it. Nothing is downloaded.
        network: vgg (VGG-16) or alex (AlexNet).
        expected: The file that is taken for it; None: torchvision's own.

    Raises:
        ValueError: an unknown network, the file is missing or another one, or the lpips package is
            not usable.
    """
    if network not in LPIPS_FILES:
        raise ValueError(f"network: got {network!r}, expected one of {', '.join(LPIPS_FILES)}")
    wanted = expected or LPIPS_FILES[network]
    path = wanted.find(weights, "LPIPS")
    try:
        import lpips
    except (ImportError, RuntimeError, OSError) as error:  # torchvision may fail to load
        raise ValueError(
            f"perceptual: the lpips package cannot be used here ({error}): "
            f"pip install 'vqkern[train]' beside a matching torchvision"
        ) from error
    # pnet_rand: the package would download the network otherwise. Its own linear weights, which it
    # carries along, are loaded all the same.
    module = lpips.LPIPS(net=network, pnet_rand=True, verbose=False)
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    features = {k.removeprefix("features."): v for k, v in tensors.items() if "features." in k}
    own = {name: name.split(".", 1)[1] for name in module.net.state_dict()}
    module.net.load_state_dict({name: features[key] for name, key in own.items()})
    return module.eval().requires_grad_(False)
