"""Images for training and evaluation: folders, tar shards and volumes, crops, exact resumption."""

from vqkern.data.crops import CropSampler, Region, default_region, to_float
from vqkern.data.images import Picture, decode_image, list_images, load_folder, read_image
from vqkern.data.loader import Batch, CroppedImages, Loader, ordered_batches
from vqkern.data.named_crops import CROPS, Crop
from vqkern.data.pack import pack
from vqkern.data.photographs import load_photographs
from vqkern.data.quarantine import Damage, Quarantine, QuarantineError
from vqkern.data.sampler import EpochSampler, Key
from vqkern.data.sources import Folder, ImageSource, TarShards, fingerprint, open_source
from vqkern.data.volumes import VolumeSlices, read_volume

__all__ = [
    "CROPS",
    "Batch",
    "Crop",
    "CropSampler",
    "CroppedImages",
    "Damage",
    "EpochSampler",
    "Folder",
    "ImageSource",
    "Key",
    "Loader",
    "Picture",
    "Quarantine",
    "QuarantineError",
    "Region",
    "TarShards",
    "VolumeSlices",
    "decode_image",
    "default_region",
    "fingerprint",
    "list_images",
    "load_folder",
    "load_photographs",
    "open_source",
    "ordered_batches",
    "pack",
    "read_image",
    "read_volume",
    "to_float",
]
