"""Where files are: on this machine, or in an object store, each behind one interface.

A place is written as a path or a URI: ``file://``, ``s3://``, ``gs://``, ``abfs://`` and
``abfss://``. pyarrow opens it, with the credentials that it finds by itself (for S3 those of the
AWS SDK), and DuckDB reads through the same connection, so that no extension has to be loaded.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from tallystick.errors import DataError, DefinitionError, TallystickError, UnavailableError

SCHEMES: Final = ("s3", "gs", "abfs", "abfss")
"""Object stores that pyarrow opens."""

CONNECT_TIMEOUT_S: Final = 5.0
REQUEST_TIMEOUT_S: Final = 60.0

_NO_ANSWER: Final = ("NETWORK_CONNECTION", "curlCode", "Couldn't connect", "timed out")
"""What pyarrow's messages have in them when nobody answered."""


@dataclass(frozen=True)
class Store:
    """What files are in: this machine, or a bucket of an object store.

    Attributes:
        scheme: ``file``, or one of :data:`SCHEMES`.
        bucket: What a URI has between ``://`` and the next slash; empty for this machine.
        endpoint: Where S3 is asked instead of at Amazon; empty for there.
    """

    scheme: str = "file"
    bucket: str = ""
    endpoint: str = ""

    @property
    def is_local(self) -> bool:
        """Whether it is this machine."""
        return self.scheme == "file"

    @property
    def filesystem(self) -> Any:
        """The store as a ``pyarrow.fs.FileSystem``."""
        return _opened(os.getpid(), self)[0]

    @property
    def protocol(self) -> str:
        """The name under which DuckDB knows the store; empty for this machine."""
        if self.is_local:
            return ""
        text = f"{self.scheme} {self.bucket} {self.endpoint}"
        return f"tally{sha256(text.encode()).hexdigest()[:16]}"

    def address(self, path: str) -> str:
        """A path in the store as DuckDB reads it."""
        return path if self.is_local else f"{self.protocol}://{path}"

    def text(self, path: str) -> str:
        """A path in the store as its owner would write it."""
        if self.is_local:
            return path
        return f"{self.scheme}://{self.bucket}/{path.split('/', 1)[-1]}"


LOCAL: Final = Store()
"""This machine."""


@dataclass(frozen=True)
class Place:
    """A file or folder, which need not exist.

    Attributes:
        store: What it is in.
        path: Its path there; in an object store it starts with the bucket's name.
    """

    store: Store
    path: str

    def __str__(self) -> str:
        return self.store.text(self.path)

    @property
    def local(self) -> Path:
        """Its path on this machine."""
        return Path(self.path)

    def exists(self) -> bool:
        """Whether there is a file or folder."""
        if self.store.is_local:
            return self.local.exists()
        with translated(str(self)):
            (info,) = self.store.filesystem.get_file_info([self.path])
        return bool(info.type.name != "NotFound")

    def is_delta_table(self) -> bool:
        """Whether it is the folder of a Delta table."""
        log = f"{self.path}/_delta_log"
        if self.store.is_local:
            return Path(log).is_dir()
        with translated(str(self)):
            (info,) = self.store.filesystem.get_file_info([log])
        return bool(info.type.name == "Directory")

    def is_folder(self) -> bool:
        """Whether it is a folder; in an object store, where folders need not be made, by name."""
        if self.store.is_local:
            return self.local.is_dir()
        return not self.path.endswith(".parquet")


def place_of(uri: str, repo_path: Path | str | None, *, endpoint: str | None = "") -> Place:
    """The place that a path or URI names; relative paths are taken from the repo's folder.

    Args:
        uri: A path of this machine, or a URI of one of the stores in the module's text.
        repo_path: The repo's folder.
        endpoint: Feast's ``s3_endpoint_override``.

    Raises:
        DefinitionError: The URI is of another kind, or names no bucket.
    """
    scheme, sign, rest = uri.partition("://")
    if not sign or scheme == "file":
        return Place(LOCAL, Path(repo_path or ".", rest if sign else uri).as_posix())
    bucket, _, path = rest.partition("/")
    if scheme not in SCHEMES or not bucket:
        raise DefinitionError(
            f"The source {uri} is in no store that is read here.",
            hint=f"Give a local path, or a URI with a bucket: {', '.join(SCHEMES)}.",
        )
    store = Store(scheme, bucket, (endpoint or "") if scheme == "s3" else "")
    with translated(uri):
        _, root = _opened(os.getpid(), store)
    return Place(store, f"{root}/{path}".rstrip("/"))


@cache
def _opened(process: int, store: Store) -> tuple[Any, str]:  # noqa: ARG001 - a fork opens anew
    """The store's file system, and the path of its bucket there."""
    import pyarrow.fs

    if store.is_local:
        return pyarrow.fs.LocalFileSystem(), ""
    if store.scheme != "s3":
        found, root = pyarrow.fs.FileSystem.from_uri(f"{store.scheme}://{store.bucket}/")
        return found, root.rstrip("/")
    where: dict[str, str] = {"endpoint_override": store.endpoint}
    if not store.endpoint:
        # Without an answer the SDK's own settings say where the bucket is.
        with suppress(OSError):
            where = {"region": pyarrow.fs.resolve_s3_region(store.bucket)}
    filesystem = pyarrow.fs.S3FileSystem(
        connect_timeout=CONNECT_TIMEOUT_S, request_timeout=REQUEST_TIMEOUT_S, **where
    )
    return filesystem, store.bucket


_attaching = threading.Lock()
_known: set[Store] = set()


def make_readable(store: Store) -> None:
    """Have every connection that is opened from now on read from a store."""
    if not store.is_local:
        with _attaching:
            _known.add(store)


def attach(connection: Any) -> None:
    """Let a DuckDB connection read from the stores that are known."""
    from fsspec.implementations.arrow import ArrowFSWrapper

    with _attaching:
        for store in _known:
            if not connection.filesystem_is_registered(store.protocol):
                prefix = f"{store.protocol}://"
                # The class says the protocol, and how to take it from a path.
                own = {
                    "protocol": store.protocol,
                    "_strip_protocol": staticmethod(partial(_without, prefix)),
                    "cachable": False,
                }
                wrapper = type("StoreOfDuckDB", (ArrowFSWrapper,), own)
                connection.register_filesystem(wrapper(store.filesystem))


def _without(prefix: str, path: Any) -> Any:
    """A path, or some, as the store knows them."""
    if isinstance(path, list):
        return [_without(prefix, each) for each in path]
    return str(path).removeprefix(prefix)


def has_no_answer(error: BaseException) -> bool:
    """Whether an error of pyarrow's says that nobody answered."""
    return any(sign in str(error) for sign in _NO_ANSWER)


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn pyarrow's errors into ours.

    Raises:
        UnavailableError: The store did not answer.
        DataError: It refused.
    """
    import pyarrow as pa

    try:
        yield
    except TallystickError:
        raise
    except (pa.ArrowException, OSError) as error:
        text = " ".join(str(error).split())
        if has_no_answer(error):
            raise UnavailableError(f"The store of {what}", text) from error
        raise DataError(
            f"{what} cannot be reached: {text}",
            hint="Correct the path, or the credentials and rights with which it is asked for.",
        ) from error
