"""Hostile volumes: headers that lie, bombs, pickles; each refused or quarantined, without harm."""

import gzip
import io
import pickle
import struct

import numpy as np
import pytest

from vqkern.data import VolumeSlices, read_volume

pytestmark = pytest.mark.usefixtures("no_harm")


class Runs:
    """Creates a file when it is unpickled."""

    def __reduce__(self):
        return (open, ("/tmp/vqkern-escaped", "w"))


def npy(shape, dtype="<f4", data=b"", version=(1, 0)):
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H", len(header)) + header + data


def saved(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def nifti(shape=(4, 5, 6), datatype=16, bits=32, offset=352.0, data=None, **fields):
    """A NIfTI-1 file in which any header field can lie."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, fields.get("size", 348))
    dims = fields.get("dims", (len(shape), *shape, *[1] * (7 - len(shape))))
    struct.pack_into("<8h", header, 40, *dims)
    struct.pack_into("<hh", header, 70, datatype, bits)
    struct.pack_into("<8f", header, 76, 1, 1, 1, 1, 1, 1, 1, 1)
    struct.pack_into("<fff", header, 108, offset, fields.get("slope", 1.0), 0.0)
    header[344:348] = fields.get("magic", b"n+1\0")
    header[348:352] = fields.get("extension", b"\0\0\0\0")
    if data is None:
        data = np.arange(np.prod(shape), dtype="<f4").tobytes()
    return bytes(header) + data


EXTENDED = b"\1\0\0\0" + struct.pack("<ii", -1, 4)
BAD_VOLUMES = {
    "pickle.npy": (saved(np.array([Runs()] * 3, object)), "cannot be read"),
    "bare-pickle.npy": (pickle.dumps(Runs()), "cannot be read"),
    "huge.npy": (npy((2**40, 2**20, 4)), "cannot be read|allowed"),
    "overflow.npy": (npy((2**62, 2**62, 4)), "cannot be read|allowed"),
    "negative.npy": (npy((-1, 4, 4)), "cannot be read"),
    "short.npy": (npy((8, 8, 8), data=bytes(100)), "cannot be read"),
    "code.npy": (npy("__import__('os').system('x')"), "cannot be read"),
    "deep.npy": (npy("(" * 3000 + ")" * 3000), "cannot be read"),
    "flat.npy": (saved(np.ones((8, 8))), r"is float64 \[8, 8\]"),
    "text.npy": (saved(np.full((2, 2, 2), "x")), "expected numbers"),
    "complex.npy": (saved(np.ones((2, 2, 2), complex)), "expected numbers"),
    "empty.npy": (saved(np.ones((0, 2, 2))), "expected numbers"),
    "zip.npy": (b"PK\3\4" + bytes(100), "cannot be read"),
    "nothing.npy": (b"", "cannot be read"),
    "version.npy": (npy((2, 2, 2), version=(9, 9)), "cannot be read"),
    "empty.nii": (b"", "no valid NIfTI header"),
    "text.nii": (b"no volume" * 60, "no valid NIfTI header"),
    "size.nii": (nifti(size=999), "no valid NIfTI header"),
    "dims-many.nii": (nifti(dims=(99, 4, 5, 6, 1, 1, 1, 1)), "no valid|expected three"),
    "dims-negative.nii": (nifti(dims=(3, -4, 5, 6, 1, 1, 1, 1)), "expected three"),
    "dims-zero.nii": (nifti(dims=(3, 0, 5, 6, 1, 1, 1, 1)), "expected three"),
    "dims-two.nii": (nifti(dims=(2, 4, 5, 1, 1, 1, 1, 1)), "expected three"),
    "dims-time.nii": (nifti(dims=(4, 4, 5, 6, 9, 1, 1, 1)), "expected three"),
    "dims-huge.nii": (nifti(dims=(3, 32767, 32767, 32767, 1, 1, 1, 1)), "voxels allowed"),
    "datatype.nii": (nifti(datatype=999), "no valid NIfTI header|holds"),
    "colour.nii": (nifti(datatype=128, bits=24), "holds"),
    "complex.nii": (nifti(datatype=32, bits=64), "holds"),
    "offset-huge.nii": (nifti(offset=1e18), "at byte 1e"),
    "offset-negative.nii": (nifti(offset=-16.0), "no valid|at byte -16"),
    "offset-inside.nii": (nifti(offset=16.0), "no valid|at byte 16"),
    "offset-nan.nii": (nifti(offset=float("nan")), "no valid|at byte nan"),
    "pair.nii": (nifti(magic=b"ni1\0"), "expected one file|no valid"),
    "cut.nii": (nifti(data=bytes(100)), "truncated: 100 of 480 bytes"),
    "flat.nii": (nifti(data=bytes(480)), "no contrast"),
    "not-finite.nii": (nifti(data=np.full(120, np.nan, "<f4").tobytes()), "not finite"),
    "plain.nii.gz": (nifti(), "[Nn]ot a gzipped|gzip"),
    "cut.nii.gz": (gzip.compress(nifti())[:-20], "damaged|truncated|ended before"),
    "sum.nii.gz": (gzip.compress(nifti())[:-8] + bytes(8), "damaged"),
    "bomb-dims.nii.gz": (
        gzip.compress(nifti(dims=(3, 32767, 32767, 32767, 1, 1, 1, 1), data=bytes(2**24))),
        "voxels allowed",
    ),
    "bomb-offset.nii.gz": (gzip.compress(nifti(offset=1e15, data=bytes(2**24))), "at byte 1e"),
}


@pytest.mark.parametrize("name", BAD_VOLUMES)
@pytest.mark.filterwarnings("error")
def test_bad_volumes_are_refused(tmp_path, name):
    content, message = BAD_VOLUMES[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises((ValueError, OSError), match=message):
        read_volume(path)
    try:
        source = VolumeSlices([path], root=tmp_path)
    except ValueError as error:
        assert name in str(error) and "\n" not in str(error)
    else:  # only the voxels are bad: every slice is quarantined when it is read
        with pytest.raises(ValueError, match=message):
            source.load(0)


def test_extensions_of_a_header_are_not_read(tmp_path):
    """Their length is what the file says; here it is -1, which would mean everything."""
    path = tmp_path / "x.nii"
    path.write_bytes(nifti(offset=368.0, extension=EXTENDED[:4], data=EXTENDED[4:] + bytes(488)))
    with pytest.raises(ValueError, match="no contrast"):
        read_volume(path)
