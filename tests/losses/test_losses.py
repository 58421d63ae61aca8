"""Losses against their formulas; what a discriminator learns, and what reaches the decoder."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vqkern.losses import (
    ADVERSARIAL,
    DiffAugment,
    Discriminator,
    LeCAM,
    PatchGAN,
    adaptive_weight,
    charbonnier,
    l1,
    l2,
    load_lpips,
)


def images(count=4, side=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, side, side, generator=generator) * 2 - 1


def test_pixel_losses_are_their_formulas_in_float32():
    a, b = images().bfloat16(), images(seed=1).bfloat16()
    difference = a.float() - b.float()
    assert l1(a, b) == difference.abs().mean() and l2(a, b) == difference.square().mean()
    expected = (difference.double().square() + 1e-6).sqrt().mean()
    torch.testing.assert_close(charbonnier(a, b).double(), expected)
    same = images().requires_grad_()
    charbonnier(same, same.detach()).backward()
    assert bool((same.grad == 0).all())


def test_adversarial_losses():
    real, fake = torch.tensor([2.0, -1.0]), torch.tensor([0.5, -3.0])
    hinge, logistic = ADVERSARIAL["hinge"], ADVERSARIAL["non_saturating"]
    assert float(hinge.discriminator(real, fake)) == pytest.approx(0.5 * (1.0 + 0.75))
    assert float(hinge.generator(fake)) == pytest.approx(1.25)
    by_hand = -0.5 * (F.logsigmoid(real).mean() + F.logsigmoid(-fake).mean())
    torch.testing.assert_close(logistic.discriminator(real, fake), by_hand)
    torch.testing.assert_close(logistic.generator(fake), -F.logsigmoid(fake).mean())
    mixed = ADVERSARIAL["hinge_non_saturating"]
    assert mixed.discriminator(real, fake) == hinge.discriminator(real, fake)
    assert mixed.generator(fake) == logistic.generator(fake)


def test_lecam_is_zero_at_first_and_then_pulls_to_the_other_side():
    lecam = LeCAM(decay=0.9)
    real, fake = torch.tensor([1.0, 3.0]), torch.tensor([-2.0, 0.0])
    assert float(lecam(real, fake)) == 0
    assert lecam.averages.tolist() == [2.0, -1.0]
    term = lecam(real, fake)  # relu(real + 1)^2 = 4, 16; relu(2 - fake)^2 = 16, 4
    assert float(term) == pytest.approx(20.0)
    lecam(real + 10, fake)
    assert lecam.averages.tolist() == pytest.approx([3.0, -1.0])
    assert set(lecam.state_dict()) == {"averages", "steps"}


@pytest.mark.parametrize("kind", ["colour", "translation", "cutout"])
def test_augmentations_change_images_by_themselves_and_pass_gradients(kind):
    x = images(8).requires_grad_()
    changed = DiffAugment((kind,), shift=0.25, cut=0.5)(x)
    assert changed.shape == x.shape
    assert all(not torch.equal(a, b) for a, b in zip(changed, x, strict=True))
    changed.sum().backward()
    assert bool(x.grad.isfinite().all()) and bool((x.grad != 0).any())
    torch.manual_seed(5)
    first = DiffAugment((kind,))(x)
    torch.manual_seed(5)
    assert torch.equal(first, DiffAugment((kind,))(x))


def test_translation_moves_and_cutout_blanks():
    x = torch.arange(1.0, 65.0).view(1, 1, 8, 8).repeat(64, 3, 1, 1)
    moved = DiffAugment(("translation",), shift=0.25)(x)
    shifts = set()
    for image in moved:
        candidates = [
            (row, column)
            for row in range(-2, 3)
            for column in range(-2, 3)
            if torch.equal(image, rolled(x[0], row, column))
        ]
        assert len(candidates) == 1
        shifts.add(candidates[0])
    assert len(shifts) > 10
    cut = DiffAugment(("cutout",), cut=0.5)(x)
    blank = (cut == 0).all(1).flatten(1).sum(1)
    assert int(blank.max()) == 16 and int(blank.min()) >= 4
    assert bool(((cut == 0) | (cut == x)).all())


def rolled(image, row, column):
    padded = F.pad(image, (2, 2, 2, 2))
    return padded[:, 2 + row : 10 + row, 2 + column : 10 + column]


def test_augmentation_with_a_probability_leaves_some_batches_alone():
    x = images()
    augment = DiffAugment(("colour",), probability=0.5)
    untouched = sum(augment(x) is x for _ in range(100))
    assert 30 < untouched < 70


def test_discriminator_learns_and_its_gradient_stops_at_the_fakes():
    torch.manual_seed(0)
    discriminator = Discriminator(
        PatchGAN(8, 2), strong=DiffAugment(), bcr_weight=0.1, lecam_weight=0.01
    )
    fake = (images(side=32) * 0.2).requires_grad_()
    optimizer = torch.optim.Adam(discriminator.parameters(), 1e-3)
    losses = []
    for _ in range(30):
        loss, logits = discriminator(images(side=32, seed=1), fake)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert fake.grad is None and logits[0] > logits[1] and losses[-1] < 0.7 * losses[0]
    discriminator.generator_loss(fake).backward()
    assert bool((fake.grad != 0).any())


def test_terms_of_the_discriminator_are_added_with_their_weights():
    class Mean(nn.Module):
        def forward(self, x):
            return x.mean((1, 2, 3))

    real, fake = images() + 1, images(seed=1)
    plain = Discriminator(Mean())(real, fake)[0]
    half = Discriminator(Mean(), strong=lambda x: x / 2, bcr_weight=4.0)(real, fake)[0]
    means = torch.stack([real.mean((1, 2, 3)), fake.mean((1, 2, 3))])
    torch.testing.assert_close(half - plain, 4 * (means / 2).square().mean(1).sum())


def test_adaptive_weight_is_the_ratio_of_gradients_of_the_last_layer():
    layer = nn.Linear(4, 4)
    x = torch.randn(8, 4)
    out = layer(x)
    a, b = 3 * out.square().mean(), out.sum()
    norms = [torch.autograd.grad(v, layer.weight, retain_graph=True)[0].norm() for v in (a, b)]
    weight = adaptive_weight(a, b, layer.weight)
    torch.testing.assert_close(weight, norms[0] / (norms[1] + 1e-4))
    assert not weight.requires_grad
    assert float(adaptive_weight(a, b * 1e-9, layer.weight, largest=50.0)) == 50.0
    (a + weight * b).backward()  # the graph is still there


def test_patchgan_sees_patches_of_70_pixels():
    x = images(1, 128).requires_grad_()
    logits = PatchGAN(4).eval()(x)
    assert logits.shape == (1, 1, 14, 14)
    logits[0, 0, 7, 7].backward()
    rows = x.grad.abs().sum((0, 1, 3)).nonzero()
    assert int(rows.max() - rows.min()) + 1 == 70


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Discriminator(PatchGAN(8), kind="soft"), "kind: .* 'soft'"),
        (lambda: Discriminator(PatchGAN(8), bcr_weight=1.0), "strong: .* None"),
        (lambda: DiffAugment(("blur",)), "kinds: .* 'blur'"),
        (lambda: DiffAugment(cut=1.5), "cut: .* 1.5"),
        (lambda: LeCAM(1.0), "decay .* 1.0"),
    ],
)
def test_bad_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_missing_or_foreign_lpips_weights_are_named(tmp_path):
    missing = tmp_path / "vgg16-397923af.pth"
    with pytest.raises(ValueError, match="download.pytorch.org/models/vgg16.*397923af8e79"):
        load_lpips(missing)
    missing.write_bytes(b"something else")
    for path in (missing, tmp_path):
        with pytest.raises(ValueError, match="is another file than"):
            load_lpips(path)
