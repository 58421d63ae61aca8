"""Image folders: every image of a folder as uint8 RGB, or one line that says what is wrong."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".gif")


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


def read_image(path: str | Path) -> Tensor:
    """One image file as uint8 [3, H, W] RGB, turned the way its EXIF orientation says.

    Transparent pixels are laid on white. Only the first frame of an animation is read.

    Raises:
        ValueError: the file is not an image, is damaged or truncated, or is so large that decoding
            it could exhaust the memory (Pillow's limit, about 89 million pixels).
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ValueError(
            "reading images needs Pillow, which is not installed: pip install 'vqkern[demo]'"
        ) from error
    try:
        with warnings.catch_warnings():
            # Above its limit Pillow only warns, and raises at twice the limit: raise at once.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image = ImageOps.exif_transpose(image)
                if image.has_transparency_data:
                    rgba = image.convert("RGBA")
                    image = Image.new("RGBA", rgba.size, "white")
                    image.alpha_composite(rgba)
                pixels = np.array(image.convert("RGB"))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(f"image {str(path)!r} is too large to decode safely: {error}") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:
        # Pillow's decoders raise all of these on damaged files.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"image {str(path)!r} cannot be read: {reason}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def load_folder(folder: str | Path, limit: int | None = None) -> list[Picture]:
    """The first `limit` images of a folder, by name; all of them where `limit` is None.

    Raises:
        ValueError: see `list_images` and `read_image`.
    """
    return [
        Picture(name=file.name, pixels=read_image(file), source=str(file))
        for file in list_images(folder)[:limit]
    ]
