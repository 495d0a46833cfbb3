"""Files of whoever runs a command: read within limits, written whole or not at all.

For: what several commands do with files; an ``OSError`` becomes a ``BadRequest`` that names the file.
Not for: passwords and PINs (``target``, ``setup``), which have rules of their own.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from asn1crypto import pem

from appliance.errors import BadRequest

MAX_DER_FILE_LEN: Final = 1 << 20
"""Keys, certificates and signatures have a few kB; a larger file is some other file."""


def read_limited(path: Path, limit: int = MAX_DER_FILE_LEN) -> bytes:
    """The file's content, else ``BadRequest``."""
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except OSError as error:
        raise BadRequest(f"{path}: {error.strerror}", hint="check the path, and who may read it") from error
    if len(raw) > limit:
        raise BadRequest(f"{path} is longer than {limit} bytes: that is some other file")
    return raw


def read_der(path: Path) -> bytes:
    """The DER value in a file that holds it as PEM or DER."""
    raw = read_limited(path)
    if not pem.detect(raw):
        return raw
    try:
        _, _, der = pem.unarmor(raw)
    except ValueError as error:
        raise BadRequest(f"{path}: not PEM: {error}") from error
    return bytes(der)


def write_durably(path: Path, data: bytes, mode: int = 0o644) -> None:
    """The file with that content, whole and on disk; or, after a crash, as it was before.

    A symbolic link is followed; what is no regular file (a device, a pipe) is written to and not replaced.
    """
    if path.is_symlink():
        path = path.resolve()
    if path.exists() and not path.is_file():
        _write_through(path, data)
        return
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        try:
            os.fchmod(descriptor, mode)  # whatever the umask says
            with open(descriptor, "wb", closefd=False) as file:
                file.write(data)
            os.fsync(descriptor)  # a crash here leaves what was there before, and a scratch file
        finally:
            os.close(descriptor)
        scratch.rename(path)
        sync_directory(path.parent)  # the new content has the name for good from here on
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise BadRequest(
            f"{path}: {error.strerror}", hint="check the directory, its owner and the disk"
        ) from error


def _write_through(path: Path, data: bytes) -> None:
    try:
        with path.open("wb", buffering=0) as file:
            file.write(data)
    except OSError as error:
        raise BadRequest(f"{path}: {error.strerror}", hint="name a file") from error


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
