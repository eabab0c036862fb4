"""Looks a repo over before anything runs: what would fail later is said now, all at once."""

from __future__ import annotations

from dataclasses import dataclass, field

from tallystick.bundle import champions, load_bundle, read_champion
from tallystick.contract import ModelInputs, check_same_inputs
from tallystick.errors import DefinitionError, TallystickError
from tallystick.repo import Repo
from tallystick.transform import Transforms


@dataclass
class Checked:
    """What a check found: sentences for people, in order.

    Attributes:
        passed: What holds.
        warnings: What works, but not as well as it could.
        failures: What will not work.
    """

    passed: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def check(repo: Repo) -> Checked:
    """Check stores, definitions, and the champions' contracts against the definitions."""
    found = Checked()
    _check_stores(repo, found)
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


def _check_stores(repo: Repo, found: Checked) -> None:
    config = repo.store.config
    for kind, ours in (
        ("offline_store", "tallystick.offline_store.DuckDBOfflineStore"),
        ("online_store", "tallystick.online_store.RedisOnlineStore"),
    ):
        got = str(getattr(getattr(config, kind), "type", None))
        if got == ours:
            found.passed.append(f"{kind}: {got}")
        else:
            found.warnings.append(f"{kind} is {got}: Tallystick's guarantees need  type: {ours}")


def _check_clock(inputs: ModelInputs, found: Checked) -> None:
    for use in inputs.views:
        if use.spec.created_column is None:
            found.warnings.append(
                f"view {use.spec.name!r} has no created_timestamp_column in its source, so nobody "
                "can tell what was known when: add one, or train with --clock event"
            )


def _check_transforms(repo: Repo, inputs: ModelInputs, found: Checked) -> None:
    """Compute every on-demand view for a request of which nothing is known."""
    nulls = {source: [None] for spec in inputs.transforms for source in spec.inputs.values()}
    try:
        Transforms.from_repo(repo, inputs).compute(inputs, nulls)
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


def _check_estimator(name: str, estimator: object, found: Checked) -> None:
    if not hasattr(estimator, "fit") or not hasattr(estimator, "predict_proba"):
        found.failures.append(
            f"model {name}: the estimator must have fit and predict_proba, as scikit-learn's "
            f"classifiers have; {type(estimator).__name__} has not"
        )


def _check_champion(repo: Repo, inputs: ModelInputs, found: Checked) -> None:
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
