"""``tally check``: validates stores, definitions and contracts, and lists every problem at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tallystick.definitions.contract import ModelInputs, check_same_inputs
from tallystick.definitions.feature_repo import Repo, unchanged_registry
from tallystick.definitions.feature_types import Role, type_problems
from tallystick.definitions.feature_view import columns_of
from tallystick.errors import DefinitionError, Problem, TallystickError
from tallystick.model_bundle.bundle import champions, load_bundle, read_champion
from tallystick.point_in_time.on_demand import Transforms

ONLINE_STORE = "tallystick.online_store.RedisOnlineStore"
MISSING_ONLINE = (
    (
        "its rows have no created time, write time or definition: the audit cannot name the causes "
        "definition_changed and source_rewritten, and reports both as unexplained"
    ),
    (
        "it has its own rule for which of two writes wins: a correction may never go online, "
        "and an older row may replace a newer one"
    ),
    "tally serve enforces the ttl; Feast's SDK and server may not",
    (
        "the definition of a view is compared with the contract when the champion is loaded, not "
        "for each row: after a change, write the view again before you train"
    ),
    (
        "it is filled by  feast materialize-incremental , which misses rows that arrive late; "
        "tally materialize cannot write to it"
    ),
)
"""What is missing with an online store that is not Tallystick's."""

_UNKNOWN_KEY = {
    "INT32": 0,
    "INT64": 0,
    "STRING": "",
    "BYTES": b"",
    "UNIX_TIMESTAMP": datetime.fromtimestamp(0, UTC),
}
"""Type of a key → the key of an entity that a store is not likely to have."""


@dataclass
class CheckResult:
    """The result of a check: sentences for people, in order.

    Attributes:
        passed: What is as it must be.
        warnings: What works with limits.
        failures: What will not work.
    """

    passed: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def check(repo: Repo) -> CheckResult:
    """Check stores, definitions, and the champions' contracts against the definitions."""
    with unchanged_registry(repo):
        return _checked(repo)


def _checked(repo: Repo) -> CheckResult:
    found = CheckResult()
    _check_stores(repo, found)
    _check_types(repo, found)
    _check_kinds(repo, found)
    if not repo.models:
        found.warnings.append(
            "No model is declared: add a tallystick.Model to a file of the repo to train and serve."
        )
    with_champion = set(champions(repo.state_dir))
    for name, model in sorted(repo.models.items()):
        try:
            inputs = repo.inputs(model)
        except TallystickError as error:
            found.failures.append(str(error))
            continue
        found.passed.append(
            f"model {name}: {len(inputs.features)} features from {len(inputs.views)} views and "
            f"{len(inputs.transforms)} on-demand views"
        )
        _check_clock(inputs, found)
        _check_transforms(repo, inputs, found)
        _check_estimator(name, model.estimator, found)
        if name in with_champion:
            _check_champion(repo, inputs, found)
    return found


def _check_stores(repo: Repo, found: CheckResult) -> None:
    config = repo.store.config
    ours = "tallystick.offline_store.DuckDBOfflineStore"
    ours_too = "tallystick.offline_store.SparkOfflineStore"
    got = str(getattr(config.offline_store, "type", None))
    if got in {ours, ours_too}:
        found.passed.append(f"offline_store: {got}")
    else:
        found.warnings.append(f"offline_store is {got}: Tallystick's guarantees need  type: {ours}")
    _check_online_store(config.online_store, found)


def _check_online_store(config: Any, found: CheckResult) -> None:
    if config is None:
        found.failures.append(
            f"online_store is none: no model can be served; name one, best  type: {ONLINE_STORE}"
        )
        return
    got = str(config.type)
    if got == ONLINE_STORE:
        found.passed.append(f"online_store: {got}")
        return
    found.warnings.append(
        f"online_store is {got}: it works, through Feast's SDK, and is slower; all of Tallystick's "
        f"guarantees need  type: {ONLINE_STORE}"
    )
    found.warnings += [f"online_store {got}: {missing}" for missing in MISSING_ONLINE]


def _check_types(repo: Repo, found: CheckResult) -> None:
    """List the columns of views whose type cannot be stored, logged or be a key."""
    problems: list[Problem] = []
    for view in repo.store.list_all_feature_views():
        requested = getattr(view, "source_request_sources", {}).values()
        fields: dict[Role, Sequence[Any]] = {
            "feature": view.features,
            "entity key": getattr(view, "entity_columns", ()),
            "request field": [field for source in requested for field in source.schema],
        }
        for role, columns in fields.items():
            types = {f"{c.name} of view {view.name}": c.dtype for c in columns_of(columns)}
            problems += type_problems(role, types)
    if problems:
        what = "Columns of views have types that are not supported."
        found.failures.append(str(DefinitionError(what, problems)))


def _check_kinds(repo: Repo, found: CheckResult) -> None:
    """Name the views that tally materialize leaves out."""
    for view in repo.store.list_on_demand_feature_views():
        if view.write_to_online_store:
            found.warnings.append(
                f"on-demand view {view.name} has write_to_online_store: only  feast materialize  "
                "and pushes write it; models compute it for each request"
            )
    for view in repo.store.list_label_views():
        found.warnings.append(
            f"label view {view.name} goes online by pushes only, as in Feast: materialization "
            "leaves it out"
        )


def _check_clock(inputs: ModelInputs, found: CheckResult) -> None:
    for use in inputs.views:
        if use.spec.created_column is None:
            found.warnings.append(
                f"view {use.spec.name!r} has no created_timestamp_column in its source, so it "
                "is unknown when its rows became known: add one, or train with --clock event"
            )


def _check_transforms(repo: Repo, inputs: ModelInputs, found: CheckResult) -> None:
    """Compute each on-demand view for an unknown entity: all inputs are null but for its keys."""
    given: dict[str, list[Any]] = {
        source: [None] for spec in inputs.transforms for source in spec.inputs.values()
    }
    given |= {key.name: [_UNKNOWN_KEY[key.dtype]] for key in inputs.entity_keys}
    try:
        Transforms.from_repo(repo, inputs).compute(inputs, given)
    except DefinitionError as error:
        if isinstance(error.__cause__, NameError):
            found.failures.append(
                f"{error}. An on-demand function is frozen with what its own file defines: define "
                "there, or inside the function, what it calls"
            )
        else:
            found.warnings.append(
                f"{error}. Its inputs were null, as they are for an unknown entity: such a request "
                "would fail"
            )


def _check_estimator(name: str, estimator: object, found: CheckResult) -> None:
    if not hasattr(estimator, "fit") or not hasattr(estimator, "predict_proba"):
        found.failures.append(
            f"model {name}: the estimator must have fit and predict_proba, as scikit-learn's "
            f"classifiers have; {type(estimator).__name__} has not"
        )


def _check_champion(repo: Repo, inputs: ModelInputs, found: CheckResult) -> None:
    try:
        champion = read_champion(repo.state_dir, inputs.model)
        bundle = load_bundle(repo.state_dir, inputs.model, champion.contract_hash)
        check_same_inputs(
            bundle.contract,
            inputs,
            what=f"The champion of {inputs.model!r} no longer fits the repo's definitions.",
        )
    except TallystickError as error:
        found.failures.append(str(error))
        return
    found.passed.append(f"champion of {inputs.model}: version {champion.version} fits the repo")
