"""Processes that write to a log or compact it, made to be killed.

They are forked by one process that has imported what they need, and has no thread: that takes
milliseconds where a new interpreter takes seconds, and a test needs hundreds.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path

from log_rows import CONTRACTS, request
from tallystick.prediction_log import log_reader
from tallystick.prediction_log.compactor import compact
from tallystick.prediction_log.log_writer import PredictionLog
from tallystick.prediction_log.record_codec import RecordLayout
from tallystick.settings import Settings

_GIVE_UP_S = 60.0


class Forge:
    """Starts processes; to be made by :func:`forge`."""

    def __init__(self, process, reports):
        self._process = process
        self.reports = reports

    def start(self, job, **arguments):
        """Start a process that does one of :data:`JOBS`, and give its id."""
        line = json.dumps({"job": job, "reports": str(self.reports)} | arguments)
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def run(self, job, **arguments):
        """Let a process do a job, and give its exit status: minus the signal if one killed it."""
        pid = self.start(job, **arguments)
        path = self.reports / f"{pid}.status"
        wait_until(path.exists)
        status = int(path.read_text())
        path.unlink()
        return status

    def stop(self, pid, number):
        """Send a signal to a process, and return once it is gone."""
        os.kill(pid, number)
        path = self.reports / f"{pid}.status"
        wait_until(path.exists)
        status = int(path.read_text())
        assert status in (0, -number), f"process {pid} ended with {status}"

    def report(self, pid):
        """Of a worker: its number, requests acknowledged, rows durable, and whether it closed."""
        found = {"worker": -1, "acknowledged": 0, "durable": 0, "closed": False}
        path = self.reports / f"{pid}.log"
        if path.exists():
            # A line that is still being written has no end.
            for line in path.read_text().splitlines(keepends=True):
                if line.endswith("\n"):
                    found |= json.loads(line)
        return found


@contextmanager
def forge(folder):
    """A process that forks others; they are all gone afterwards.

    Args:
        folder: Where they report to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield Forge(process, folder)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdin.close()
        process.stdout.close()


def wait_until(condition):
    """Return once a condition holds; fail if it does not for a minute."""
    give_up = time.monotonic() + _GIVE_UP_S
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.005)


class _Reporting:
    """A worker's report, in a file that outlives it."""

    def __init__(self, reports):
        # Not by os.write, in which processes are killed.
        self._file = Path(reports, f"{os.getpid()}.log").open("ab", buffering=0)  # noqa: SIM115

    def say(self, **what):
        self._file.write(json.dumps(what).encode() + b"\n")


def work(*, reports, state, worker, durable, pause_s=0.002, requests=10**9, options=None):
    """Append request after request; end as a server does on SIGTERM.

    Args:
        reports: Folder of the reports.
        state: The state folder.
        worker: The worker's number; its contract and its rows follow from it.
        durable: Whether each request waits until it is on disk.
        pause_s: Seconds between requests.
        requests: How many there are at most.
        options: Settings of the write-ahead log.
    """
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    report = _Reporting(reports)
    report.say(worker=worker)
    contract = CONTRACTS[worker % len(CONTRACTS)]
    log = PredictionLog(
        Path(state),
        Settings(
            **{"log_window_s": 0.01, "log_segment_bytes": 30_000, "log_segment_s": 0.3}
            | (options or {})
        ),
    )
    for number in range(requests):
        if ended.wait(pause_s):
            break
        if durable:
            done = threading.Event()
            answers = []

            def on_written(is_written, done=done, answers=answers):
                answers.append(is_written)
                done.set()

            assert log.append(contract, request(worker, number), on_written=on_written)
            done.wait()
            if answers[0]:
                report.say(acknowledged=number + 1)
        else:
            assert log.append(contract, request(worker, number))
            if number % 10 == 0:
                report.say(durable=log.ledger.durable)
    log.close()
    ledger = log.ledger
    assert ledger.accepted == ledger.durable
    report.say(closed=True, durable=ledger.durable)


def compact_on(*, reports, state, pause_s=0.02):
    """Compact again and again."""
    del reports
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    while not ended.wait(pause_s):
        compact(Path(state))


def compact_once(*, reports, state):
    """Compact."""
    del reports
    compact(Path(state))


JOBS = {"work": work, "compact_on": compact_on, "compact_once": compact_once}


def kill_at(function, *, call, when):
    """Have this process kill itself at a call of a function.

    Args:
        function: Module, a colon, and the name in it.
        call: Which of its calls, from 1.
        when: ``before`` it, ``after`` it, or ``half``: when half of what it writes is written.
    """
    module, _, path = function.partition(":")
    *outer, name = path.split(".")
    owner = import_module(module)
    for each in outer:
        owner = getattr(owner, each)
    original = getattr(owner, name)
    left = [call]

    def dying(*arguments, **named):
        if name == "unlink" and arguments[0].suffix == ".tmp":
            return original(*arguments, **named)  # gone already, but for a write that failed
        left[0] -= 1
        if left[0]:
            return original(*arguments, **named)
        if when == "half":
            target, content, *_ = arguments
            if isinstance(target, int):
                original(target, content[: len(content) // 2])
            else:
                original(*arguments, **named)
                os.truncate(content if isinstance(content, Path) else target, 100)
        elif when == "after":
            original(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    setattr(owner, name, dying)


def _warm():
    """Import what the jobs import when they are first run."""
    import numpy  # noqa: F401, ICN001
    import pyarrow.compute
    import pyarrow.parquet  # noqa: F401

    for contract in CONTRACTS:
        RecordLayout(contract)
    assert log_reader
    import msgspec  # noqa: F401


def _be_forked(given):
    job = JOBS[given.pop("job")]
    if killed := given.pop("kill_at", None):
        kill_at(killed["function"], call=killed["call"], when=killed["when"])
    job(**given)


def _watch(pid, reports):
    """Write down how a process ended; whole or not at all."""
    _, status = os.waitpid(pid, 0)
    draft = Path(reports, f".{pid}.status")
    draft.write_text(str(os.waitstatus_to_exitcode(status)))
    draft.rename(Path(reports, f"{pid}.status"))


def _main():
    _warm()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        given = json.loads(line)
        ours, theirs = os.pipe()
        # One that waits, and its child that works: so this process need not wait for any.
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    _be_forked(given)
                    code = 0
                except BaseException:  # noqa: BLE001 whatever it is, it is shown
                    sys.excepthook(*sys.exc_info())
                finally:
                    os._exit(code)
            os.write(theirs, str(pid).encode())
            _watch(pid, given["reports"])
            os._exit(0)
        os.close(theirs)
        answer = os.read(ours, 20).decode()
        os.close(ours)
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
