"""numpy's `.npy` and `.npz` files as requests and answers, never unpickled.

tensors = read_arrays(content, signature)       # by input name
write_arrays({"y": array}, "npz")               # bytes
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.lib import format as npy

from torchport_runtime.errors import BadRequest
from torchport_runtime.signature import Signature

MAX_BYTES = 256 * 2**20
"""Maximum bytes of a request's arrays together, once unpacked. More are refused with 413."""

_PIECE = 2**16
_NPY, _NPZ = b"\x93NUMPY", b"PK\x03\x04"


def array_format(content: Any) -> str | None:
    """Format of a file by its first bytes: "npy", "npz" or None."""
    if isinstance(content, bytes):
        if content.startswith(_NPY):
            return "npy"
        if content.startswith(_NPZ):
            return "npz"
    return None


def read_arrays(content: bytes, signature: Signature) -> dict[str, np.ndarray]:
    """Read a model's inputs from the bytes of an `.npy` or `.npz` file.

    An `.npy` is the only input, an `.npz` names its inputs. Arrays keep their dtype: they are checked
    against the signature later.

    Raises:
        BadRequest: the file is damaged, too large once unpacked (413), holds pickled objects, or lacks the
            names of several inputs.
    """
    if array_format(content) == "npy":
        needed = [name for name, spec in signature.inputs.items() if spec.default is None]
        names = needed or list(signature.inputs)
        if len(names) != 1:
            raise BadRequest(f"an .npy file holds one array, this model takes {names}: send an .npz of them")
        return {names[0]: _read(content, names[0])}
    return read_npz(content)


def read_npz(content: bytes) -> dict[str, np.ndarray]:
    """Read the arrays in an `.npz` file's bytes, by name.

    Raises:
        BadRequest: the file is damaged, too large once unpacked (413), or holds pickled objects.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = _unpacked(archive)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError, RuntimeError) as err:
        raise BadRequest(f"the .npz file is damaged or truncated: {err}") from err
    except Exception as err:  # Decompressors have errors of their own: zlib.error, lzma.LZMAError.
        if isinstance(err, BadRequest):
            raise
        raise BadRequest(f"the .npz file is damaged: {err}") from err
    return {name: _read(member, name) for name, member in members.items()}


def _unpacked(archive: zipfile.ZipFile) -> dict[str, bytes]:
    """The members' bytes, counted while they are read.

    The sizes that a hostile file names are not trusted.
    """
    members: dict[str, bytes] = {}
    left = MAX_BYTES
    for entry in archive.infolist():
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BadRequest("the .npz is packed by another method than numpy's: use np.savez_compressed")
        pieces = []
        with archive.open(entry) as member:
            while piece := member.read(min(_PIECE, left + 1)):
                left -= len(piece)
                if left < 0:
                    raise BadRequest(f"the .npz unpacks to more than {MAX_BYTES} bytes", status=413)
                pieces.append(piece)
        members[entry.filename.removesuffix(".npy")] = b"".join(pieces)
    return members


def write_arrays(arrays: Mapping[str, np.ndarray], kind: str) -> bytes:
    """The bytes of an `.npy` or `.npz` file of some arrays.

    The same arrays give the same bytes. An `.npy` holds the only array.

    Raises:
        BadRequest: several arrays for an .npy.
    """
    if kind == "npy":
        if len(arrays) != 1:
            raise BadRequest(f"an .npy file holds one array, this model gives {list(arrays)}: ask for npz")
        return _written(next(iter(arrays.values())))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), _written(array))
    return buffer.getvalue()


def _written(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    npy.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def _read(content: bytes, name: str) -> np.ndarray:
    """Read one array.

    Its header is compared with the number of bytes before any memory is allocated.
    """
    file = io.BytesIO(content)
    try:
        version = npy.read_magic(file)
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        shape, fortran, dtype = read_header(file)
        if dtype.kind not in "biuf" or dtype.subdtype is not None:
            raise BadRequest(f"{name!r} holds {dtype}: numbers are expected")
        if not all(type(size) is int and size >= 0 for size in shape):
            raise BadRequest(f"{name!r}: {shape} is no shape")
        wanted, got = math.prod(shape) * dtype.itemsize, len(content) - file.tell()
        if wanted != got:
            raise BadRequest(f"{name!r}: {dtype}{list(shape)} has {wanted} bytes, {got} came: truncated?")
        values = np.frombuffer(content, dtype, offset=file.tell())
        array = values.reshape(shape, order="F" if fortran else "C")
        return np.ascontiguousarray(array.astype(dtype.newbyteorder("="))).reshape(shape)
    except BadRequest:
        raise
    except Exception as err:  # Python's parser of the header has many ways to fail, memory among them.
        raise BadRequest(f"{name!r} is no readable .npy file: {str(err)[:200]}") from err
