"""What is in a tar file, without extracting anything: where each member's bytes lie.

The headers are walked one block of 512 bytes at a time; no length that a header declares is ever
allocated before it is checked. Names, links and devices can do no harm, as nothing is written, but
a member that has them is not data either: it is rejected and named.
"""

import os
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from vqkern.data.quarantine import Damage

BLOCK = 512
MAX_MEMBER_BYTES = 2**28
MAX_NAME_BYTES = 2**16
MAX_PADDING_BYTES = 2**20

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE)
_IRREGULAR = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a character device",
    tarfile.BLKTYPE: "a block device",
    tarfile.FIFOTYPE: "a named pipe",
    tarfile.CONTTYPE: "a contiguous file",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


class Member(NamedTuple):
    """A regular file in a tar file: its bytes are [offset, offset + size)."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Listing:
    """Members in the archive's order, and what was rejected, with reasons."""

    members: list[Member]
    rejected: list[Damage]


def list_members(path: str | Path, max_member_bytes: int = MAX_MEMBER_BYTES) -> Listing:
    """The regular files of an uncompressed tar file (ustar, GNU or pax).

    Rejected members: absolute names, names with `..`, backslashes, control characters or bytes that
    are not UTF-8, a second member of one name, links, devices, pipes, sparse files, and files of
    more than `max_member_bytes`.

    Raises:
        ValueError: not a plain tar file (compressed ones cannot be read at random, and may be
            bombs), damaged, truncated, or with data behind its end.
    """
    path = Path(path)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            return _walk(file, size, str(path), max_member_bytes)
        except tarfile.HeaderError as error:
            raise ValueError(
                f"tar file {str(path)!r} is damaged before byte {file.tell()}: {error}"
            ) from error


def read_member(path: str | Path, member: Member) -> bytes:
    """The member's bytes.

    Raises:
        ValueError: the file has become shorter since it was listed.
    """
    with open(path, "rb") as file:
        file.seek(member.offset)
        content = file.read(member.size)
    if len(content) != member.size:
        raise ValueError(
            f"tar file {str(path)!r}: {len(content)} of the {member.size} bytes of "
            f"{member.name!r} are left; it was changed since it was listed"
        )
    return content


def unsafe_name(name: str) -> str | None:
    """Why a name inside an archive is refused; None for a plain relative path."""
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return "its name is absolute"
    if ".." in name.split("/"):
        return "its name contains '..'"
    if "\\" in name:
        return "its name contains a backslash"
    if any(0xD800 <= ord(c) <= 0xDFFF for c in name):
        return "its name is not UTF-8"
    if not name.isprintable():
        return "its name contains control characters"
    return None


def _walk(file: BinaryIO, size: int, shown: str, max_member_bytes: int) -> Listing:
    members: list[Member] = []
    rejected: list[Damage] = []
    names: set[str] = set()
    override: dict[str, str] = {}  # name and size of the next member, from GNU or pax headers
    while True:
        block = file.read(BLOCK)
        if not any(block) and len(block) == BLOCK and not override:
            _check_end(file, size, shown)
            return Listing(members, rejected)
        if file.tell() == len(block):
            _refuse_compressed(block, shown)
        if len(block) < BLOCK or not any(block):
            raise ValueError(f"tar file {shown!r} is truncated: it ends without its end mark")
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        length = _size(override.get("size"), header.size, shown)
        offset = file.tell()
        padded = -(-length // BLOCK) * BLOCK if _has_data(header) else 0
        if offset + padded > size:
            raise ValueError(
                f"tar file {shown!r} is truncated: {header.name!r} declares {length} bytes "
                f"and {size - offset} are left"
            )
        if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            text = _bounded(file, length, shown).split(b"\0", 1)[0]
            if header.type == tarfile.GNUTYPE_LONGNAME:
                override["path"] = text.decode("utf-8", "surrogateescape")
        elif header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE):
            records = _pax(_bounded(file, length, shown), shown)
            if header.type != tarfile.XGLTYPE:
                override |= records
            elif records.keys() & {"path", "size"}:
                raise ValueError(f"tar file {shown!r}: a global header sets names or sizes")
        else:
            name = override.get("path", header.name).removeprefix("./")
            sparse = any(key.startswith("GNU.sparse") for key in override)
            override = {}
            if not (header.isdir() or (header.type == tarfile.AREGTYPE and name.endswith("/"))):
                reason = _refusal(header, name, sparse, length, max_member_bytes, names)
                if reason is None:
                    members.append(Member(name, offset, length))
                else:
                    rejected.append(Damage(name, f"member {name!r} is refused: {reason}"))
                names.add(name)
        file.seek(offset + padded)


def _refusal(
    header: tarfile.TarInfo, name: str, sparse: bool, size: int, limit: int, names: set[str]
) -> str | None:
    if not name:
        return "its name is empty"
    if unsafe_name(name):
        return unsafe_name(name)
    if header.type in _IRREGULAR:
        return f"it is {_IRREGULAR[header.type]}"
    if header.type not in _REGULAR:
        return f"its type {header.type!r} is unknown"
    if sparse:
        return "it is a sparse file"
    if name in names:
        return "another member has its name"
    if size > limit:
        return f"it has {size} bytes, more than the {limit} allowed"
    return None


def _has_data(header: tarfile.TarInfo) -> bool:
    """Links, devices and folders have none, whatever size they declare."""
    empty = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE)
    return header.type not in (*empty, tarfile.FIFOTYPE, tarfile.DIRTYPE)


def _size(text: str | None, declared: int, shown: str) -> int:
    try:
        size = declared if text is None else int(text)
    except ValueError:
        size = -1
    if size < 0:
        raise ValueError(f"tar file {shown!r} is damaged: a member declares an impossible size")
    return size


def _bounded(file: BinaryIO, length: int, shown: str) -> bytes:
    if length > MAX_NAME_BYTES:
        raise ValueError(
            f"tar file {shown!r}: a name of {length} bytes, more than the {MAX_NAME_BYTES} allowed"
        )
    return file.read(length)


def _pax(content: bytes, shown: str) -> dict[str, str]:
    """Records "length key=value\\n" of a pax header, as the POSIX standard has them."""
    records, position = {}, 0
    while position < len(content) and content[position]:
        match = re.compile(rb"(\d{1,6}) ([^=]+)=").match(content, position)
        end = position + int(match[1]) if match else 0
        if not match or end > len(content) or content[end - 1 : end] != b"\n":
            raise ValueError(f"tar file {shown!r} is damaged: a pax header has no valid records")
        if end <= match.end():
            raise ValueError(f"tar file {shown!r} is damaged: a pax record is too short")
        key = match[2].decode("utf-8", "surrogateescape")
        records[key] = content[match.end() : end - 1].decode("utf-8", "surrogateescape")
        position = end
    return {k: v for k, v in records.items() if k in ("path", "size") or k.startswith("GNU.sparse")}


def _check_end(file: BinaryIO, size: int, shown: str) -> None:
    rest = size - file.tell()
    if rest > MAX_PADDING_BYTES or any(file.read(rest)):
        raise ValueError(
            f"tar file {shown!r} goes on after its end mark; archives that were joined are not read"
        )


def _refuse_compressed(block: bytes, shown: str) -> None:
    for magic, name in _COMPRESSED.items():
        if block.startswith(magic):
            raise ValueError(
                f"tar file {shown!r} is compressed ({name}); expected a plain .tar, whose members "
                f"can be read at random"
            )
