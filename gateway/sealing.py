"""What is stored is sealed: compressed, and encrypted with the run's own key, which the institution's key wraps.

One data key a run, so that purging a run is dropping its wrapped key, in backups too. AES-256-GCM (NIST SP 800-38D)
with a random nonce; the associated data names run, item and part, so that nothing sealed can be put in another's place.
The dictionary that compresses a run's items is made of them, and is sealed like them.

Rules that always hold:
- A key is in no representation, log or error.
- What was not sealed so, or with another key, raises `SealError`; what is inflated is bounded.
- A key file of ours is readable by its owner only, and is on disk before anything is sealed with it.

At most 2^32 things may be sealed with one random-nonce key: a run of 10 million items has some 30 million.
"""

import base64
import binascii
import hashlib
import hmac
import os
import secrets
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FILE = "store.key"
LEVEL = 3
DICTIONARY_SIZE = 16_384
"""Octets: a 1.5 kB message takes 80 with it, 590 without (engine measurements, 16.3 against 2.2 times smaller)."""
MAX_INFLATED = 64 << 20
_PLAIN, _ZSTD, _WITH_DICTIONARY = 1, 2, 3  # the first octet of what is sealed: how it is compressed
_NONCE = 12
_TAG = 16
_SMALL = 64  #: octets below which compressing gains nothing
_LARGE = 65_536  #: octets from which a compressor of its own costs nothing beside the work, and nobody waits for it


class SealError(Exception):
    """It cannot be opened. The message says what to do, and quotes nothing."""


class RunKey:
    """A run's key. Can be sent to another process of ours; shows nothing of itself."""

    def __init__(self, secret: bytes, dictionary: bytes = b"") -> None:
        self._secret = secret
        self._dictionary = dictionary
        self._aead = AESGCM(secret)
        self._tag_key = hashlib.sha256(b"client keys" + secret).digest()
        self._zstd: zstd.ZstdDict | None = zstd.ZstdDict(dictionary) if dictionary else None
        self._compressor = self._new_compressor()  # kept: making one costs more than compressing an item
        self._compressing = threading.Lock()

    def __repr__(self) -> str:
        return f"RunKey(dictionary of {len(self._dictionary)} octets)"

    def __reduce__(self) -> tuple[type["RunKey"], tuple[bytes, bytes]]:
        return RunKey, (self._secret, self._dictionary)

    def with_dictionary(self, dictionary: bytes) -> "RunKey":
        """Return this key with a dictionary, which new things are compressed with and old ones may need."""
        return RunKey(self._secret, dictionary)

    def seal(self, part: str, run: str, seq: int, plain: bytes) -> bytes:
        """Seal one part (request, answer, key, dictionary) of an item. Any thread may."""
        how, packed = _PLAIN, plain
        if len(plain) > _SMALL:
            how, packed = (_WITH_DICTIONARY if self._zstd is not None else _ZSTD), self._compressed(plain)
        nonce = os.urandom(_NONCE)
        return b"%c%s%s" % (how, nonce, self._aead.encrypt(nonce, packed, _about(how, part, run, seq)))

    def _new_compressor(self) -> Any:
        return zstd.ZstdCompressor(LEVEL, zstd_dict=self._zstd.as_digested_dict if self._zstd else None)

    def _compressed(self, plain: bytes) -> bytes:
        frame = zstd.ZstdCompressor.FLUSH_FRAME
        if len(plain) >= _LARGE:
            large: bytes = self._new_compressor().compress(plain, frame)
            return large
        with self._compressing:
            small: bytes = self._compressor.compress(plain, frame)
        return small

    def unseal(self, part: str, run: str, seq: int, sealed: bytes) -> bytes:
        """Open what `seal` made for the same part of the same item. Raises SealError."""
        how = sealed[0] if sealed else 0
        try:
            packed = self._aead.decrypt(sealed[1 : 1 + _NONCE], sealed[1 + _NONCE :], _about(how, part, run, seq))
        except (InvalidTag, ValueError):
            raise SealError(
                "It was not sealed with this key, for this item: the store was changed by others, or is damaged. "
                "Restore it from a backup."
            ) from None
        if how == _PLAIN:
            return packed
        if how == _WITH_DICTIONARY and self._zstd is None:
            raise SealError("It needs the run's dictionary. Report this to the maintainers.")
        return _inflated(packed, self._zstd if how == _WITH_DICTIONARY else None)

    def key_tag(self, client_key: str) -> bytes:
        """Return what a client key is compared by: equal for equal keys of one run, and says nothing else."""
        return hmac.digest(self._tag_key, client_key.encode("utf-8", "surrogatepass"), "sha256")[:_TAG]


class KeyRing:
    """The institution's key."""

    def __init__(self, secret: bytes, *, generated: bool = False) -> None:
        self._aead = AESGCM(secret)
        self._fingerprint = hashlib.sha256(b"which key" + secret).digest()[:4]
        self._tag_key = hashlib.sha256(b"identities" + secret).digest()
        self.generated = generated  #: it lies in `data_dir`, beside what it protects

    def __repr__(self) -> str:
        return f"KeyRing({self._fingerprint.hex()})"

    @classmethod
    def open(cls, key_text: str | None, data_dir: Path) -> "KeyRing":
        """Return the key that the configuration gives (base64 of 32 octets), or the one in `data_dir`, made if need be.

        Raises:
            SealError: it is no such key, or others may read its file.
            OSError: the file cannot be read or made.
        """
        if key_text is not None:
            return cls(_decoded(key_text, "store.key"))
        file = data_dir / FILE
        if not file.exists():
            _write(file, base64.b64encode(secrets.token_bytes(32)) + b"\n")
        if file.stat().st_mode & 0o077:
            raise SealError(f"{file}: others may read it. Make it `chmod 600`, and consider who has seen it.")
        return cls(_decoded(file.read_text("ascii"), str(file)), generated=True)

    def new_key(self) -> tuple[RunKey, bytes]:
        """Make a run's key; return it, and wrapped, to be stored."""
        secret, nonce = secrets.token_bytes(32), os.urandom(_NONCE)
        return RunKey(secret), self._fingerprint + nonce + self._aead.encrypt(nonce, secret, b"run key")

    def unwrap(self, wrapped: bytes) -> RunKey:
        """Return a run's key. Raises SealError."""
        fingerprint, nonce, box = wrapped[:4], wrapped[4 : 4 + _NONCE], wrapped[4 + _NONCE :]
        if fingerprint != self._fingerprint:
            raise SealError(
                f"The run was stored under the key {fingerprint.hex()}, this gateway has {self._fingerprint.hex()}. "
                "Give it the old key (`store.key`), or cancel the run."
            )
        try:
            return RunKey(self._aead.decrypt(nonce, box, b"run key"))
        except (InvalidTag, ValueError):
            raise SealError("The run's key is damaged. Restore the store from a backup.") from None

    def tag(self, text: str) -> bytes:
        """Return what a caller's identity is compared by."""
        return hmac.digest(self._tag_key, text.encode("utf-8", "surrogatepass"), "sha256")[:_TAG]


def train(samples: Sequence[bytes]) -> bytes:
    """Return a dictionary for messages like these; empty where they are too few or too different."""
    try:
        return zstd.train_dict(list(samples), DICTIONARY_SIZE).dict_content
    except (zstd.ZstdError, ValueError):
        return b""


def _about(how: int, part: str, run: str, seq: int) -> bytes:
    return f"{how}|{part}|{run}|{seq}".encode("ascii")


def _inflated(packed: bytes, dictionary: "zstd.ZstdDict | None") -> bytes:
    inflater = zstd.ZstdDecompressor(dictionary)
    try:
        plain: bytes = inflater.decompress(packed, MAX_INFLATED)
    except zstd.ZstdError:
        raise SealError("What was sealed is damaged. Restore the store from a backup.") from None
    if not inflater.eof:
        raise SealError("It is larger than 64 MiB, or not whole.")
    return plain


def _decoded(text: str, where: str) -> bytes:
    try:
        secret = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if len(secret) != 32:
        raise SealError(f"{where}: is not 32 octets in base64. Make one: `openssl rand -base64 32`.")
    return secret


def _write(file: Path, content: bytes) -> None:
    """Write a new file of ours, whole and on disk, or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_suffix(".new")
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(handle, content)
        os.fsync(handle)
    finally:
        os.close(handle)
    fresh.replace(file)
    directory = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
