"""Sources: names and order, modes of images, folders of every kind, volumes as slices."""

import gzip
import io
import pickle

import numpy as np
import pytest
import torch
from image_files import encoded, fill_folder, pixels, tar_bytes
from PIL import Image

from vqkern.data import (
    Folder,
    TarShards,
    VolumeSlices,
    decode_image,
    fingerprint,
    open_source,
    read_image,
    read_volume,
)


def test_a_folder_is_read_by_relative_path(tmp_path):
    fill_folder(tmp_path / "real", 4)
    (tmp_path / "in" / ".git").mkdir(parents=True)
    (tmp_path / "in" / ".git" / "x.png").write_bytes(encoded(9))
    (tmp_path / "in" / "notes.txt").write_text("x")
    (tmp_path / "in" / "Z.PNG").write_bytes(encoded(5))
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "real" / "class1")
    source = open_source(tmp_path / "in")
    assert isinstance(source, Folder)
    assert source.names == ["Z.PNG", "linked/001.png", "linked/003.png"]
    assert np.array_equal(np.asarray(source.load(2)), pixels(3))


def test_shards_keep_the_order_of_their_members(tmp_path):
    members = [(name, encoded(i)) for i, name in enumerate(["b.png", "./a/c.jpg", "x.json"])]
    (tmp_path / "1.tar").write_bytes(tar_bytes(*members))
    (tmp_path / "0.tar").write_bytes(tar_bytes((f"{'long/' * 60}ä.png", encoded(7))))
    source = pickle.loads(pickle.dumps(open_source(tmp_path)))
    assert isinstance(source, TarShards) and not source.rejected
    assert source.names == [f"0.tar/{'long/' * 60}ä.png", "1.tar/b.png", "1.tar/a/c.jpg"]
    for number, made in enumerate([7, 0, 1]):
        assert np.array_equal(np.asarray(source.load(number)), pixels(made))
    alone = open_source(tmp_path / "1.tar")
    assert alone.names == source.names[1:] and fingerprint(alone) != fingerprint(source)


def save(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return io.BytesIO(buffer.getvalue())


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
    for kind in ("PNG", "TIFF"):
        image = np.asarray(decode_image(save(Image.fromarray(values), kind)))
        assert np.array_equal(image[..., 0], np.rint(values / 257).astype(np.uint8))
        assert np.array_equal(image[..., 0], image[..., 2])


def test_every_mode_becomes_rgb():
    red = Image.new("RGB", (8, 8), (200, 40, 30))
    palette = red.quantize(4)
    clear = Image.new("P", (8, 8), 0)
    clear.putpalette([10, 20, 30])
    cases = [
        (save(red.convert("CMYK"), "JPEG", quality=100), (200, 40, 30), 4),
        (save(red.convert("CMYK"), "TIFF"), (200, 40, 30), 2),
        (save(palette, "PNG"), (200, 40, 30), 2),
        (save(clear, "PNG", transparency=0), (255, 255, 255), 0),
        (save(clear, "GIF"), (10, 20, 30), 0),
        (save(Image.new("LA", (8, 8), (0, 128)), "PNG"), (127, 127, 127), 1),
        (save(Image.new("1", (8, 8), 1), "PNG"), (255, 255, 255), 0),
        (save(Image.new("L", (8, 8), 99), "JPEG", quality=100), (99, 99, 99), 1),
        (save(red.convert("YCbCr"), "JPEG", quality=100), (200, 40, 30), 4),
    ]
    for file, colour, tolerance in cases:
        image = decode_image(file, "x")
        assert image.mode == "RGB" and image.size == (8, 8)
        assert abs(np.asarray(image).astype(int) - colour).max() <= tolerance


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_undone(orientation):
    upright = pixels(0, 24, 16)
    turns = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }
    stored = turns[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = save(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif)
    assert np.array_equal(np.asarray(decode_image(file)), upright)


def test_the_first_frame_of_an_animation_is_read():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    file = save(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.asarray(decode_image(file))[0, 0].tolist() == [255, 0, 0]


def test_read_image_owns_its_pixels(tmp_path):
    (tmp_path / "x.png").write_bytes(encoded(3))
    image = read_image(tmp_path / "x.png")
    assert image.is_contiguous() and image.dtype == torch.uint8
    image[:] = 0


def brain(shape=(6, 7, 5)):
    """Rises along every axis, zero in one corner."""
    x, y, z = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    return (x + 10 * y + 100 * z).astype(np.float32)


def scaled(values):
    low, high = np.percentile(values[values != 0], (0.5, 99.5))
    return np.rint(((values - low) * (255 / (high - low))).clip(0, 255))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("axes", ["RAS", "LPS", "SRA", "PIR"])
def test_nifti_slices_are_axial_whatever_the_file_s_axes(tmp_path, suffix, axes):
    import nibabel

    values = brain()
    image = nibabel.Nifti1Image(values, np.eye(4))
    target = nibabel.orientations.axcodes2ornt(axes)
    image = image.as_reoriented(nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), target
    ))  # fmt: skip
    assert "".join(nibabel.aff2axcodes(image.affine)) == axes
    path = tmp_path / f"subject{suffix}"
    nibabel.save(image, path)
    volume = read_volume(path)
    expected = scaled(values).transpose(2, 1, 0)[:, ::-1]  # slices, anterior first, left first
    assert volume.shape == (5, 7, 6) and volume.dtype == np.uint8
    assert np.abs(volume - expected).max() <= 1
    source = open_source(tmp_path)
    assert len(source) == 5 and source.names[3] == f"subject{suffix}/0003"
    slice_ = np.asarray(source.load(3))
    assert np.array_equal(slice_, np.repeat(volume[3, :, :, None], 3, -1))


def test_nifti_scaling_and_types_are_those_of_nibabel(tmp_path):
    import nibabel

    values = brain().astype(np.int16)
    header = nibabel.Nifti1Header(endianness=">")
    image = nibabel.Nifti1Image(values, np.eye(4), header)
    image.header.set_slope_inter(0.5, 3.0)
    image.to_filename(tmp_path / "x.nii")
    wanted = nibabel.load(tmp_path / "x.nii").get_fdata().astype(np.float32)
    expected = scaled(wanted).transpose(2, 1, 0)[:, ::-1]
    assert np.abs(read_volume(tmp_path / "x.nii") - expected).max() <= 1


def test_array_volumes_and_parts_of_them(tmp_path):
    values = brain()
    for dtype in ("float64", "int32", "uint16"):
        np.save(tmp_path / f"{dtype}.npy", np.asfortranarray(values).astype(dtype))
    (tmp_path / "bad.npy").write_bytes(b"x")
    paths = sorted(tmp_path.glob("*.npy"))
    source = VolumeSlices(paths, root=tmp_path, keep=(0.3, 0.7))
    assert [d.name for d in source.rejected] == ["bad.npy"]
    assert source.names[:4] == [f"float64.npy/{i:04d}" for i in (1, 2, 3, 4)]
    assert len(source) == 12
    copy = pickle.loads(pickle.dumps(source))
    for number in (0, 5, 11):
        expected = scaled(values)[1 + number % 4]
        assert np.abs(np.asarray(copy.load(number))[..., 0] - expected).max() <= 1
    for keep in [(0.5, 0.5), (-0.1, 1), (0, 1.1), (0.7, 0.3)]:
        with pytest.raises(ValueError, match="keep: got"):
            VolumeSlices(paths, keep=keep)


def test_a_compressed_volume_with_more_behind_it_is_read_no_further(tmp_path):
    import nibabel

    nibabel.save(nibabel.Nifti1Image(brain(), np.eye(4)), tmp_path / "x.nii")
    content = (tmp_path / "x.nii").read_bytes()
    (tmp_path / "y.nii.gz").write_bytes(gzip.compress(content + bytes(2**24)))
    assert np.array_equal(read_volume(tmp_path / "y.nii.gz"), read_volume(tmp_path / "x.nii"))
