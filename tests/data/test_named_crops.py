"""Named crops: the published programs' pixels, and geometry that can be worked out by hand."""

import hashlib

import numpy as np
import PIL
import pytest
from PIL import Image
from support import golden

from vqkern.data import CROPS, Crop
from vqkern.data.draws import Draws, permutation

GOLDEN_PILLOW = "13"
# Of LlamaGen's center_crop_arr, with Pillow 13.0.0 on scikit-image's photographs.
GOLDEN = {
    "astronaut": "9942d663ccef1eb266041314e169768d2066a5088694bb062683279048d7ba52",
    "chelsea": "0853792cef93a239e2da02a9581387efd52437ad8bc74c155d933726eb9a2ed8",
    "coffee": "08bca3725683efc4188ce726ada232de232a3d9b7dafd396d33e30a28a58e67c",
}


def photograph(name):
    from skimage import data

    return Image.fromarray(getattr(data, name)())


def numbered(width, height):
    """Every pixel says where it was: red its column, green its row."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([columns, rows, 0 * rows], -1).astype(np.uint8))


@pytest.mark.parametrize("name", GOLDEN)
def test_adm_has_the_published_pixels(name):
    pixels = np.asarray(Crop("adm", 256)(photograph(name)))
    if PIL.__version__.split(".")[0] == GOLDEN_PILLOW:
        assert hashlib.sha256(pixels.tobytes()).hexdigest() == GOLDEN[name]
    if name == "chelsea":
        _, _, out = golden("center_crop")
        assert abs(pixels.astype(int) - out["chelsea"].numpy().astype(int)).max() <= 1


def test_adm_halves_before_it_resizes():
    image = photograph("hubble_deep_field")
    pixels = np.asarray(Crop("adm", 128)(image))
    width, height = image.size
    for _ in range(2):
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = 128 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.BICUBIC)
    assert min(width, height) >= 4 * 128 and min(image.size) == 128
    top, left = (image.height - 128) // 2, (image.width - 128) // 2
    assert np.array_equal(pixels, np.asarray(image)[top : top + 128, left : left + 128])


def test_var_resizes_to_nine_eighths():
    image = photograph("coffee")  # 600 x 400
    whole = image.resize((int(288 * 600 / 400), 288), Image.Resampling.LANCZOS)
    expected = np.asarray(whole)[16:272, 88:344]
    assert np.array_equal(np.asarray(Crop("var", 256)(image)), expected)
    # A shorter side of 288 already is not resampled.
    same = Image.fromarray(np.asarray(whole))
    assert np.array_equal(np.asarray(Crop("var", 256)(same)), expected)


@pytest.mark.parametrize(
    ("width", "height", "left", "top"),
    # Half pixels go to the even side: 1/2 to 0, 3/2 to 2, 5/2 to 2.
    [(64, 64, 0, 0), (65, 67, 0, 2), (69, 64, 2, 0), (100, 80, 18, 8)],
)
def test_center_does_not_resize(width, height, left, top):
    pixels = np.asarray(Crop("center", 64)(numbered(width, height)))
    assert pixels.shape == (64, 64, 3)
    assert (pixels[0, :, 0] == np.arange(left, left + 64)).all()
    assert (pixels[:, 0, 1] == np.arange(top, top + 64)).all()


def test_center_gives_small_images_a_black_rim():
    pixels = np.asarray(Crop("center", 64)(Image.new("RGB", (61, 100), "white")))
    columns = pixels.any((0, 2))
    assert columns.tolist() == [False] + [True] * 61 + [False] * 2
    pixels = np.asarray(Crop("center", 8)(Image.new("RGB", (4, 2), "white")))
    assert pixels.any(-1).sum() == 8 and pixels[3:5, 2:6].all()


@pytest.mark.parametrize("name", ["adm_random", "var_random"])
def test_random_crops_follow_their_draws(name):
    image, crop = photograph("chelsea"), Crop(name, 64, flip=True)
    first = np.asarray(crop(image, Draws(1, 2)))
    assert first.shape == (64, 64, 3)
    assert np.array_equal(first, np.asarray(crop(image, Draws(1, 2))))
    others = [np.asarray(crop(image, Draws(1, k))) for k in range(3, 9)]
    assert all(not np.array_equal(first, other) for other in others)


def test_random_places_cover_all_places():
    image, crop = numbered(12, 10), Crop("adm_random", 8)
    square = numbered(10, 10)
    sides = {Crop("adm_random", 8)(square, Draws(0, k)).size for k in range(50)}
    assert sides == {(8, 8)} and crop(image, Draws(5)).size == (8, 8)
    wide = Image.fromarray(np.asarray(numbered(40, 9)))  # var: 9 is 1.125 of 8, not resampled
    places = {
        tuple(np.asarray(Crop("var_random", 8)(wide, Draws(0, k)))[0, 0, :2]) for k in range(600)
    }
    assert places == {(left, top) for left in range(33) for top in range(2)}


def test_half_of_the_images_are_flipped():
    image, crop = numbered(16, 16), Crop("whole", 16, flip=True)
    flipped = sum(np.asarray(crop(image, Draws(0, k)))[0, 0, 0] == 15 for k in range(1000))
    assert 450 < flipped < 550


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lanczos", 64), "crop: got 'lanczos'.*adm, adm_random"),
        (("adm", 0), "size: got 0"),
        (("adm", 2.5), "size: got 2.5"),
        (("adm", True), "size: got True"),
    ],
)
def test_bad_crops_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Crop(*arguments)


def test_a_random_crop_needs_draws():
    assert [name for name in CROPS if Crop(name, 8).is_random] == ["adm_random", "var_random"]
    with pytest.raises(ValueError, match="draws: got None.*adm_random"):
        Crop("adm_random", 8)(numbered(16, 16))


@pytest.mark.parametrize("name", ["adm", "var", "adm_random", "var_random"])
@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1)])
def test_a_strip_does_not_grow_without_bound(name, size):
    with pytest.raises(ValueError, match="would have to grow"):
        Crop(name, 256)(Image.new("RGB", size), Draws(0))


def test_whole_takes_its_size_only():
    with pytest.raises(ValueError, match="16 x 15 pixels, expected exactly 16 x 16"):
        Crop("whole", 16)(numbered(16, 15))


def test_draws_are_pinned():
    """These numbers are data-set orders: another value would reshuffle everybody's runs."""
    draws = Draws(1, 2, 3)
    assert [draws.integer(0, 1000) for _ in range(5)] == PINNED_INTEGERS
    assert permutation(10, 7, 0, 3).tolist() == PINNED_ORDER
    assert Draws(0).integer(5, 6) == 5
    with pytest.raises(ValueError, match="high: got 3"):
        draws.integer(3, 3)
    with pytest.raises(ValueError, match="key"):
        Draws(1, -1)


PINNED_INTEGERS = [719, 12, 99, 887, 464]
PINNED_ORDER = [3, 2, 4, 6, 8, 9, 5, 7, 1, 0]
