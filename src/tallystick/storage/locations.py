"""Locations: files and folders of this machine or of an object store, behind one interface.

A location is written as a path or a URI: ``file://``, ``s3://``, ``gs://``, ``abfs://`` and
``abfss://``. pyarrow opens it, with the credentials that it finds by itself (for S3 those of the
AWS SDK). DuckDB reads through the same connection, so no extension has to be loaded.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from tallystick.errors import DataError, DefinitionError, TallystickError, UnavailableError
from tallystick.storage.atomic_files import replacing

SCHEMES: Final = ("s3", "gs", "abfs", "abfss")
"""Object stores that pyarrow opens."""

CONNECT_TIMEOUT_S: Final = 5.0
REQUEST_TIMEOUT_S: Final = 60.0

_NO_ANSWER: Final = ("NETWORK_CONNECTION", "curlCode", "Couldn't connect", "timed out")
"""What pyarrow's messages contain when a store did not answer."""

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Store:
    """The file system of this machine, or a bucket of an object store.

    Attributes:
        scheme: ``file``, or one of :data:`SCHEMES`.
        bucket: What a URI has between ``://`` and the next slash; empty for this machine.
        endpoint: Address of S3; empty for Amazon's.
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
class Location:
    """A file or folder, which need not exist.

    Attributes:
        store: What it is in.
        path: Its path there; in an object store it starts with the bucket's name.
    """

    store: Store
    path: str

    def __str__(self) -> str:
        return self.store.text(self.path)

    def __truediv__(self, name: str) -> Location:
        return Location(self.store, f"{self.path}/{name}")

    @property
    def local(self) -> Path:
        """Its path on this machine."""
        return Path(self.path)

    def exists(self) -> bool:
        """Whether there is a file or folder."""
        return self._kind(self.path) != "NotFound"

    def is_delta_table(self) -> bool:
        """Whether it is the folder of a Delta table."""
        return self._kind(f"{self.path}/_delta_log") == "Directory"

    def is_folder(self) -> bool:
        """Whether it is a folder; in an object store, where folders need not be made, by name."""
        if self.store.is_local:
            return self.local.is_dir()
        return not self.path.endswith(".parquet")

    def files(self) -> list[Location]:
        """All files of a folder, at any depth, by path; without hidden ones."""
        from pyarrow.fs import FileSelector, FileType

        selector = FileSelector(self.path, recursive=True, allow_not_found=True)
        with store_errors(str(self)):
            infos = self.store.filesystem.get_file_info(selector)
        return [
            Location(self.store, info.path)
            for info in sorted(infos, key=lambda info: info.path)
            if info.type == FileType.File and not info.base_name.startswith(".")
        ]

    def read_bytes(self) -> bytes:
        """Read a small file.

        Raises:
            FileNotFoundError: It does not exist.
            UnavailableError: The store did not answer.
        """
        with (
            store_errors(str(self), but=(FileNotFoundError,)),
            self.store.filesystem.open_input_stream(self.path) as stream,
        ):
            content: bytes = stream.read()
        return content

    def write(self, content: Callable[[Any], object]) -> int:
        """Write a file, whole or not at all, and return its size in bytes.

        Args:
            content: Writes to what it is given: a path of this machine, or an open stream.

        Raises:
            UnavailableError: The store did not answer.
            DataError: It refused, or the disk is full.
        """
        with store_errors(str(self)):
            if self.store.is_local:
                with replacing(self.local) as draft:
                    content(draft)
            else:
                import pyarrow as pa

                # Whole before anything is sent: closing a stream publishes what it was given.
                whole = pa.BufferOutputStream()
                content(whole)
                with self.store.filesystem.open_output_stream(self.path) as stream:
                    stream.write(whole.getvalue())
            (info,) = self.store.filesystem.get_file_info([self.path])
        return int(info.size)

    def write_bytes(self, content: bytes) -> None:
        """Write a small file, whole or not at all; errors as for :meth:`write`."""
        self.write(lambda to: (to.write_bytes if isinstance(to, Path) else to.write)(content))

    def remove(self) -> None:
        """Remove a file and drafts of it, if they exist."""
        with store_errors(str(self)), suppress(FileNotFoundError):
            if self.store.is_local:
                for draft in self.local.parent.glob(f".{self.local.name}.*.tmp"):
                    draft.unlink(missing_ok=True)
            self.store.filesystem.delete_file(self.path)

    def _kind(self, path: str) -> str:
        with store_errors(str(self)):
            (info,) = self.store.filesystem.get_file_info([path])
        return str(info.type.name)


def location_of(uri: str, repo_path: Path | str | None, *, endpoint: str | None = "") -> Location:
    """The location that a path or URI names; relative paths are taken from the repo's folder.

    Args:
        uri: A path of this machine, or a URI of one of the stores above.
        repo_path: The repo's folder.
        endpoint: Feast's ``s3_endpoint_override``.

    Raises:
        DefinitionError: The URI is of another kind, or names no bucket.
    """
    scheme, sign, rest = uri.partition("://")
    if not sign or scheme == "file":
        return Location(LOCAL, Path(repo_path or ".", rest if sign else uri).as_posix())
    bucket, _, path = rest.partition("/")
    if scheme not in SCHEMES or not bucket:
        raise DefinitionError(
            f"{uri} is not a path, nor a URI of a supported store.",
            hint=f"Give a local path, or a URI with a bucket: {', '.join(SCHEMES)}.",
        )
    store = Store(scheme, bucket, (endpoint or "") if scheme == "s3" else "")
    with store_errors(uri):
        _, root = _opened(os.getpid(), store)
    return Location(store, f"{root}/{path}".rstrip("/"))


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
    """Whether an error of pyarrow says that the store did not answer."""
    return any(sign in str(error) for sign in _NO_ANSWER)


@contextmanager
def store_errors(what: str, *, but: tuple[type[OSError], ...] = ()) -> Iterator[None]:
    """Turn pyarrow's errors into ours.

    Args:
        what: What is read or written, for messages.
        but: Errors that are passed on as they are.

    Raises:
        UnavailableError: The store did not answer.
        DataError: It refused, or the disk is full.
    """
    import pyarrow as pa

    try:
        yield
    except TallystickError:
        raise
    except but:
        raise
    except (pa.ArrowException, OSError) as error:
        text = " ".join(str(error).split())
        if has_no_answer(error):
            raise UnavailableError(f"The store of {what}", text) from error
        if isinstance(error, OSError) and error.errno in _FULL:
            raise DataError(
                f"{what} cannot be written: {error.strerror or text}",
                hint="Make room on the disk and try again; nothing was removed.",
            ) from error
        raise DataError(
            f"{what} cannot be reached: {text}",
            hint="Correct the path, or the credentials and rights with which it is opened.",
        ) from error
