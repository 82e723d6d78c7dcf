"""The index of headers: what was read from each file of a folder, good until the file changes.

It lies in the user's cache folder and may be deleted at any time. Headers hold hashes of patient ids, UIDs and
descriptions: the index is sealed with a key that only the user can read, and nothing legible is stored. A seal that
does not fit (damage, another user, another version) means that everything is read anew.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import secrets
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from medseg.errors import RunError
from medseg.io.atomic import atomic_path
from medseg.io.dicom_extent import PixelElement
from medseg.io.dicom_frames import Frame
from medseg.io.dicom_headers import Header
from medseg.io.files import Found

log = logging.getLogger(__name__)

FORMAT = 1
"""Raised whenever a header is read differently: an index of another format is ignored."""

SETTLED_NS = 2 * 10**9
"""A file changed less than 2 s before it was read may change again within one tick of its clock (FAT: 2 s)."""

KEY_BYTES, NONCE_BYTES, SEAL_BYTES = 32, 16, 32

Entry = tuple[list[int], list[Any] | None]
"""A file's stamp, and its header in plain types; None for what is not DICOM."""


class HeaderIndex:
    """What is known of the files below one folder."""

    def __init__(self, path: Path | None, root: Path, entries: Mapping[str, Entry]) -> None:
        self._path = path
        self._root = root
        self._entries = entries

    def __len__(self) -> int:
        """Count the files."""
        return len(self._entries)

    @classmethod
    def load(cls, root: Path) -> HeaderIndex:
        """Open the index of a folder; an empty one when there is none that can be trusted."""
        root = root.absolute()
        folder = cache_folder()
        key = _key(folder)
        if key is None:
            return cls(None, root, {})
        name = hmac.digest(key, os.fsencode(root), "sha256").hex()[:32]
        path = folder / f"{name}.headers"
        try:
            content = json.loads(zlib.decompress(unseal(path.read_bytes(), key)))
            entries = content["files"] if content["made_by"] == _made_by() else {}
        except FileNotFoundError:
            entries = {}
        except (OSError, ValueError, KeyError, TypeError, zlib.error):
            log.debug("an index of headers cannot be used and is made anew", exc_info=True)
            entries = {}
        return cls(path, root, entries)

    def knows(self, found: Found) -> bool:
        """Whether the file is in the index and has not changed."""
        entry = self._entries.get(self._name(found))
        return entry is not None and tuple(entry[0]) == found.stamp

    def header(self, found: Found) -> Header | None:
        """The header of a file that is known."""
        plain = self._entries[self._name(found)][1]
        return None if plain is None else from_plain(found.path, plain)

    def save(self, files: Sequence[Found], headers: Mapping[Path, Header | None]) -> None:
        """Write the index anew; where that is not possible it is left as it was."""
        key = _key(cache_folder())
        if self._path is None or key is None:
            return
        settled = time.time_ns() - SETTLED_NS
        entries = {
            self._name(found): (list(found.stamp), to_plain(headers[found.path]))
            for found in files
            if _keeps(headers[found.path]) and max(found.stamp[1:3]) < settled
        }
        content = json.dumps({"made_by": _made_by(), "files": entries}).encode()
        try:
            with atomic_path(self._path) as partial:
                partial.write_bytes(seal(zlib.compress(content, 1), key))
            self._path.chmod(0o600)
        except (RunError, OSError):
            log.debug("the index of headers cannot be written", exc_info=True)

    def _name(self, found: Found) -> str:
        return str(found.path.absolute().relative_to(self._root))


def _keeps(header: Header | None) -> bool:
    """Faults are looked at anew: a permission may be given, a codec installed."""
    return header is None or not header.code


def _made_by() -> list[object]:
    return [FORMAT, version("medseg"), version("pydicom")]


# ---- where it lies, and its seal ------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """The user's folder for what can be made again, by the custom of the system."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", "~/AppData/Local"))
    elif sys.platform == "darwin":
        base = Path("~/Library/Caches")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return base.expanduser() / "medseg"


def _key(folder: Path) -> bytes | None:
    """The user's key, made at first need; None when it can be neither read nor made."""
    path = folder / "key"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(secrets.token_bytes(KEY_BYTES))
        key = path.read_bytes()
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        log.debug("no index of headers: the cache folder cannot be used", exc_info=True)
        return None
    return key if len(key) == KEY_BYTES else None


def seal(content: bytes, key: bytes) -> bytes:
    """Encrypt, and sign what results: nonce, signature, content under a key stream of SHAKE-256 (FIPS 202)."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    hidden = _hidden(content, key, nonce)
    return nonce + hmac.digest(key, nonce + hidden, "sha256") + hidden


def unseal(sealed: bytes, key: bytes) -> bytes:
    """Give back what was sealed.

    Raises:
        ValueError: when it was not sealed with this key, or was changed since.
    """
    nonce, signature = sealed[:NONCE_BYTES], sealed[NONCE_BYTES : NONCE_BYTES + SEAL_BYTES]
    hidden = sealed[NONCE_BYTES + SEAL_BYTES :]
    if not hmac.compare_digest(signature, hmac.digest(key, nonce + hidden, "sha256")):
        raise ValueError("the seal does not fit")
    return _hidden(hidden, key, nonce)


def _hidden(content: bytes, key: bytes, nonce: bytes) -> bytes:
    stream = hashlib.shake_256(b"medseg headers" + key + nonce).digest(len(content))
    mixed = np.bitwise_xor(np.frombuffer(content, np.uint8), np.frombuffer(stream, np.uint8))
    return mixed.tobytes()


# ---- headers in plain types -----------------------------------------------------------------------------------------

_HEADER_FIELDS = [field.name for field in fields(Header) if field.name not in ("path", "pixels", "frames")]
_FRAME_FIELDS = [field.name for field in fields(Frame) if field.name != "path"]
_PIXEL_FIELDS = [field.name for field in fields(PixelElement)]


def to_plain(header: Header | None) -> list[Any] | None:
    """A header as lists, texts and numbers, without its path."""
    if header is None:
        return None
    values = [getattr(header, name) for name in _HEADER_FIELDS]
    values = [sorted(value) if isinstance(value, frozenset) else value for value in values]
    pixels = None if header.pixels is None else [getattr(header.pixels, name) for name in _PIXEL_FIELDS]
    frames = [[getattr(frame, name) for name in _FRAME_FIELDS] for frame in header.frames]
    return [values, pixels, frames]


def from_plain(path: Path, plain: Sequence[Any]) -> Header:
    """The header again."""
    values, pixels, frames = plain
    named = {name: _tuples(value) for name, value in zip(_HEADER_FIELDS, values, strict=True)}
    named["series_uids"] = frozenset(named["series_uids"])
    return Header(
        path,
        pixels=None if pixels is None else PixelElement(*pixels),
        frames=tuple(Frame(path, *map(_tuples, frame)) for frame in frames),
        **named,
    )


def _tuples(value: Any) -> Any:  # noqa: ANN401  as JSON gives it
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
