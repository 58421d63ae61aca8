"""PatchGAN (Isola et al. 2017): a discriminator that judges overlapping patches."""

from torch import Tensor, nn


class PatchGAN(nn.Module):
    """Images [B, 3, H, W] to a map of logits [B, 1, h, w], one for every patch.

    Convolutions of 4 x 4, `layers` of them with stride 2 and twice the channels of the one before
    (at most 8 times `width`), leaky ReLU of slope .2; weights start at N(0, .02), the scales of the
    normalisation at N(1, .02).

    Args:
        width: Channels of the first convolution.
        layers: Convolutions with stride 2; 3 sees patches of 70 x 70 pixels, 2 of 34 x 34.
    """

    def __init__(self, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        modules: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        before = width
        for number in range(1, layers + 1):
            after = width * min(2**number, 8)
            stride = 2 if number < layers else 1
            modules += [
                nn.Conv2d(before, after, 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.LeakyReLU(0.2),
            ]
            before = after
        modules.append(nn.Conv2d(before, 1, 4, padding=1))
        self.layers = nn.Sequential(*modules)
        for module in self.layers:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)
