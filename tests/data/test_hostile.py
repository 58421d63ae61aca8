"""Hostile archives, images and folders: each refused or quarantined, clearly and without harm."""

import gzip
import io
import os
import pickle
import struct
import tarfile
import zlib

import numpy as np
import pytest
from image_files import encoded, pixels, tar_bytes
from PIL import Image

from vqkern.data import Folder, TarShards, decode_image, open_source
from vqkern.data.tar import list_members

pytestmark = pytest.mark.usefixtures("no_harm")
GOOD = ("good.png", encoded(0))


def special(name, kind, size=0, link="/etc/passwd"):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


REJECTED_MEMBERS = {
    "parent": (("../escaped/x.png", GOOD[1]), "contains '..'"),
    "parent-inside": (("a/../../escaped.png", GOOD[1]), "contains '..'"),
    "absolute": (("/tmp/vqkern-escaped", GOOD[1]), "is absolute"),
    "drive": (("C:/x.png", GOOD[1]), "is absolute"),
    "backslash": (("..\\escaped.png", GOOD[1]), "backslash"),
    "newline": (("a\nb.png", GOOD[1]), "control characters"),
    "escape": (("a\x1b[2J.png", GOOD[1]), "control characters"),
    "direction": (("a\u202egnp.png", GOOD[1]), "control characters"),
    "not-utf8": (("a\udcff.png", GOOD[1]), "not UTF-8"),
    "symlink": (special("x.png", tarfile.SYMTYPE), "symbolic link"),
    "symlink-with-size": (special("x.png", tarfile.SYMTYPE, 10**9), "symbolic link"),
    "hardlink": (special("x.png", tarfile.LNKTYPE), "hard link"),
    "character-device": (special("x.png", tarfile.CHRTYPE), "character device"),
    "block-device": (special("x.png", tarfile.BLKTYPE), "block device"),
    "pipe": (special("x.png", tarfile.FIFOTYPE), "named pipe"),
    "contiguous": (special("x.png", tarfile.CONTTYPE), "contiguous"),
    "unknown": (special("x.png", b"Q"), "type b'Q' is unknown"),
    "twice": (GOOD, "another member has its name"),
    "long-parent": (("a/" * 80 + "../x.png", GOOD[1]), "contains '..'"),
}


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["gnu", "pax"])
@pytest.mark.parametrize("kind", REJECTED_MEMBERS)
def test_members_that_are_no_data_are_rejected_and_named(tmp_path, kind, format):
    member, reason = REJECTED_MEMBERS[kind]
    path = tmp_path / "shard.tar"
    options = {"format": format, "errors": "surrogateescape", "encoding": "utf-8"}
    path.write_bytes(tar_bytes(GOOD, member, ("last.png", GOOD[1]), **options))
    source = TarShards([path])
    assert source.names == ["shard.tar/good.png", "shard.tar/last.png"]
    assert [reason in damage.reason for damage in source.rejected] == [True]
    assert all("\n" not in d.reason and "\x1b" not in d.reason for d in source.rejected)
    assert np.array_equal(np.asarray(source.load(1)), pixels(0))
    assert sorted(os.listdir(tmp_path)) == ["shard.tar"]


def with_header(position, content, checksum=True):
    """The good archive with changed bytes in its first header."""
    block = bytearray(tar_bytes(GOOD))
    block[position : position + len(content)] = content
    if checksum:
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block[:512])
    return bytes(block)


def sized(kind, size, content=b""):
    """A header of a type that declares a size, whatever follows it."""
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


def pax(content):
    return sized(tarfile.XHDTYPE, len(content), content) + tar_bytes(GOOD)


REFUSED_ARCHIVES = {
    "empty": (b"", "truncated"),
    "zeros-512": (bytes(512), "expected tar files with images"),
    "no-tar": (b"no tar file at all " * 60, "damaged"),
    "image": (encoded(0), "truncated|damaged"),
    "checksum": (with_header(0, b"B", checksum=False), "damaged"),
    "size-letters": (with_header(124, b"xyz"), "damaged"),
    "size-negative": (with_header(124, b"\xff" * 12), "impossible size"),
    "size-huge-octal": (with_header(124, b"77777777777\0"), "declares 8589934591 bytes"),
    "size-huge-binary": (with_header(124, b"\x80" + b"\0" * 3 + b"\x7f" * 8), "declares"),
    "size-one-block-more": (with_header(124, b"%011o\0" % 2**16), "declares 65536 bytes"),
    "header-cut": (tar_bytes(GOOD)[:300], "truncated"),
    "data-cut": (tar_bytes(GOOD)[:700], "truncated"),
    "no-end": (tar_bytes(GOOD, end=False), "without its end mark"),
    "joined": (tar_bytes(GOOD) + tar_bytes(GOOD), "goes on after its end mark"),
    "padded-without-end": (tar_bytes(GOOD) + bytes(2**21), "goes on after its end mark"),
    "gzip": (gzip.compress(tar_bytes(GOOD)), r"compressed \(gzip\)"),
    "gzip-bomb": (gzip.compress(bytes(2**24)), r"compressed \(gzip\)"),
    "bzip2": (b"BZh91AY&SY" + bytes(600), r"compressed \(bzip2\)"),
    "xz": (b"\xfd7zXZ\0" + bytes(600), r"compressed \(xz\)"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(600), r"compressed \(zstd\)"),
    "long-name-huge": (sized(b"L", 2**31) + tar_bytes(GOOD), "declares 2147483648 bytes"),
    "long-name-large": (sized(b"L", 2**17, b"a" * 2**17) + tar_bytes(GOOD), "a name of 131072"),
    "long-name-last": (sized(b"L", 5, b"a.png") + bytes(1024), "truncated"),
    "pax-large": (pax(b"30 comment=" + b"a" * 2**17), "a name of 131083"),
    "pax-no-records": (pax(b"nonsense"), "no valid records"),
    "pax-record-too-long": (pax(b"99 path=x\n"), "no valid records"),
    "pax-record-too-short": (pax(b"3 path=x\n"), "no valid records|too short"),
    "pax-size-negative": (pax(b"12 size=-99\n"), "impossible size"),
    "pax-size-words": (pax(b"12 size=two\n"), "impossible size"),
    "pax-size-huge": (pax(b"30 size=99999999999999999999\n\n"), "declares|no valid"),
    "pax-global-path": (
        sized(tarfile.XGLTYPE, 11, b"11 path=aa\n") + tar_bytes(GOOD),
        "global header",
    ),
    "text-only": (tar_bytes(("notes.txt", b"x")), "expected tar files with images"),
    "folder-only": (tar_bytes(special("a.png", tarfile.DIRTYPE)), "expected tar files with"),
    "hidden-only": (tar_bytes((".a.png", GOOD[1])), "expected tar files with images"),
}


@pytest.mark.parametrize("kind", REFUSED_ARCHIVES)
def test_damaged_archives_are_refused(tmp_path, kind):
    content, message = REFUSED_ARCHIVES[kind]
    path = tmp_path / "shard.tar"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        TarShards([path])
    assert "shard.tar" in str(caught.value) and "\n" not in str(caught.value)


def test_a_member_above_the_limit_is_rejected(tmp_path):
    path = tmp_path / "shard.tar"
    path.write_bytes(tar_bytes(GOOD, ("large.png", bytes(5000))))
    listing = list_members(path, max_member_bytes=4999)
    assert [m.name for m in listing.members] == ["good.png"]
    assert "5000 bytes, more than the 4999" in listing.rejected[0].reason


def test_a_sparse_file_is_never_unfolded(tmp_path):
    path = tmp_path / "shard.tar"
    content = b"22 GNU.sparse.major=1\n"
    path.write_bytes(pax(content))
    assert "sparse" in list_members(path).rejected[0].reason


def test_a_huge_archive_with_a_huge_name_takes_no_memory(tmp_path):
    path = tmp_path / "shard.tar"
    with open(path, "wb") as file:
        file.write(sized(b"L", 2**33))
        file.truncate(2**34)  # a hole: no disk is used
    with pytest.raises(ValueError, match="a name of 8589934592 bytes"):
        list_members(path)


def test_a_shard_that_shrinks_while_it_is_read_is_named(tmp_path):
    path = tmp_path / "shard.tar"
    path.write_bytes(tar_bytes(GOOD))
    source = TarShards([path])
    path.write_bytes(tar_bytes(GOOD)[:600])
    with pytest.raises(ValueError, match="88 of the .* bytes of 'good.png' are left"):
        source.load(0)


@pytest.mark.parametrize("seed", range(40))
def test_any_damage_to_an_archive_is_an_error_or_a_listing(tmp_path, seed):
    rng = np.random.default_rng(seed)
    members = [(f"{'long/' * 30}{i}.png", GOOD[1]) for i in range(2)]
    formats = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    content = bytearray(tar_bytes(GOOD, *members, format=formats[seed % 3]))
    for place in rng.integers(0, len(content), 1 + seed % 7):
        content[place] = rng.integers(256)
    path = tmp_path / "shard.tar"
    path.write_bytes(content[: rng.integers(1, len(content) + 1)] if seed % 4 == 0 else content)
    try:
        listing = list_members(path)
    except ValueError as error:
        assert "shard.tar" in str(error)
    else:
        assert all(m.offset + m.size <= len(content) for m in listing.members)


def png_chunk(kind, content):
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def png(width, height, depth=8, colour=2, data=b"", before=b""):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + before + png_chunk(b"IDAT", zlib.compress(data))
    return b"\x89PNG\r\n\x1a\n" + body + png_chunk(b"IEND", b"")


def damaged_jpeg():
    content = bytearray(encoded(0, "JPEG", width=200, height=200))
    return bytes(content[: len(content) // 2])


def floating_tiff():
    buffer = io.BytesIO()
    Image.fromarray(np.ones((8, 8), np.float32)).save(buffer, "TIFF")
    return buffer.getvalue()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) (w) file\n%%EOF\n"
BAD_IMAGES = {
    "empty": (b"", "cannot be read"),
    "text": (b"no image", "cannot be read"),
    "zeros": (bytes(4096), "cannot be read"),
    "html": (b"<html>404</html>", "cannot be read"),
    "pickle": (pickle.dumps({"a": print}), "cannot be read"),
    "postscript": (EPS, "cannot be read"),
    "pdf": (b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n", "cannot be read"),
    "png-bomb": (png(50_000, 50_000, data=bytes(50_000)), "too large to decode safely"),
    "png-bomb-mild": (png(10_000, 9_500), "too large to decode safely"),
    "png-bomb-32-bit": (png(2**31 - 1, 2**31 - 1), "too large to decode safely"),
    "png-zero-wide": (png(0, 10), "cannot be read"),
    "png-short-data": (png(64, 64, data=bytes(100)), "cannot be read"),
    "png-text-bomb": (
        png(4, 4, before=png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**23), 1))),
        "cannot be read",
    ),
    "png-cut": (encoded(0)[:-40], "cannot be read"),
    "png-flipped": (encoded(0)[:60] + b"\xff" + encoded(0)[61:], "cannot be read"),
    "jpeg-cut": (damaged_jpeg(), "cannot be read"),
    "jpeg-head": (b"\xff\xd8\xff\xe0", "cannot be read"),
    "gif-cut": (encoded(0, "GIF")[:40], "cannot be read"),
    "tiff-cut": (encoded(0, "TIFF")[:90], "cannot be read"),
    "tiff-floating": (floating_tiff(), "no fixed range"),
    "webp-cut": (encoded(0, "WEBP")[:30], "cannot be read"),
    "bmp-huge": (b"BM" + bytes(8) + struct.pack("<IIiiHHI", 54, 40, 2**30, 2**30, 1, 24, 0),
                 "too large|cannot be read"),
    "ppm-huge": (b"P6 99999999 99999999 255\n", "too large|cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_bad_images_are_named(tmp_path, kind):
    content, message = BAD_IMAGES[kind]
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        Folder(tmp_path).load(0)
    assert "bad.png" in str(caught.value) and "\n" not in str(caught.value)
    path = tmp_path / "shard.tar"
    path.write_bytes(tar_bytes(("bad.png", content)))
    with pytest.raises(ValueError, match=message):
        TarShards([path]).load(0)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", "GIF"])
@pytest.mark.parametrize("seed", range(12))
def test_any_damage_to_an_image_is_an_error_or_an_image(kind, seed):
    rng = np.random.default_rng(seed)
    content = bytearray(encoded(seed, kind))
    for place in rng.integers(0, min(len(content), 400), 1 + seed % 5):
        content[place] = rng.integers(256)
    try:
        image = decode_image(io.BytesIO(content), "x")
    except ValueError as error:
        assert str(error).startswith("image 'x'")
    else:
        assert image.mode == "RGB"


def test_what_is_not_a_regular_file_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    source = Folder(tmp_path)
    assert source.names == ["gone.png", "pipe.png", "zero.png"]
    with pytest.raises(OSError):
        source.load(0)
    for number in (1, 2):
        with pytest.raises(ValueError, match="not a regular file"):
            source.load(number)


def test_a_huge_file_is_not_read(tmp_path):
    with open(tmp_path / "huge.png", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match="1099511627776 bytes, more than"):
        Folder(tmp_path).load(0)


def test_a_folder_in_itself_is_listed_once(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(GOOD[1])
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert Folder(tmp_path).names == ["a/x.png"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a.png", "b.tar"), "mixes tar shards and images"),
        (("a.png", "b.nii"), "mixes volumes and images"),
        (("notes.txt",), "holds no image"),
        ((".hidden.png",), "holds no image"),
        ((), "holds no image"),
    ],
)
def test_unclear_folders_are_refused(tmp_path, names, message):
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path)


def test_paths_that_lead_nowhere_are_named(tmp_path):
    (tmp_path / "x.tar.gz").write_bytes(b"")
    for path, message in [
        (tmp_path / "none", "does not exist"),
        (tmp_path / "x.tar.gz", "expected a folder or a .tar file"),
    ]:
        with pytest.raises(ValueError, match=message):
            open_source(path)
    for paths in ([], [tmp_path / "a" / "x.tar", tmp_path / "b" / "x.tar"]):
        with pytest.raises(ValueError, match="paths: "):
            TarShards(paths)
