"""rFID, IS and LPIPS against the libraries themselves, on networks with random weights."""

import json

import pytest
import torch
import working_torchvision
from PIL import Image

from vqkern import build_quantizer
from vqkern.cli import main
from vqkern.evaluate import command
from vqkern.evaluate import figures as evaluated
from vqkern.files import sha256_of
from vqkern.losses import load_lpips
from vqkern.metrics import InceptionScores
from vqkern.public_files import PublicFile
from vqkern.tokenizers import ConvConfig, build_tokenizer

LAYER = 64  # of 2048 the distance takes the eigenvalues of 2048 x 2048 matrices: half a minute


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """A file like the public one, with weights from a seed (He initialisation)."""
    name = "torch_fidelity.feature_extractor_inceptionv3"
    if working_torchvision.import_or_none("torchvision", name) is None:
        pytest.skip("torch-fidelity is not installed: pip install 'vqkern[eval]'")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Network

    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save({}, path)
    load, Network.load_state_dict = Network.load_state_dict, lambda self, state: None
    try:
        network = Network("any", ["64"], feature_extractor_weights_path=str(path))
    finally:
        Network.load_state_dict = load
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    torch.save(network.state_dict(), path)
    return PublicFile(path.name, "nowhere", sha256_of(path)), path


@pytest.fixture(scope="module")
def alexnet_file(tmp_path_factory):
    if working_torchvision.import_or_none("torchvision", "lpips") is None:
        pytest.skip("lpips is not installed: pip install 'vqkern[train]'")
    import lpips

    torch.manual_seed(0)
    own = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).net.state_dict()
    path = tmp_path_factory.mktemp("lpips") / "alexnet.pth"
    features = {f"features.{name.split('.', 1)[1]}": value for name, value in own.items()}
    torch.save(features | {"classifier.1.weight": torch.zeros(1)}, path)
    return PublicFile(path.name, "nowhere", sha256_of(path)), path


def pictures(count=12, side=48):
    generator = torch.Generator().manual_seed(0)
    shape = (count, 3, side, side)
    reference = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    noise = torch.randint(64, shape, dtype=torch.uint8, generator=generator)
    return reference // 2 + noise, reference


class Listed(torch.utils.data.Dataset):
    """A data set as torch-fidelity wants one."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, number):
        return self.images[number]


def test_inception_scores_are_torch_fidelitys(inception_file):
    import torch_fidelity

    expected, path = inception_file
    images, reference = pictures()
    scores = InceptionScores(path, layer=LAYER, expected=expected)
    for batch in range(0, 12, 5):
        scores.add(images[batch : batch + 5], reference[batch : batch + 5])
    theirs = torch_fidelity.calculate_metrics(
        input1=Listed(images),
        input2=Listed(reference),
        fid=True,
        isc=True,
        feature_layer_fid=str(LAYER),
        feature_extractor_weights_path=str(path),
        cuda=False,
        cache=False,
        verbose=False,
        batch_size=6,
        save_cpu_ram=True,  # no worker processes
    )
    assert scores.rfid() == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    wanted = theirs["inception_score_mean"]
    assert scores.inception_score() == pytest.approx(wanted, rel=1e-5)
    assert scores.rfid() > 1e-3 and wanted > 1 and scores.sha256 == expected.sha256
    with pytest.raises(ValueError, match=r"reference: expected uint8 \[B, 3, H, W\]"):
        scores.add(images, reference.float())
    fresh = InceptionScores(path, layer=LAYER, expected=expected)
    with pytest.raises(ValueError, match="got 0, Inception's scores need at least 2"):
        fresh.rfid()


def test_lpips_is_that_of_the_package(alexnet_file):
    import lpips

    expected, path = alexnet_file
    ours = load_lpips(path, "alex", expected=expected)
    theirs = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    own = theirs.net.state_dict()
    stored = torch.load(path)
    theirs.net.load_state_dict({n: stored[f"features.{n.split('.', 1)[1]}"] for n in own})
    a, b = (x[:3].float() / 127.5 - 1 for x in pictures(3, 64))
    torch.testing.assert_close(ours(a, b), theirs(a, b))
    assert ours(a, b).shape == (3, 1, 1, 1) and bool((ours(a, b) > 0).all())
    assert float(ours(a, a).max()) == 0


@pytest.mark.parametrize(
    ("load", "named"),
    [
        (InceptionScores, ("weights-inception-2015-12-05-6726825d.pth", "6726825d0af5f729")),
        (lambda path: load_lpips(path, "alex"), ("alexnet-owt-7be5be79.pth", "7be5be791159472b")),
        (load_lpips, ("vgg16-397923af.pth", "397923af8e79cdbb", "download.pytorch.org")),
    ],
    ids=["inception", "alex", "vgg"],
)  # fmt: skip
def test_missing_and_foreign_files_are_named(tmp_path, load, named):
    with pytest.raises(ValueError, match="is not there") as missing:
        load(tmp_path)
    foreign = tmp_path / named[0]
    foreign.write_bytes(b"something else")
    with pytest.raises(ValueError, match="is another file than") as other:
        load(foreign)
    for error in (missing, other):
        assert all(part in str(error.value) for part in named)


def test_eval_writes_all_figures_with_what_they_are(
    tmp_path, monkeypatch, capsys, inception_file, alexnet_file
):
    from functools import partial

    inception, lpips = inception_file, alexnet_file
    monkeypatch.setattr(
        command, "InceptionScores", partial(InceptionScores, expected=inception[0], layer=LAYER)
    )
    monkeypatch.setattr(evaluated, "load_lpips", partial(load_lpips, expected=lpips[0]))
    config = ConvConfig(latent_dim=4, widths=(8,), blocks=(1,), groups=4)
    quantizer = build_quantizer("vanilla", dim=4, codebook_size=16, channel_dim=1)
    build_tokenizer(config, quantizer).save_pretrained(tmp_path / "run")
    (tmp_path / "images").mkdir()
    for number, image in enumerate(pictures(10)[1]):
        file = tmp_path / f"images/{number}.png"
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
    more = ["--data", str(tmp_path / "images"), "--size", "48", "--device", "cpu"]
    more += ["--inception", str(inception[1]), "--lpips", str(lpips[1])]
    assert main(["eval", str(tmp_path / "run"), "--protocol", "vq-transplant", *more]) == 0
    figures = json.loads((tmp_path / "run/eval-vq-transplant.json").read_text())
    assert figures["images"] == 10 and figures["protocol"] == "vq-transplant"
    assert figures["protocol_pixels"] == "floats" and figures["protocol_crop"] == "adm"
    assert figures["crop"] == "adm 48"
    assert figures["rfid"] > 0 and figures["lpips"] > 0
    assert figures["inception_score"] == 1  # ten splits of a single image
    assert figures["lpips_network"] == "alex"
    assert figures["lpips_sha256"] == lpips[0].sha256
    assert figures["inception_sha256"] == inception[0].sha256
    assert f"{figures['rfid']:.6g}" in capsys.readouterr().out
    assert main(["eval", str(tmp_path / "run"), "--protocol", "fvq", *more[:6]]) == 0
    figures = json.loads((tmp_path / "run/eval-fvq.json").read_text())
    assert figures["crop"] == "center 48" and "rfid" not in figures and "lpips" not in figures
