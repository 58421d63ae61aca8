"""Packing: the crops' pixels, a checked index, and the same bytes wherever it was stopped."""

import hashlib
import json

import numpy as np
import pytest
from image_files import encoded, fill_folder
from PIL import Image

from vqkern import cli
from vqkern.data import Crop, CroppedImages, Folder, QuarantineError, TarShards, open_source, pack
from vqkern.data import pack as pack_function
from vqkern.data.pack import check_index

CROP = Crop("adm", 24)


def images(folder, crop=CROP):
    return CroppedImages(open_source(folder), crop)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_hold_the_crops(tmp_path, workers):
    source = images(fill_folder(tmp_path / "in", 7))
    index = pack(source, tmp_path / "out", shard_size=3, workers=workers)
    assert [entry["images"] for entry in index["shards"]] == [3, 3, 1]
    packed = open_source(tmp_path / "out")
    assert isinstance(packed, TarShards) and len(packed) == 7
    for number in range(7):
        assert packed.names[number].endswith(f"/{source.source.names[number]}.png")
        expected = np.asarray(CROP(source.source.load(number)))
        assert np.array_equal(np.asarray(packed.load(number)), expected)
    for entry in index["shards"]:
        content = (tmp_path / "out" / entry["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]


def test_a_stopped_run_gives_the_same_bytes(tmp_path, monkeypatch):
    source = images(fill_folder(tmp_path / "in", 10, damaged=(4,)))
    pack(source, tmp_path / "whole", 3, max_share=0.2)
    load, calls = Folder.load, []

    def stop(self, number):
        calls.append(number)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return load(self, number)

    monkeypatch.setattr(Folder, "load", stop)
    with pytest.raises(KeyboardInterrupt):
        pack(source, tmp_path / "out", 3, max_share=0.2)
    assert (tmp_path / "out" / "shard-00002.tar.part").exists()
    with pytest.raises(ValueError, match="not finished"):
        open_source(tmp_path / "out")
    pack(source, tmp_path / "out", 3, max_share=0.2)
    assert calls[8:] == [6, 7, 8, 9]  # finished shards are not made again
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    pack(source, tmp_path / "out", 3, max_share=0.2)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_damage_is_named_in_the_index_and_stops_above_the_share(tmp_path):
    source = images(fill_folder(tmp_path / "in", 10, damaged=(4, 5)))
    index = pack(source, tmp_path / "out", 4, max_share=0.2)
    assert sum(entry["images"] for entry in index["shards"]) == 8
    assert [d["name"] for d in index["damaged"]] == ["class0/004.png", "class1/005.png"]
    with pytest.raises(QuarantineError, match="2 of 10"):
        pack(source, tmp_path / "other", 4, max_share=0.1)


def test_other_settings_and_other_folders_are_refused(tmp_path):
    source = images(fill_folder(tmp_path / "in", 4))
    pack(source, tmp_path / "out", 2)
    for changed, size, name in [
        (images(tmp_path / "in", Crop("adm", 16)), 2, "size = 24"),
        (images(tmp_path / "in", Crop("center", 24)), 2, "crop = 'adm'"),
        (source, 3, "shard_size = 2"),
    ]:
        with pytest.raises(ValueError, match=f"begun with {name}"):
            pack(changed, tmp_path / "out", size)
    (tmp_path / "in" / "more.png").write_bytes(encoded(9))
    with pytest.raises(ValueError, match="begun with source = "):
        pack(images(tmp_path / "in"), tmp_path / "out", 2)
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "mine.tar").write_bytes(b"")
    with pytest.raises(ValueError, match="holds tar files and no index.json"):
        pack(source, tmp_path / "tars", 2)
    with pytest.raises(ValueError, match="shard_size and workers: got 0 and 0"):
        pack_function(source, tmp_path / "new", 0)
    with pytest.raises(ValueError, match="adm_random' is random"):
        pack(images(tmp_path / "in", Crop("adm_random", 8)), tmp_path / "new")


def test_names_that_no_shard_may_hold_are_quarantined(tmp_path):
    folder = fill_folder(tmp_path / "in", 2)
    (folder / "a\\b.png").write_bytes(encoded(1))
    (folder / "a\nb.png").write_bytes(encoded(1))
    index = pack(images(folder), tmp_path / "out", max_share=0.5)
    assert [d["name"] for d in index["damaged"]] == ["a\nb.png", "a\\b.png"]
    assert len(open_source(tmp_path / "out")) == 2


def edit_index(folder, change):
    path = folder / "index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: i.update(format="other"), "not of format"),
        (lambda i: i.update(format_version=2), "not of format"),
        (lambda i: i.update(shards=None), "no valid lists"),
        (lambda i: i["shards"].append("x"), "no valid lists"),
        (lambda i: i["shards"][0].update(file="../shard-00000.tar"), "no valid lists"),
        (lambda i: i["shards"][0].update(file="/etc/passwd"), "no valid lists"),
        (lambda i: i["shards"][0].update(file="gone.tar"), "is not in its index"),
        (lambda i: i["shards"][0].update(bytes=7), "not the file of the index"),
        (lambda i: i["shards"].pop(), "'shard-00001.tar' is not in its index"),
        (lambda i: i.update(complete=False), "not finished"),
    ],
)
def test_a_changed_index_is_refused(tmp_path, change, message):
    pack(images(fill_folder(tmp_path / "in", 4)), tmp_path / "out", 2)
    edit_index(tmp_path / "out", change)
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path / "out")


def test_a_changed_shard_is_found_by_its_sum(tmp_path):
    pack(images(fill_folder(tmp_path / "in", 4)), tmp_path / "out", 2)
    assert check_index(tmp_path / "out", sums=True)["source_images"] == 4
    assert check_index(tmp_path / "in") is None
    path = tmp_path / "out" / "shard-00001.tar"
    content = bytearray(path.read_bytes())
    content[600] ^= 1
    path.write_bytes(content)
    check_index(tmp_path / "out")
    with pytest.raises(ValueError, match="'shard-00001.tar' is not the file of the index"):
        check_index(tmp_path / "out", sums=True)
    path.unlink()
    with pytest.raises(ValueError, match="'shard-00001.tar' is missing"):
        check_index(tmp_path / "out")


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"[" * 100_000, b"\xff\xfe"])
def test_an_index_that_is_not_json_is_refused(tmp_path, text):
    pack(images(fill_folder(tmp_path / "in", 2)), tmp_path / "out", 2)
    (tmp_path / "out" / "index.json").write_bytes(text)
    with pytest.raises(ValueError, match="shard index .*(cannot be read|not a JSON object)"):
        open_source(tmp_path / "out")


def test_the_command_packs_and_checks(tmp_path, capsys):
    fill_folder(tmp_path / "in", 5, damaged=(1,))
    arguments = ["data", "pack", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    arguments += ["--size", "16", "--shard-size", "2", "--max-damaged", "0.2", "--workers", "1"]
    assert cli.main(arguments) == 0
    captured = capsys.readouterr()
    assert "4 images in 3 shards" in captured.out
    assert "1 damaged image was left out" in captured.err and "001.png" in captured.err
    assert cli.main(["data", "check", str(tmp_path / "out")]) == 0
    assert "4 images in 3 shards, all as indexed" in capsys.readouterr().out
    assert Image.open(tmp_path / "in" / "class0" / "000.png").size == (40, 32)
    assert cli.main(["data", "check", str(tmp_path / "in")]) == 2
    assert cli.main(["data", "pack", str(tmp_path / "none"), "--out", str(tmp_path / "o")]) == 2
    assert capsys.readouterr().err.count("\n") == 2
