"""Crops: never in a held-out region, everywhere else, and determined by seed, stream and step."""

import pytest
import torch

from vqkern.data import CropSampler, Picture, Region, load_photographs, to_float


def picture(height, width, name="p"):
    pixels = torch.arange(3 * height * width).remainder(256).to(torch.uint8)
    return Picture(name, pixels.view(3, height, width), "test")


def overlaps(top, left, size, region):
    return (
        top < region.top + region.height
        and region.top < top + size
        and left < region.left + region.width
        and region.left < left + size
    )


REGIONS = [
    Region(4, 5, 6, 7),
    Region(0, 0, 3, 3),
    Region(14, 16, 6, 5),
    Region(0, 8, 20, 4),
    Region(7, 0, 5, 21),
    Region(1, 1, 1, 1),
]


@pytest.mark.parametrize("region", REGIONS, ids=str)
@pytest.mark.parametrize("size", [1, 3, 5])
def test_every_allowed_position_and_no_other(region, size):
    image = picture(20, 21)
    sampler = CropSampler([image], [region], size, seed=0)
    places = sampler._places[0]
    got = [places.at(i) for i in range(places.count)]
    expected = [
        (top, left)
        for top in range(20 - size + 1)
        for left in range(21 - size + 1)
        if not overlaps(top, left, size, region)
    ]
    assert got == expected


def test_photographs_crops_never_touch_held_out_regions():
    pictures, regions = load_photographs()
    sampler = CropSampler(pictures, regions, 64, seed=3)
    seen = set()
    for step in range(40):
        for i, top, left in sampler.positions(step, 64):
            height, width = pictures[i].pixels.shape[1:]
            assert 0 <= top <= height - 64 and 0 <= left <= width - 64
            assert not overlaps(top, left, 64, regions[i])
            seen.add(i)
    assert seen == set(range(5))


def test_batches_depend_on_seed_stream_and_step_alone():
    pictures, regions = load_photographs()

    def sampler(seed, stream=0):
        return CropSampler(pictures, regions, 32, seed, stream)

    late_first = sampler(1)
    seventh = late_first.batch(7, 4)
    assert torch.equal(seventh, sampler(1).batch(7, 4))
    assert torch.equal(late_first.batch(2, 4), sampler(1).batch(2, 4))
    for other in (sampler(1).batch(8, 4), sampler(2).batch(7, 4), sampler(1, 1).batch(7, 4)):
        assert not torch.equal(seventh, other)


def test_batch_holds_the_pixels_at_its_positions():
    image = picture(30, 40)
    sampler = CropSampler([image], None, 8, seed=0)
    batch = sampler.batch(5, 6)
    assert batch.dtype == torch.float32 and batch.shape == (6, 3, 8, 8)
    for crop, (_, top, left) in zip(batch, sampler.positions(5, 6), strict=True):
        assert torch.equal(crop, to_float(image.pixels[:, top : top + 8, left : left + 8]))
    assert float(to_float(torch.tensor(0, dtype=torch.uint8))) == -1.0
    assert float(to_float(torch.tensor(255, dtype=torch.uint8))) == 1.0


def test_small_and_large_images_are_equally_likely():
    sampler = CropSampler([picture(16, 16), picture(200, 200)], None, 8, seed=0)
    chosen = [i for step in range(20) for i, _, _ in sampler.positions(step, 100)]
    assert abs(sum(chosen) / len(chosen) - 0.5) < 0.05


@pytest.mark.parametrize(
    ("pictures", "regions", "size", "message"),
    [
        ([], None, 8, "pictures: got none"),
        ([picture(16, 16)], [], 8, "0 regions for 1 images"),
        ([picture(16, 16, "tiny")], None, 17, "'tiny'.*no room for crops of 17 x 17"),
        ([picture(16, 16, "full")], [Region(4, 4, 8, 8)], 5, "'full'.*beside its held-out 8 x 8"),
        ([picture(16, 16, "out")], [Region(10, 0, 8, 8)], 5, "leaves image 'out'"),
        ([picture(16, 16)], None, 0, "size: got 0"),
    ],
)
def test_bad_arguments_are_named(pictures, regions, size, message):
    with pytest.raises(ValueError, match=message):
        CropSampler(pictures, regions, size, seed=0)


def test_negative_seed_is_refused():
    with pytest.raises(ValueError, match="seed"):
        CropSampler([picture(16, 16)], None, 8, seed=-1)
