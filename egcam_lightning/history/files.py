"""Files that are written whole or not at all, and arrays that are read only as far as they were announced."""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def replace_file(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that a reader sees the old content or the new, never a part.

    Args:
        path: the file; its folder is made where there is none.
        data: all of its content.

    Raises:
        OSError: where the disk does not take it; ``path`` is then as it was.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "folder" / "file"
        >>> replace_file(path, b"content")
        >>> path.read_bytes()
        b'content'

    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays as a compressed npz file, whole or not at all.

    Args:
        path: the file.
        arrays: arrays of any shape, by name.

    Raises:
        OSError: where the disk does not take it; ``path`` is then as it was.

    Example:
        See :func:`read_npz`.

    """
    buffer = io.BytesIO()
    # Without `allow_pickle`: before NumPy 2.1 that is one more array to be stored.
    contiguous: dict[str, Any] = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    np.savez_compressed(buffer, **contiguous)
    replace_file(path, buffer.getvalue())


def read_npz(
    path: Path, expected: Mapping[str, tuple[str, tuple[int, ...]]], optional: tuple[str, ...] = ()
) -> dict[str, Array]:
    """Read arrays whose types and shapes are known beforehand, and nothing else.

    ``numpy.load`` believes the file: a few kilobytes can announce, or unpack to, any amount of memory. Here the
    headers are compared with what is expected before a byte of content is read.

    Args:
        path: the file.
        expected: dtype (as in ``"<f2"``) and shape by name.
        optional: the names that may be absent.

    Returns:
        The arrays by name, writable and in C order.

    Raises:
        ValueError: where the file is missing, larger than its content can be, damaged, or holds anything else.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "arrays.npz"
        >>> write_npz(path, {"a": np.zeros((2, 3), np.float16)})
        >>> read_npz(path, {"a": ("<f2", (2, 3))})["a"].shape
        (2, 3)
        >>> read_npz(path, {"a": ("<f2", (9, 9))})
        Traceback (most recent call last):
        ...
        ValueError: .../arrays.npz: 'a' is <f2 of shape (2, 3), expected <f2 of shape (9, 9)

    """
    if not path.is_file():
        raise ValueError(f"{path} is not there")
    sizes = {name: np.dtype(dtype).itemsize * math.prod(shape) for name, (dtype, shape) in expected.items()}
    # The index of a zip file is read at once, so a file far larger than its content could fill the memory.
    if path.stat().st_size > 4096 + 1.1 * sum(sizes.values()):
        raise ValueError(f"{path} is larger than what it should hold")
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            if {info.compress_type for info in archive.infolist()} - {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                raise ValueError(f"{path} is compressed in a way that this package does not write")
            if set(members) - {f"{name}.npy" for name in expected} or len(set(members)) != len(members):
                raise ValueError(f"{path} holds {sorted(members)[:5]}, expected {sorted(expected)}")
            for name, (dtype, shape) in expected.items():
                if f"{name}.npy" not in members and name in optional:
                    continue
                with archive.open(f"{name}.npy") as member:
                    if np.lib.format.read_magic(member) != (1, 0):
                        raise ValueError(f"{path}: '{name}' is no array of npy version 1.0")
                    seen, fortran, kind = np.lib.format.read_array_header_1_0(member)
                    if (kind.str, seen, fortran) != (dtype, shape, False):
                        raise ValueError(
                            f"{path}: '{name}' is {kind.str} of shape {seen}, expected {dtype} of shape {shape}"
                        )
                    content = bytearray(member.read(sizes[name]))
                    if len(content) != sizes[name] or member.read(1):
                        raise ValueError(f"{path}: '{name}' is shorter or longer than it says")
                arrays[name] = np.frombuffer(content, dtype).reshape(shape)
    except ValueError:
        raise
    except Exception as error:  # zipfile, zlib and numpy's header reader fail in a dozen ways on damaged bytes
        raise ValueError(f"{path} is damaged: {error}") from error
    return arrays
