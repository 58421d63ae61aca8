"""Images for training and evaluation: photographs, image folders, seeded crops."""

from vqkern.data.crops import CropSampler, Region, default_region, to_float
from vqkern.data.images import Picture, list_images, load_folder, read_image
from vqkern.data.photographs import load_photographs

__all__ = [
    "CropSampler",
    "Picture",
    "Region",
    "default_region",
    "list_images",
    "load_folder",
    "load_photographs",
    "read_image",
    "to_float",
]
