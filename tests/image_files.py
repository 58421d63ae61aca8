"""Images, folders and archives for the tests of data."""

import io
import tarfile

import numpy as np
from PIL import Image


def pixels(number, width=40, height=32):
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return coarse.repeat(8, 0).repeat(8, 1)


def encoded(number, kind="PNG", **size):
    buffer = io.BytesIO()
    Image.fromarray(pixels(number, **size)).save(buffer, kind)
    return buffer.getvalue()


def fill_folder(folder, count, damaged=()):
    """`count` PNG files in two folders; those of the numbers in `damaged` are cut short."""
    for number in range(count):
        path = folder / f"class{number % 2}" / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = encoded(number)
        path.write_bytes(content[: len(content) // 2] if number in damaged else content)
    return folder


def tar_bytes(*members, end=True, **options):
    """A tar file of (name, bytes) or TarInfo members, written without any check."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
        size = tar.offset
    return buffer.getvalue() if end else buffer.getvalue()[:size]
