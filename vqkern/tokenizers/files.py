"""Tensors in files that nobody vouches for: listed by name, shape and dtype before any is read.

No code in a file is ever run: safetensors hold none, and pickles are read with
``weights_only=True``, which refuses every class but tensors and plain containers.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vqkern.files import refused
from vqkern.terminal import one_line

# A header has about 100 bytes a tensor; the largest of the public tokenizers has 600 tensors.
LARGEST_HEADER = 16 * 2**20
SHOWN_KEYS = 6


class Stored(NamedTuple):
    """A tensor in a file: `read()` gives it; until then it costs no memory."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


def list_safetensors(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file, not read yet.

    Raises:
        ValueError: the file cannot be read, is damaged or has an oversized header.
    """
    from safetensors import SafetensorError, safe_open

    require_file(path)
    _check_header(path)
    try:
        file = safe_open(path, framework="pt", device="cpu")
        described = {}
        for name in file.keys():  # noqa: SIM118  safe_open is no mapping
            part = file.get_slice(name)
            dtype = _SAFETENSORS_DTYPES.get(part.get_dtype())
            if dtype is None:
                raise ValueError(
                    f"{_file(path)}: tensor {name!r} has the dtype {part.get_dtype()}, which no "
                    f"tokenizer has"
                )
            described[name] = Stored(
                tuple(part.get_shape()), dtype, lambda name=name: file.get_tensor(name)
            )
        return described
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{_file(path)} cannot be read: {one_line(error, 300)}") from error


def list_pickle(path: Path, wrappers: Iterable[str]) -> dict[str, Stored]:
    """The tensors of a file by `torch.save`: a state dict, or one under the first of `wrappers`.

    Raises:
        ValueError: the file cannot be read, asks for classes besides tensors and plain containers,
            or holds no state dict.
    """
    require_file(path)
    _check_archive(path)
    try:
        # Not mapped into memory: a mapped file's tensors are cut out of it without looking whether
        # the archive's members are as long as they.
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{_file(path)} is refused: only tensors and plain containers are read from a pickle, "
            f"as anything more can run code. {refused(error)}"
        ) from error
    except Exception as error:  # a hostile file can make the reader stumble in any way
        raise ValueError(f"{_file(path)} cannot be read: {one_line(error, 300)}") from error
    state = loaded
    if isinstance(loaded, Mapping):
        state = next((loaded[key] for key in wrappers if key in loaded), loaded)
    if not isinstance(state, Mapping):
        raise ValueError(
            f"{_file(path)} holds {type(state).__name__}, expected a state dict: names and tensors"
        )
    return {name: _stored(path, name, tensor) for name, tensor in state.items()}


def compare(
    path: Path, stored: Mapping[str, Stored], expected: Mapping[str, Tensor], hint: str = ""
) -> None:
    """Names, dtypes and shapes of a file must be those of a model, which may be on "meta".

    Raises:
        ValueError: they are not; names the keys that are missing and unexpected, and adds `hint`.
    """
    missing = [name for name in expected if name not in stored]
    unexpected = [name for name in stored if name not in expected]
    if missing or unexpected:
        problems = [
            f"{text} {_some(keys)}"
            for text, keys in (("missing keys", missing), ("unexpected keys", unexpected))
            if keys
        ]
        raise ValueError(f"{_file(path)}: {'; '.join(problems)}{hint}")
    for name, wanted in expected.items():
        got = stored[name]
        if got.shape != tuple(wanted.shape) or got.dtype != wanted.dtype:
            raise ValueError(
                f"{_file(path)}: tensor {name!r} is {got.dtype} {list(got.shape)}, "
                f"expected {wanted.dtype} {list(wanted.shape)}"
            )


@torch.no_grad()
def fill(path: Path, module: nn.Module, stored: Mapping[str, Stored]) -> None:
    """Copies tensors that `compare` has passed into a module, each checked to be finite."""
    for name, target in module.state_dict(keep_vars=True).items():
        tensor = stored[name].read()
        # A finite sum has finite terms, and is several times as fast; a sum may also overflow.
        if (
            tensor.is_floating_point()
            and not bool(tensor.sum().isfinite())
            and not bool(tensor.isfinite().all())
        ):
            raise ValueError(f"{_file(path)}: tensor {name!r} is not finite")
        target.copy_(tensor)


def require_file(path: Path) -> None:
    """Raises ValueError where there is no such file."""
    if not path.is_file():
        raise ValueError(f"{_file(path)} is missing")


def _check_header(path: Path) -> None:
    """The header's length is checked before anything of that length is read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise ValueError(
            f"{_file(path)} cannot be read: its header claims {length} bytes, the file has {size}"
        )
    if length > LARGEST_HEADER:
        raise ValueError(
            f"{_file(path)} cannot be read: a header of {length} bytes, more than {LARGEST_HEADER}"
        )


def _check_archive(path: Path) -> None:
    """What torch.save writes is a zip of members as they are; packed ones could be of any size."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return  # the format before zip: torch reads it or says that it is not
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise ValueError(f"{_file(path)} cannot be read: {one_line(error, 300)}") from error
    packed = [m.filename for m in members if m.compress_type != zipfile.ZIP_STORED]
    if packed or sum(member.file_size for member in members) > path.stat().st_size:
        raise ValueError(
            f"{_file(path)} cannot be read: its members have more bytes than the file, expected a "
            f"file by torch.save, which packs none"
        )


def _stored(path: Path, name: object, tensor: object) -> Stored:
    if not isinstance(name, str):
        raise ValueError(f"{_file(path)}: a key is {str(name)[:80]!r}, expected names of tensors")
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided
    if not plain or tensor.is_nested or tensor.is_quantized or tensor.device.type != "cpu":
        got = (
            type(tensor).__name__
            if not isinstance(tensor, Tensor)
            else (f"a tensor of {tensor.layout} on {tensor.device}")
        )
        raise ValueError(f"{_file(path)}: {name!r} is {got}, expected a dense tensor")
    return Stored(tuple(tensor.shape), tensor.dtype, lambda: tensor.detach())


def _some(keys: list[str]) -> str:
    """The first few keys, and how many more."""
    shown = ", ".join(repr(key[:120]) for key in keys[:SHOWN_KEYS])
    more = len(keys) - SHOWN_KEYS
    return f"{shown} and {more} more" if more > 0 else shown


def _file(path: Path) -> str:
    return f"tokenizer file {str(path)!r}"


_SAFETENSORS_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
