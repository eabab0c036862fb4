"""Where the log ends up: a folder of this machine or of an object store, in whole files."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tallystick.errors import DataError
from tallystick.settings import settings
from tallystick.storage.atomic_files import replacing
from tallystick.storage.locations import Location, location_of, store_errors

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def _told_if_full(path: str) -> Iterator[None]:
    """Say that the disk is full where that is why a file cannot be written."""
    try:
        yield
    except DataError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in _FULL:
            raise DataError(
                f"{path} cannot be written: {cause.strerror or cause}",
                hint="Make room on the disk; what was to be written stays where it is until then.",
            ) from cause
        raise


@dataclass(frozen=True)
class Sink:
    """A folder for files that appear whole, or not at all.

    Attributes:
        place: The folder.
    """

    place: Location

    @classmethod
    def of(cls, state_dir: Path) -> Sink:
        """The sink that the settings name, by default the folder ``log`` of the state folder."""
        given = settings()
        uri = given.log_sink or str(state_dir / "log")
        return cls(location_of(uri, Path.cwd(), endpoint=given.log_sink_endpoint))

    def path(self, name: str) -> str:
        """A file's path in the store."""
        return f"{self.place.path}/{name}"

    def text(self, name: str) -> str:
        """A file's path as its owner would write it."""
        return self.place.store.text(self.path(name))

    @property
    def filesystem(self) -> Any:
        """A ``pyarrow.fs.FileSystem``."""
        return self.place.store.filesystem

    def write(self, name: str, content: Callable[[Any], None]) -> int:
        """Write a file, and give its size in bytes.

        Args:
            name: Its path within the sink; one that is there is replaced.
            content: Writes to what it is given, a path or an open stream.

        Raises:
            UnavailableError: The store did not answer.
            DataError: It refused, or the disk is full.
        """
        if self.place.store.is_local:
            path = Path(self.path(name))
            with _told_if_full(str(path)), store_errors(str(path)):
                with replacing(path) as draft:
                    content(draft)
                return path.stat().st_size
        with store_errors(self.text(name)):
            # What is not closed never appears.
            with self.filesystem.open_output_stream(self.path(name)) as stream:
                content(stream)
            (info,) = self.filesystem.get_file_info([self.path(name)])
        return int(info.size)

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a small file."""

        def put(to: Any) -> None:
            if isinstance(to, Path):
                to.write_bytes(content)
            else:
                to.write(content)

        self.write(name, put)

    def read_bytes(self, name: str) -> bytes:
        """Read a small file.

        Raises:
            FileNotFoundError: It is not there.
            UnavailableError: The store did not answer.
        """
        try:
            if self.place.store.is_local:
                return Path(self.path(name)).read_bytes()
            with self.filesystem.open_input_stream(self.path(name)) as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            raise
        except OSError:
            with store_errors(self.text(name)):
                raise
        raise AssertionError

    def names(self, folder: str) -> list[str]:
        """Names of the files of a folder, at any depth, as paths within the sink; sorted."""
        from pyarrow.fs import FileSelector, FileType

        selector = FileSelector(self.path(folder), recursive=True, allow_not_found=True)
        with store_errors(self.text(folder)):
            infos = self.filesystem.get_file_info(selector)
        start = len(self.place.path) + 1
        return sorted(
            info.path[start:]
            for info in infos
            if info.type == FileType.File and not info.base_name.startswith(".")
        )

    def discard(self, name: str) -> None:
        """Remove a file, and what one who was killed while writing it has left."""
        if self.place.store.is_local:
            path = Path(self.path(name))
            with store_errors(str(path)):
                for draft in path.parent.glob(f".{path.name}.*.tmp"):
                    draft.unlink(missing_ok=True)
        self.remove(name)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        if self.place.store.is_local:
            with store_errors(self.path(name)):
                Path(self.path(name)).unlink(missing_ok=True)
            return
        with store_errors(self.text(name)):
            try:
                self.filesystem.delete_file(self.path(name))
            except FileNotFoundError:
                return
