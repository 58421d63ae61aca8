"""Volumes (BraTS and its like) as axial slices: NIfTI files or NumPy arrays.

Of a NIfTI file only the fixed header of 348 bytes is parsed, by nibabel; extensions are skipped and
exactly the voxels that the checked shape needs are read, so a compressed bomb unfolds no further.
"""

import gzip
import io
import math
import zlib
from pathlib import Path

import numpy as np

from vqkern.data.images import import_pillow
from vqkern.data.quarantine import Damage
from vqkern.terminal import one_line

MAX_VOXELS = 2**27
MAX_OFFSET = 2**16
HEADER_BYTES = 348


class VolumeSlices:
    """The axial slices of volumes as grey images, RGB with equal channels.

    NIfTI volumes are turned to the closest axes right, anterior, superior; a slice is seen from
    above with anterior at the top, right of the volume at the right. A NumPy volume is
    [slices, height, width] and taken as it is. Intensities go from the 0.5th to the 99.5th
    percentile of the volume's voxels that are not 0 to 0 .. 255, linearly and clipped.

    Args:
        paths: .nii, .nii.gz or .npy files. root: Folder that names are relative to.
        keep: Which part of the slices to use, from and to as fractions of the axis: the ends of a
            head are empty.
        max_voxels: Larger volumes are rejected.

    Raises:
        ValueError: no usable volume, a fraction that does not serve, or NIfTI without nibabel.
    """

    def __init__(
        self,
        paths: list[str | Path],
        root: str | Path | None = None,
        keep: tuple[float, float] = (0.0, 1.0),
        max_voxels: int = MAX_VOXELS,
    ) -> None:
        if not 0 <= keep[0] < keep[1] <= 1:
            raise ValueError(f"keep: got {keep}, expected two rising fractions of 0 to 1")
        self.max_voxels = max_voxels
        self.names: list[str] = []
        self.rejected: list[Damage] = []
        self._slices: list[tuple[Path, int]] = []
        self._latest: tuple[Path, np.ndarray] | None = None
        for path in map(Path, paths):
            name = path.relative_to(root).as_posix() if root is not None else str(path)
            try:
                count = _slice_count(path, max_voxels)
            except (ValueError, OSError) as error:
                self.rejected.append(Damage(name, one_line(error)))
                continue
            for number in range(math.floor(keep[0] * count), math.ceil(keep[1] * count)):
                self.names.append(f"{name}/{number:04d}")
                self._slices.append((path, number))
        if not self.names:
            reason = f": {self.rejected[0].reason}" if self.rejected else ""
            raise ValueError(f"paths: expected at least one volume that can be read{reason}")

    def __len__(self) -> int:
        return len(self.names)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_latest": None}  # workers read volumes of their own

    def load(self, number: int):
        """See `ImageSource.load`. The last volume stays in memory: read in order where you can."""
        path, position = self._slices[number]
        if self._latest is None or self._latest[0] != path:
            self._latest = (path, read_volume(path, self.max_voxels))
        Image, _ = import_pillow()
        return Image.fromarray(np.ascontiguousarray(self._latest[1][position])).convert("RGB")


def read_volume(path: str | Path, max_voxels: int = MAX_VOXELS) -> np.ndarray:
    """A volume as uint8 [slices, height, width], oriented and scaled as in `VolumeSlices`.

    Raises:
        ValueError: not a volume, damaged, too large, without contrast, or not finite.
        OSError: the file cannot be opened.
    """
    path = Path(path)
    if path.name.lower().endswith(".npy"):
        voxels = np.asarray(_open_array(path, max_voxels), dtype=np.float32)
    else:
        voxels = _read_nifti(path, max_voxels)
    if not np.isfinite(voxels).all():
        raise ValueError(f"volume {str(path)!r} holds values that are not finite")
    inside = voxels[voxels != 0]
    low, high = np.percentile(inside, (0.5, 99.5)) if inside.size else (0.0, 0.0)
    if not high > low:
        raise ValueError(f"volume {str(path)!r} has no contrast")
    scaled = (voxels - np.float32(low)) * np.float32(255 / (high - low))
    return np.rint(scaled.clip(0, 255)).astype(np.uint8)


def _slice_count(path: Path, max_voxels: int) -> int:
    if path.name.lower().endswith(".npy"):
        return _open_array(path, max_voxels).shape[0]
    with _open_nifti(path) as file:
        header, orientation = _read_header(file, path, max_voxels)
    superior = int(np.flatnonzero(orientation[:, 0] == 2)[0])
    return _shape(header)[superior]


def _open_array(path: Path, max_voxels: int) -> np.ndarray:
    """The array, mapped and not read; arrays of objects would need pickle and are refused."""
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"format version {version}, expected (1, 0) or (2, 0)")
            read = f"read_array_header_{version[0]}_0"
            shape, fortran, dtype = getattr(np.lib.format, read)(file)
            offset, size = file.tell(), path.stat().st_size
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
        # Before NumPy multiplies them in 64 bits, where they can wrap round.
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > size - offset:
            raise ValueError(f"shape {list(shape)} needs more bytes than the file has")
        _check_size(path, shape, max_voxels)
        order = "F" if fortran else "C"
        empty = not math.prod(shape)  # nothing can be mapped then
        array = (
            np.empty(shape, dtype) if empty else np.memmap(path, dtype, "r", offset, shape, order)
        )
    except (ValueError, OverflowError, EOFError, SyntaxError, TypeError, RecursionError) as error:
        raise ValueError(f"volume {str(path)!r} cannot be read: {one_line(error)}") from error
    if array.ndim != 3 or array.dtype.kind not in "iuf" or not array.size:
        raise ValueError(
            f"volume {str(path)!r} is {array.dtype} {list(array.shape)}, "
            f"expected numbers [slices, height, width]"
        )
    return array


def _open_nifti(path: Path):
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else open(path, "rb")


def _read_header(file, path: Path, max_voxels: int):
    """nibabel's header, and the [3, 2] orientation of the axes (`nibabel.io_orientation`)."""
    try:
        import nibabel
    except ImportError as error:
        raise ValueError(
            "reading NIfTI volumes needs nibabel, which is not installed: "
            "pip install 'vqkern[medical]'"
        ) from error
    try:
        block = file.read(HEADER_BYTES)
        header = nibabel.Nifti1Header.from_fileobj(io.BytesIO(block), check=False)
        if header["sizeof_hdr"].item() != HEADER_BYTES:
            raise ValueError(f"its size is {header['sizeof_hdr']}, expected {HEADER_BYTES}")
        orientation = nibabel.io_orientation(header.get_best_affine())
        offset, dtype = float(header["vox_offset"]), header.get_data_dtype()
    except MemoryError:
        raise
    except Exception as error:  # nibabel raises nearly anything on damaged headers
        raise ValueError(
            f"volume {str(path)!r} has no valid NIfTI header: {one_line(error)}"
        ) from error
    shape = _shape(header)
    if len(shape) != 3 or min(shape) < 1 or np.isnan(orientation).any():
        raise ValueError(f"volume {str(path)!r} has shape {list(shape)}, expected three dimensions")
    if dtype.kind not in "iuf":
        raise ValueError(f"volume {str(path)!r} holds {dtype}, expected numbers")
    if header["magic"].item() != b"n+1" or not HEADER_BYTES <= offset <= MAX_OFFSET:
        raise ValueError(
            f"volume {str(path)!r} has its voxels at byte {offset:g}, "
            f"expected one file with them at byte {HEADER_BYTES} to {MAX_OFFSET}"
        )
    _check_size(path, shape, max_voxels)
    return header, orientation


def _shape(header) -> tuple[int, ...]:
    shape = tuple(int(n) for n in header.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _read_nifti(path: Path, max_voxels: int) -> np.ndarray:
    import nibabel

    with _open_nifti(path) as file:
        header, orientation = _read_header(file, path, max_voxels)
        shape, dtype = _shape(header), header.get_data_dtype()
        wanted = math.prod(shape) * dtype.itemsize
        try:
            file.seek(int(header["vox_offset"]))
            content = file.read(wanted)
            file.read(1)  # the end of a gzip file, where its checksum is
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"volume {str(path)!r} is damaged: {one_line(error)}") from error
    if len(content) != wanted:
        raise ValueError(
            f"volume {str(path)!r} is truncated: {len(content)} of {wanted} bytes of voxels"
        )
    voxels = np.frombuffer(content, dtype).reshape(shape, order="F").astype(np.float32)
    slope, inter = (float(header[name]) for name in ("scl_slope", "scl_inter"))
    if math.isfinite(slope) and slope != 0:
        voxels = voxels * np.float32(slope) + np.float32(inter if math.isfinite(inter) else 0)
    turned = nibabel.apply_orientation(voxels, orientation)  # right, anterior, superior
    return np.ascontiguousarray(turned.transpose(2, 1, 0)[:, ::-1])


def _check_size(path: Path, shape: tuple[int, ...], max_voxels: int) -> None:
    if math.prod(map(int, shape)) > max_voxels:
        raise ValueError(
            f"volume {str(path)!r} has shape {list(shape)}, more than the {max_voxels} voxels "
            f"allowed"
        )
