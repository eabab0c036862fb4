"""Settings from the environment; the only module that reads it.

Every variable starts with ``TALLYSTICK_`` and is documented in docs/settings.md. What belongs to a
repo is set in its ``feature_store.yaml`` instead, and what belongs to a model in its definition.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tallystick.errors import InputError, Problem

PREFIX = "TALLYSTICK_"


class Settings(BaseModel):
    """Where things are and how much they may take."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("state_dir", "clock_file")
    @classmethod
    def _make_absolute(cls, path: Path | None) -> Path | None:
        """Take a relative path from the folder of now: some work is done in the repo's."""
        return None if path is None else path.absolute()

    state_dir: Path | None = Field(
        default=None,
        description="Folder of logs, models, records and Redis data; default REPO/.tallystick.",
    )
    clock_file: Path | None = Field(
        default=None, description="File of a simulated clock; unset for the system's clock."
    )
    mlflow_uri: str | None = Field(
        default=None, description="MLflow tracking URI; default SQLite in the state folder."
    )
    request_rows_max: int = Field(
        default=1_000, ge=1, description="Instances that one request may carry."
    )
    request_bytes_max: int = Field(
        default=4 << 20, ge=1024, description="Bytes that the body of one request may have."
    )
    request_body_timeout_s: float = Field(
        default=5.0,
        gt=0,
        description="Seconds that the head of a request, and then its body, may take to arrive.",
    )
    requests_in_flight_max: int = Field(
        default=100, ge=1, description="Requests worked on at once; further ones get 503 at once."
    )
    request_timeout_s: float = Field(
        default=1.0, gt=0, description="Seconds that a request may wait for the online store."
    )
    log_window_s: float = Field(
        default=0.05,
        gt=0,
        description="Seconds (of the machine's clock) between commits of the log.",
    )
    log_durable: bool = Field(
        default=False,
        description="Whether a prediction is answered only once it is on disk, unless its request "
        "says otherwise.",
    )
    log_share: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Share of the entities whose predictions are logged: all of theirs, or none.",
    )
    log_timeout_s: float = Field(
        default=5.0, gt=0, description="Seconds that a request may wait for the log's disk."
    )
    log_buffer_rows_max: int = Field(
        default=50_000, ge=1, description="Predictions held in memory before the log drops any."
    )
    log_segment_bytes: int = Field(
        default=64 << 20, ge=1, description="Bytes from which a segment of the log is ended."
    )
    log_segment_s: float = Field(
        default=60.0, gt=0, description="Seconds after which a segment of the log is ended."
    )
    log_budget_bytes: int = Field(
        default=4 << 30,
        ge=1,
        description="Bytes that predictions not yet compacted may take before the log drops any.",
    )
    log_location: str | None = Field(
        default=None,
        description="Folder or URI of the log's Parquet files; default STATE_DIR/log.",
    )
    log_endpoint: str | None = Field(
        default=None, description="Endpoint of the log's S3 service; default Amazon's."
    )
    log_keep_days: float | None = Field(
        default=None, gt=0, description="Days for which the log is kept; unset for ever."
    )
    log_keep_bytes: int | None = Field(
        default=None,
        ge=1,
        description="Bytes of Parquet files from which the log's oldest days are removed.",
    )
    log_compact_s: float = Field(
        default=60.0, ge=0, description="Seconds between compactions by the server; 0 for none."
    )
    journal_flush_rows: int = Field(
        default=20_000, ge=1, description="Pushed rows that make a file of the journal full."
    )
    journal_flush_s: float = Field(
        default=5.0, gt=0, description="Seconds between writes of the journal of pushed rows."
    )
    champion_poll_s: float = Field(
        default=0.5, gt=0, description="Seconds between looks for a new champion."
    )


@cache
def settings() -> Settings:
    """The settings of this process, read once.

    Raises:
        InputError: A variable has a value that cannot be used, or an unknown name.
    """
    given = {
        name.removeprefix(PREFIX).lower(): value
        for name, value in os.environ.items()
        if name.startswith(PREFIX)
    }
    try:
        return Settings.model_validate(given)
    except ValidationError as error:
        problems = [
            Problem(
                where=PREFIX + str(item["loc"][0]).upper(),
                expected=item["msg"],
                got=repr(item["input"]),
            )
            for item in error.errors()
        ]
        raise InputError(
            "The environment has settings that cannot be used.",
            problems,
            hint="docs/settings.md lists every variable.",
        ) from error


def override(**values: str | Path | None) -> None:
    """Set settings for this process and the processes that it starts.

    Args:
        values: Field of :class:`Settings` → value; None for its default.
    """
    for name, value in values.items():
        if value is None:
            os.environ.pop(PREFIX + name.upper(), None)
        else:
            os.environ[PREFIX + name.upper()] = str(value)
    settings.cache_clear()


@contextmanager
def overridden(**values: str | Path | None) -> Iterator[None]:
    """Set settings as :func:`override` does, for the time of the block."""
    before = {name: os.environ.get(PREFIX + name.upper()) for name in values}
    override(**values)
    try:
        yield
    finally:
        override(**before)


def quiet_mlflow() -> None:
    """Keep MLflow from reporting its use over the network; to be called before it is imported."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["DO_NOT_TRACK"] = "true"
