"""The Spark session in which the point-in-time rule runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from tallystick.errors import DataError, MissingExtraError, StateError

if TYPE_CHECKING:
    import pyarrow as pa

OURS: Final = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.ansi.enabled": "true",
    "spark.sql.caseSensitive": "true",
    "spark.sql.legacy.parquet.nanosAsLong": "true",
    "spark.sql.parquet.inferTimestampNTZ.enabled": "true",
    "spark.sql.execution.arrow.useLargeVarTypes": "false",
}
"""Settings that our SQL needs: UTC, errors on overflow, whole nanoseconds."""


def open_session(spark_conf: Mapping[str, str] | None) -> Any:
    """A session of its own on the running Spark application, or on a new one.

    Tables of the catalog are shared with the caller's sessions. Temporary views are not.

    Args:
        spark_conf: Settings of the application, should one have to be started.

    Raises:
        MissingExtraError: Spark is not installed.
        StateError: It does not start.
    """
    try:
        from pyspark.errors import PySparkRuntimeError
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise MissingExtraError("SparkOfflineStore", "spark") from error
    builder = SparkSession.builder.appName("tallystick")
    running = SparkSession.getActiveSession()
    if running is None:
        for name, value in (spark_conf or {}).items():
            builder = builder.config(name, value)
        try:
            running = builder.getOrCreate()
        except PySparkRuntimeError as error:
            raise StateError(
                f"Spark does not start: {error}",
                hint="Install Java 17 or later, let JAVA_HOME name its folder, and try again.",
            ) from error
    session = running.newSession()
    for name, value in OURS.items():
        session.conf.set(name, value)
    return session


def read_table(session: Any, sql: str, *, what: str) -> pa.Table:
    """The answer to a query, as one Arrow table.

    Args:
        session: By :func:`open_session`.
        sql: One SELECT.
        what: What is read, for the message.

    Raises:
        DataError: Spark could not read it.
    """
    return in_spark(lambda: session.sql(sql).toArrow(), what=what)


def in_spark(work: Any, *, what: str) -> Any:
    """What ``work`` returns, with Spark's errors as ours.

    Raises:
        DataError: Spark could not do it.
    """
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    try:
        return work()
    except (PySparkException, Py4JError) as error:
        text = next((line for line in str(error).splitlines() if line.strip()), "")
        raise DataError(f"Cannot read {what}: {text}") from error
