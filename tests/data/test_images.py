"""Image folders: what is read, and one clear line for everything that is wrong with one."""

import numpy as np
import pytest
import torch
from PIL import Image

from vqkern.data import default_region, load_folder
from vqkern.data.images import list_images, read_image


def write(path, height=24, width=32, mode="RGB"):
    channels = {"RGB": 3, "RGBA": 4, "L": 1}[mode]
    values = np.arange(height * width * channels, dtype=np.int64) % 251
    pixels = values.astype(np.uint8).reshape(height, width, channels)
    Image.fromarray(pixels.squeeze()).save(path)
    return pixels


def test_reads_pixels_in_rgb_order(tmp_path):
    pixels = write(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.dtype == torch.uint8 and image.shape == (3, 24, 32)
    assert torch.equal(image, torch.from_numpy(pixels).permute(2, 0, 1))


def test_grey_becomes_rgb_and_transparent_becomes_white(tmp_path):
    write(tmp_path / "grey.png", mode="L")
    grey = read_image(tmp_path / "grey.png")
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[0], grey[2])
    Image.new("RGBA", (5, 4), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    assert bool((read_image(tmp_path / "clear.png") == 255).all())


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (3, 40, 20)


def test_folder_is_sorted_and_limited(tmp_path):
    for name in ("b.png", "a.PNG", ".hidden.png"):
        write(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    assert [p.name for p in load_folder(tmp_path)] == ["a.PNG", "b.png"]
    assert [p.name for p in load_folder(tmp_path, limit=1)] == ["a.PNG"]


@pytest.mark.parametrize("kind", ["missing", "file", "empty"])
def test_bad_folders_are_named(tmp_path, kind):
    folder = tmp_path / "pictures"
    if kind == "file":
        folder.write_text("x")
    elif kind == "empty":
        folder.mkdir()
        (folder / "notes.txt").write_text("x")
    expected = {"missing": "does not exist", "file": "not a folder", "empty": "holds no image"}[
        kind
    ]
    with pytest.raises(ValueError, match=expected) as caught:
        list_images(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_damaged_images_are_named(tmp_path, suffix, damage):
    path = tmp_path / f"bad.{suffix}"
    write(path, 200, 200)
    whole = path.read_bytes()
    content = {"truncated": whole[: len(whole) // 2], "garbage": b"garbage" * 99, "empty": b""}
    path.write_bytes(content[damage])
    with pytest.raises(ValueError, match=f"bad.{suffix}.*cannot be read") as caught:
        load_folder(tmp_path)
    assert "\n" not in str(caught.value)


def test_decompression_bomb_is_refused(tmp_path, monkeypatch):
    write(tmp_path / "big.png", 60, 60)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)  # 3,600 pixels: a warning by default
    with pytest.raises(ValueError, match="big.png.*too large"):
        read_image(tmp_path / "big.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # more than twice: an error by default
    with pytest.raises(ValueError, match="big.png.*too large"):
        read_image(tmp_path / "big.png")


def test_image_smaller_than_its_region_is_named(tmp_path):
    write(tmp_path / "small.png", 100, 200)
    with pytest.raises(ValueError, match="small.png.*200 x 100.*128"):
        default_region(load_folder(tmp_path)[0], 128)
