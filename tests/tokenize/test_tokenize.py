"""`vqkern tokenize`: the encoder's indices, in files that numpy alone reads, whatever stops it."""

import hashlib
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from image_files import encoded, fill_folder

from vqkern import build_quantizer, cli
from vqkern.data import Crop, CroppedImages, Folder, QuarantineError, open_source, pack, to_float
from vqkern.tokenize import read_manifest, read_tokens, tokenize
from vqkern.tokenizers import ConvConfig, build_tokenizer

CROP = Crop("adm", 16)
CONFIG = ConvConfig(latent_dim=8, shuffle=2, widths=(8, 8), blocks=(1, 1))
NAMES = {
    "vanilla": (4, 4),
    "vanilla_halves": (4, 4, 2),
    "vanilla_vp2": (4, 4),
    "mgvq": (4, 4, 4),
    "vanilla_rq": (4, 4, 4),
    "vanilla_var": (21,),
    "fsq": (4, 4),
}


def tokenizer(name="vanilla"):
    options = {"patch_sizes": (1, 2, 4)} if name == "vanilla_var" else {}
    size = 3**8 if name == "fsq" else 64
    quantizer = build_quantizer(name, dim=8, codebook_size=size, channel_dim=1, **options)
    return build_tokenizer(CONFIG, quantizer).eval()


def images(folder, crop=CROP):
    return CroppedImages(open_source(folder), crop)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def rows(folder):
    names, index = [], []
    for some, part in read_tokens(folder):
        names += some
        index.append(part)
    return names, np.concatenate(index)


@pytest.mark.parametrize("name", NAMES)
def test_shards_hold_the_indices_of_every_structure(tmp_path, name):
    made, source = tokenizer(name), images(fill_folder(tmp_path / "in", 7))
    manifest = tokenize(made, source, tmp_path / "out", batch_size=2, shard_size=5)
    names, index = rows(tmp_path / "out")
    assert names == source.source.names and index.dtype == np.int32
    assert index.shape[1:] == NAMES[name] and manifest["index_shape"] == list(NAMES[name])
    assert manifest["codebook_size"] == (3**8 if name == "fsq" else 64)
    for number in range(7):
        pixels = torch.from_numpy(source.read(number, None).copy()).permute(2, 0, 1)
        expected = made.encode(to_float(pixels)[None])[0]
        assert np.array_equal(index[number], expected.numpy())


def test_the_files_are_read_by_numpy_alone(tmp_path):
    tokenize(tokenizer(), images(fill_folder(tmp_path / "in", 7)), tmp_path / "out", shard_size=4)
    code = (
        "import json, pathlib, sys, numpy as np\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "manifest = json.loads((folder / 'manifest.json').read_text())\n"
        "parts = [np.load(folder / s['file']) for s in manifest['shards']]\n"
        "print(np.concatenate(parts).tolist())\n"
        "assert 'torch' not in sys.modules\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "out"], capture_output=True, text=True, check=True
    )
    assert json.loads(run.stdout) == rows(tmp_path / "out")[1].tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_folders_and_packed_shards_give_the_same_tokens(tmp_path, workers):
    made, source = tokenizer(), images(fill_folder(tmp_path / "in", 9))
    pack(source, tmp_path / "packed", 4)
    packed = images(tmp_path / "packed", Crop("whole", 16))
    tokenize(made, source, tmp_path / "a", batch_size=4, shard_size=4)
    tokenize(made, packed, tmp_path / "b", batch_size=4, shard_size=4, workers=workers)
    assert np.array_equal(rows(tmp_path / "a")[1], rows(tmp_path / "b")[1])


def command(tmp_path, out, *more):
    made = tmp_path / "tokenizer"
    if not made.exists():
        tokenizer().save_pretrained(made)
    arguments = ["tokenize", str(made), "--data", str(tmp_path / "in"), "--out", str(out)]
    return [*arguments, "--size", "16", "--batch", "4", "--shard-size", "4", *more]


def test_the_command_names_damage_and_the_tokenizer(tmp_path, capsys):
    fill_folder(tmp_path / "in", 9, damaged=(3,))
    assert cli.main(command(tmp_path, tmp_path / "out", "--max-damaged", "0.2")) == 0
    captured = capsys.readouterr()
    assert "8 images of 4 x 4 tokens" in captured.out and "003.png" in captured.err
    manifest = read_manifest(tmp_path / "out")
    assert manifest["damaged"][0]["name"] == "class1/003.png" and manifest["images"] == 8
    for name, digest in manifest["tokenizer"]["sha256"].items():
        content = (tmp_path / "tokenizer" / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest
    assert set(manifest["tokenizer"]["sha256"]) == {"config.json", "model.safetensors"}
    # Figures that `vqkern eval` leaves beside the tokenizer do not make it another.
    (tmp_path / "tokenizer/eval-rgb.json").write_text("{}")
    assert cli.main(command(tmp_path, tmp_path / "out", "--max-damaged", "0.2")) == 0
    capsys.readouterr()
    assert cli.main(command(tmp_path, tmp_path / "other")) == 2
    assert "1 of 9 images are damaged" in capsys.readouterr().err
    for more, message in [
        (["--size", "18"], "size = 16"),
        (["--threads", "0"], "--threads: got 0"),
        (["--crop", "none"], "crop: got 'none'"),
        (["--crop", "adm_random"], "is random"),
    ]:
        line = command(tmp_path, tmp_path / "out", "--max-damaged", "0.2", *more)
        assert cli.main(line) == 2
        assert message in capsys.readouterr().err


# The command with an encoder that leaves time to be killed.
SLOW = """
import sys, time
from vqkern import cli
from vqkern.tokenizers import Tokenizer
encode = Tokenizer.encode
Tokenizer.encode = lambda self, images: (time.sleep(0.05), encode(self, images))[1]
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_killed_run_gives_the_same_bytes(tmp_path):
    """SIGKILL while the second shard or a later one is being made, then the same command again."""
    fill_folder(tmp_path / "in", 80, damaged=(3, 41))
    line = command(tmp_path, tmp_path / "out", "--workers", "1", "--max-damaged", "0.03")
    process = subprocess.Popen([sys.executable, "-c", SLOW, *line])
    deadline = time.monotonic() + 60
    while not (tmp_path / "out" / "tokens-00001.npy").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    finished = len(read_manifest(tmp_path / "out")["shards"])
    assert 1 <= finished < 20 and not read_manifest(tmp_path / "out")["complete"]
    with pytest.raises(ValueError, match="not finished"):
        rows(tmp_path / "out")
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("tokens-*")}
    assert cli.main(line) == 0
    for entry in read_manifest(tmp_path / "out")["shards"][:finished]:
        path = tmp_path / "out" / entry["file"]
        assert path.stat().st_mtime_ns == before[path.name]  # kept, not made again
    assert cli.main(command(tmp_path, tmp_path / "whole", "--max-damaged", "0.03")) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert len(rows(tmp_path / "out")[0]) == 78


def test_latents_that_are_not_finite_are_counted(tmp_path, capsys):
    fill_folder(tmp_path / "in", 3)
    made = tokenizer()
    encode = made.encode
    made.encode = lambda pixels: encode(pixels).index_fill(1, torch.tensor([0]), -1)
    manifest = tokenize(made, images(tmp_path / "in"), tmp_path / "out")
    assert manifest["not_finite"] == 3 * 4 and (rows(tmp_path / "out")[1][:, 0] == -1).all()


@pytest.mark.parametrize("value", [-2, 64, 2**40])
def test_indices_outside_the_codebook_are_refused(tmp_path, value):
    fill_folder(tmp_path / "in", 3)
    made = tokenizer()
    made.encode = lambda pixels: torch.full((len(pixels), 4), value)
    with pytest.raises(ValueError, match=f"index: got {value} to {value}, expected -1 to 64 - 1"):
        tokenize(made, images(tmp_path / "in"), tmp_path / "out")


def test_a_shard_of_nothing_but_damage_is_empty(tmp_path):
    source = images(fill_folder(tmp_path / "in", 8, damaged=(0, 2, 4, 6)))  # names of class0
    manifest = tokenize(tokenizer(), source, tmp_path / "out", shard_size=4, max_share=0.5)
    assert [entry["images"] for entry in manifest["shards"]] == [0, 4]
    assert sum(len(names) for names, _ in read_tokens(tmp_path / "out")) == 4
    with pytest.raises(QuarantineError, match="of 8 images are damaged"):
        tokenize(tokenizer(), source, tmp_path / "other", max_share=0.4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format="x"), "not of format"),
        (lambda m: m.update(format_version=2), "not of format"),
        (lambda m: m.update(shards={}), "no valid lists"),
        (lambda m: m.update(dtype="object"), "no valid lists"),
        (lambda m: m["shards"][0].update(file="../../x.npy"), "no valid lists"),
        (lambda m: m["shards"][0].update(names="/etc/passwd"), "no valid lists"),
        (lambda m: m["shards"][0].update(sha256="0"), "not as it was written"),
        (lambda m: m["shards"][0].update(file="gone.npy"), "is missing"),
        (lambda m: m.pop("damaged"), "no valid lists"),
    ],
)
def test_changed_manifests_are_refused(tmp_path, change, message):
    source = images(fill_folder(tmp_path / "in", 4))
    tokenize(tokenizer(), source, tmp_path / "out", shard_size=2)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    change(manifest)
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=message):
        rows(tmp_path / "out")
    with pytest.raises(ValueError, match=message):
        tokenize(tokenizer(), source, tmp_path / "out", shard_size=2)


def test_other_settings_are_refused(tmp_path):
    source = images(fill_folder(tmp_path / "in", 4))
    tokenize(tokenizer(), source, tmp_path / "out")
    with pytest.raises(ValueError, match="begun with batch_size = 32, now it is 8"):
        tokenize(tokenizer(), source, tmp_path / "out", batch_size=8)
    with pytest.raises(ValueError, match="begun with tokenizer = "):
        tokenize(tokenizer(), source, tmp_path / "out", tokenizer_sha256={"a": "b"})
    with pytest.raises(ValueError, match="batch_size and shard_size: got 0 and 4"):
        tokenize(tokenizer(), source, tmp_path / "new", batch_size=0, shard_size=4)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "tokens-00000.npy").write_bytes(b"")
    with pytest.raises(ValueError, match="holds shards and no manifest.json"):
        tokenize(tokenizer(), source, tmp_path / "mine")
    (tmp_path / "in" / "more.png").write_bytes(encoded(1))
    assert isinstance(open_source(tmp_path / "in"), Folder)
    with pytest.raises(ValueError, match="begun with source = "):
        tokenize(tokenizer(), images(tmp_path / "in"), tmp_path / "out")
