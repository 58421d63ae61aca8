"""Five photographs that come with scikit-image: real pictures without a download.

They are enough to watch a tokenizer learn, and far too few to compare methods by: a demonstration,
not a benchmark.
"""

import torch

from vqkern.data.crops import Region
from vqkern.data.images import Picture

# name: (licence, top-left corner of the held-out 128 x 128 region). The corners are chosen by hand
# so that each region shows something: a face, the launch tower, galaxies, the cat's eye, a cup.
_PHOTOGRAPHS = {
    "astronaut": ("NASA, public domain", (40, 160)),
    "rocket": ("SpaceX, public domain", (230, 250)),
    "hubble_deep_field": ("NASA, public domain", (380, 420)),
    "chelsea": ("Stefan van der Walt, CC0", (60, 120)),
    "coffee": ("Rachel Michetti, CC0", (130, 250)),
}
HELD_OUT_SIDE = 128


def load_photographs() -> tuple[list[Picture], list[Region]]:
    """The five photographs and the region of each that is held out from training.

    Returns:
        Pictures (uint8 [3, H, W]; 300 x 451 to 872 x 1000 pixels), one 128 x 128 region each.

    Raises:
        ValueError: scikit-image is not installed.
    """
    try:
        from skimage import data
    except ImportError as error:
        raise ValueError(
            "the demonstration's photographs come with scikit-image, which is not installed: "
            "pip install 'vqkern[demo]', or use images of your own"
        ) from error
    pictures, regions = [], []
    for name, (licence, (top, left)) in _PHOTOGRAPHS.items():
        pixels = torch.from_numpy(getattr(data, name)().copy()).permute(2, 0, 1).contiguous()
        pictures.append(Picture(name=name, pixels=pixels, source=licence))
        regions.append(Region(top, left, HELD_OUT_SIDE, HELD_OUT_SIDE))
    return pictures, regions
