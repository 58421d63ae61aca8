"""Image folders: every image of a folder as uint8 RGB, or one line that says what is wrong."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from vqkern.terminal import one_line

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".gif")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", "GIF")


@dataclass(frozen=True, eq=False)
class Picture:
    """One image in memory.

    Attributes:
        name: What to call it in tables and pages.
        pixels: uint8 [3, H, W], RGB.
        source: Where it comes from and under which licence; a path for a user's own.
    """

    name: str
    pixels: Tensor
    source: str


def list_images(folder: str | Path) -> list[Path]:
    """Image files directly in `folder`, sorted by name; hidden files are left out.

    Raises:
        ValueError: `folder` does not exist, is not a folder, or holds no image file.
    """
    path = Path(folder)
    if not path.exists():
        raise ValueError(f"image folder {str(path)!r} does not exist")
    if not path.is_dir():
        raise ValueError(f"image folder {str(path)!r} is not a folder")
    found = sorted(
        file
        for file in path.iterdir()
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
    )
    if not found:
        raise ValueError(
            f"image folder {str(path)!r} holds no image; "
            f"expected files ending in {', '.join(SUFFIXES)}"
        )
    return found


def decode_image(file: str | Path | BinaryIO, name: str | None = None):
    """One encoded image as a Pillow image in mode RGB, turned the way its EXIF orientation says.

    Transparent pixels are laid on white, 16-bit grey is scaled to 8 bits, CMYK and palettes are
    converted as Pillow does. Only the first frame of an animation is read, and only the formats of
    `SUFFIXES` are decoded, whatever the file is called: none of them runs another program.

    Args:
        file: A path, or a binary file with the whole content.
        name: What to call the image in errors; the path where None.

    Raises:
        ValueError: not an image, damaged or truncated, of a mode whose values have no fixed range
            (32-bit integers, floating point), or so large that decoding it could exhaust the memory
            (`PIL.Image.MAX_IMAGE_PIXELS`, about 89 million pixels).
    """
    Image, ImageOps = import_pillow()
    shown = repr(str(file) if name is None else name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Above its limit Pillow only warns, and raises at twice the limit: raise at once.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as image:
                return _to_rgb(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(f"image {shown} is too large to decode safely: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files.
        reason = one_line(error)
        raise ValueError(f"image {shown} cannot be read: {reason}") from error


def read_image(path: str | Path) -> Tensor:
    """One image file as uint8 [3, H, W] RGB; see `decode_image`.

    Raises:
        ValueError: see `decode_image`.
    """
    return torch.from_numpy(np.array(decode_image(path))).permute(2, 0, 1).contiguous()


def import_pillow():
    """Pillow's modules `Image` and `ImageOps`.

    Raises:
        ValueError: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ValueError(
            "reading images needs Pillow, which is not installed: pip install 'vqkern[data]'"
        ) from error
    return Image, ImageOps


def _to_rgb(image):
    from PIL import Image

    deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    if deep:
        # Pillow's own conversion clips at 255, which turns nearly every such image white.
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode!r} has no fixed range of values")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.new("RGBA", rgba.size, "white")
        image.alpha_composite(rgba)
    return image.convert("RGB")


def load_folder(folder: str | Path, limit: int | None = None) -> list[Picture]:
    """The first `limit` images of a folder, by name; all of them where `limit` is None.

    Raises:
        ValueError: see `list_images` and `read_image`.
    """
    return [
        Picture(name=file.name, pixels=read_image(file), source=str(file))
        for file in list_images(folder)[:limit]
    ]
