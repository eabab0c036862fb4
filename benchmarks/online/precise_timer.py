"""A timer that is exact to some tens of microseconds; that of an event loop is to a millisecond."""

from __future__ import annotations

import ctypes
import os
from typing import Final

_CLOCK_MONOTONIC: Final = 1
_ABSOLUTE: Final = 1
_SECOND_NS: Final = 1_000_000_000


class _Moment(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Setting(ctypes.Structure):
    _fields_ = (("interval", _Moment), ("value", _Moment))


class Timer:
    """Linux's ``timerfd``: a file that can be read at a moment of ``time.monotonic_ns()``.

    Raises:
        OSError: The system gives none.
    """

    def __init__(self) -> None:
        self._system = ctypes.CDLL(None, use_errno=True)
        self.file = self._checked(
            self._system.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        )

    def set(self, moment_ns: int) -> None:
        """Become readable at a moment; at once if it is past."""
        setting = _Setting(value=_Moment(*divmod(moment_ns, _SECOND_NS)))
        self._checked(
            self._system.timerfd_settime(self.file, _ABSOLUTE, ctypes.byref(setting), None)
        )

    def clear(self) -> None:
        """Be no longer readable."""
        os.read(self.file, 8)

    def close(self) -> None:
        """Give the file back."""
        os.close(self.file)

    @staticmethod
    def _checked(answer: int) -> int:
        if answer < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        return answer
