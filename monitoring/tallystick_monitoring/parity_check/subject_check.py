"""The check of one subject: its values from history, online store and API, compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tallystick.errors import DataError, DefinitionError, TallystickError
from tallystick_monitoring.log_columns import Bools
from tallystick_monitoring.parity_check import subject_answers
from tallystick_monitoring.parity_check.answer_comparison import Ways, compare
from tallystick_monitoring.parity_check.check_requests import Requests
from tallystick_monitoring.parity_check.key_sampling import SampledKeys
from tallystick_monitoring.parity_check.parity_report import SubjectReport
from tallystick_monitoring.parity_check.scratch_repo import ScratchRepo
from tallystick_monitoring.parity_check.scratch_server import ScratchServer
from tallystick_monitoring.parity_check.subject_answers import CARRIED, Answers
from tallystick_monitoring.parity_check.subjects import Subject, Unusable


@dataclass(frozen=True)
class SubjectCheck:
    """Reads the values of subjects three ways, and compares them.

    Attributes:
        scratch: The scratch repo, online.
        api: Its server.
        requests: Draws the requests.
        keys: View → the keys that were drawn of it.
        unreadable: View → why it could not be read or brought online.
        rows_max: Requests that the server takes at once.
    """

    scratch: ScratchRepo
    api: ScratchServer
    requests: Requests
    keys: dict[str, SampledKeys]
    unreadable: dict[str, str]
    rows_max: int

    def compared(self, subject: Subject | Unusable) -> SubjectReport:
        """What is found of a subject."""
        if isinstance(subject, Unusable):
            if subject.is_served:
                return _failed(subject, subject.reason)
            return SubjectReport(kind=subject.kind, name=subject.name, notes=(subject.reason,))
        names = [use.spec.name for use in subject.inputs.views]
        unreadable = [name for name in names if name in self.unreadable]
        if unreadable and subject.kind == "view":
            return _failed(subject, self.unreadable[subject.name])
        if unreadable:
            return _failed(subject, *(f"view {name} cannot be compared" for name in unreadable))
        try:
            return self._compared(subject)
        except TallystickError as error:
            return _failed(subject, str(error))

    def _compared(self, subject: Subject) -> SubjectReport:
        entity_rows = self.requests.entity_rows(
            subject.inputs, subject.name, populated=subject.kind != "view"
        )
        notes: list[str] = []
        if unanswered := subject_answers.unanswered(subject):
            notes.append(
                f"not compared: {', '.join(unanswered)}, which Feast leaves out where "
                "features are asked for with the names of their views, as two of one name must be"
            )
        failures: list[str] = []
        entity_rows, offline = self._offline(subject, entity_rows, notes)
        left_out = self._left_out(subject, entity_rows, notes)
        online = api = None
        if entity_rows.num_rows and subject.bundle is None:
            with _noting(failures):
                online = subject_answers.online(self.scratch.repo, subject, entity_rows)
        if entity_rows.num_rows:
            with _noting(failures):
                api = self._served(subject, entity_rows, notes)
        return compare(
            subject,
            entity_rows,
            Ways(offline, online, api, left_out),
            kinds=self.keys[subject.name].kinds if subject.kind == "view" else {},
            notes=notes,
            failures=failures,
        )

    def _offline(
        self, subject: Subject, entity_rows: pa.Table, notes: list[str]
    ) -> tuple[pa.Table, Answers]:
        """What history says, and the requests without those that make something fail."""
        table, found = subject_answers.stored(self.scratch.repo, subject.inputs, entity_rows)
        try:
            computed = subject_answers.computed(subject, table)
        except DefinitionError:
            failing, reason = subject_answers.failing_rows(subject, table)
            passing = [row for row, fails in enumerate(failing) if not fails]
            if not passing:
                raise
            entity_rows = entity_rows.take(passing)
            table, found = subject_answers.stored(self.scratch.repo, subject.inputs, entity_rows)
            computed = subject_answers.computed(subject, table)
            notes.append(f"left out are {sum(failing)} requests that fail: {reason}")
        found.values |= computed.values
        found.predictions = computed.predictions
        return entity_rows, found

    def _left_out(self, subject: Subject, entity_rows: pa.Table, notes: list[str]) -> Bools:
        if self.scratch.is_packed:
            return np.zeros(entity_rows.num_rows, dtype=np.bool_)
        later = np.array(
            subject_answers.not_yet_known(self.scratch.repo, subject.inputs, entity_rows),
            dtype=np.bool_,
        )
        if later.any():
            notes.append(
                f"left out are {int(later.sum())} requests with a row that was known only later: "
                "Feast, which filled the store, does not ask when a row became known"
            )
        return later

    def _served(self, subject: Subject, entity_rows: pa.Table, notes: list[str]) -> Answers | None:
        if subject.bundle is not None:
            reasons = [
                reason
                for reason in self.api.reasons_not_ready()
                if reason.startswith(f"model {subject.name} ")
            ]
            if reasons:
                raise DataError("; ".join(reasons))
            return subject_answers.served_predictions(
                self.api, subject, entity_rows, rows_max=self.rows_max
            )
        uncarried = [
            f"{column.name} ({column.dtype})"
            for column in subject.inputs.request_columns
            if column.dtype not in CARRIED
        ]
        if uncarried:
            notes.append(
                f"the API was not compared: Feast cannot take {', '.join(uncarried)} from JSON, "
                "only a model's route can"
            )
            return None
        return subject_answers.served_features(
            self.api, subject, entity_rows, rows_max=self.rows_max
        )


def _failed(subject: Subject | Unusable, *reasons: str) -> SubjectReport:
    return SubjectReport(kind=subject.kind, name=subject.name, failures=reasons)


@contextmanager
def _noting(failures: list[str]) -> Iterator[None]:
    """Note why one way cannot answer, and go on with the others."""
    try:
        yield
    except TallystickError as error:
        failures.append(str(error))
