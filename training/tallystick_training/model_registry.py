"""Runs, versions and aliases in MLflow, and the champion's pointer that serving watches.

A version of a registered model stands for a bundle: its source is the bundle's folder, its tag
``contract_hash`` the bundle's name. The alias ``champion`` says which version should answer, the
pointer (:func:`tallystick.model_bundle.bundle.publish_champion`) which one does. To promote is to
move the alias, then the pointer; each step may be repeated, so that running the command again mends
a crash between them. The tag ``champions`` of the registered model lists the versions that have
been champion, the present one last; a rollback takes the last one off.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from tallystick.definitions.feature_repo import Repo
from tallystick.errors import InputError, StateError, UnavailableError, did_you_mean
from tallystick.model_bundle.bundle import Champion, load_bundle, publish_champion
from tallystick.settings import quiet_mlflow, settings
from tallystick_training.train import Trained

CHAMPION = "champion"
CHALLENGER = "challenger"
HISTORY_TAG = "champions"
HASH_TAG = "contract_hash"
HISTORY_MAX = 100
"""Champions in the history: a tag of MLflow holds 5,000 characters."""

PARAM_LENGTH_MAX = 500
VERSIONS_MAX = 10_000
"""Versions of a model that are read."""


@dataclass(frozen=True)
class Version:
    """A registered version of a model.

    Attributes:
        version: Its number, as text.
        contract_hash: Hash of its contract, which names its bundle.
        aliases: ``champion``, ``challenger``, both or neither.
    """

    version: str
    contract_hash: str
    aliases: tuple[str, ...]


def register(repo: Repo, trained: Trained) -> Version:
    """Record a training in MLflow and register its bundle as a version.

    Registering the same contract again gives the version that it has already.

    Raises:
        UnavailableError: MLflow does not answer.
    """
    contract = trained.contract
    name = registered_name(repo, contract.model)
    with _answering(repo) as client:
        if _registered(client, name) is None:
            client.create_registered_model(name)
        for version in _versions(client, name):
            if version.contract_hash == contract.contract_hash:
                return version
        run_id = _log_run(repo, client, name, trained)
        made = client.create_model_version(
            name,
            source=trained.folder.resolve().as_uri(),
            run_id=run_id,
            tags={HASH_TAG: contract.contract_hash},
        )
        return Version(str(made.version), contract.contract_hash, ())


def mark_challenger(repo: Repo, model: str, version: str) -> None:
    """Give a version the alias ``challenger``.

    Raises:
        InputError: There is no such version.
        UnavailableError: MLflow does not answer.
    """
    with _answering(repo) as client:
        name = registered_name(repo, model)
        _find(client, name, model, version)
        client.set_registered_model_alias(name, CHALLENGER, version)


def promote(repo: Repo, model: str, version: str) -> Champion:
    """Make a version the champion: the alias first, then the pointer.

    Raises:
        InputError: There is no such version.
        StateError: Its bundle is gone; nothing changes.
        DamagedError: Its bundle is not what training wrote; nothing changes.
        UnavailableError: MLflow does not answer.
    """
    name = registered_name(repo, model)
    with _answering(repo) as client:
        found = _find(client, name, model, version)
        load_bundle(repo.state_dir, model, found.contract_hash)
        history = _history(client, name)
        if history[-1:] != [found.version]:
            _write_history(client, name, [*history, found.version])
        return _move(repo, client, model, found)


def rollback(repo: Repo, model: str) -> Champion:
    """Make the champion before the present one the champion again.

    A rollback that was interrupted is finished rather than repeated.

    Raises:
        StateError: There was no champion before, or its bundle is gone.
        DamagedError: Its bundle is not what training wrote; nothing changes.
        UnavailableError: MLflow does not answer.
    """
    name = registered_name(repo, model)
    with _answering(repo) as client:
        history = _history(client, name)
        if len(history) < 2:  # noqa: PLR2004 the present one and the one before
            raise StateError(
                f"Model {model!r} has had no champion before this one.",
                hint=f"Train one:  tally train {model} --promote",
            )
        found = _find(client, name, model, history[-2])
        load_bundle(repo.state_dir, model, found.contract_hash)
        champion = _move(repo, client, model, found)
        # Last: as long as the history is whole, running the command again gives the same champion.
        _write_history(client, name, history[:-1])
        return champion


def registered_name(repo: Repo, model: str) -> str:
    """Name of a model in MLflow, where several projects may meet."""
    return f"{repo.project}.{model}"


def _move(repo: Repo, client: Any, model: str, version: Version) -> Champion:
    """Set alias and pointer; the challenger that becomes champion is no longer challenger."""
    name = registered_name(repo, model)
    client.set_registered_model_alias(name, CHAMPION, version.version)
    if CHALLENGER in version.aliases:
        client.delete_registered_model_alias(name, CHALLENGER)
    champion = Champion(model=model, version=version.version, contract_hash=version.contract_hash)
    publish_champion(repo.state_dir, champion)
    return champion


def _log_run(repo: Repo, client: Any, name: str, trained: Trained) -> str:
    """Record one training and give the run's id."""
    from mlflow.entities import Metric, Param

    contract, data = trained.contract, trained.contract.data
    run_id = str(client.create_run(_experiment(repo, client, name)).info.run_id)
    is_whole = False
    try:
        params = {
            "start": data.start.isoformat(),
            "end": data.end.isoformat(),
            "known_until": data.known_until.isoformat(),
            "clock": data.clock,
            "rows": str(data.rows),
            "quarantined_rows": str(data.quarantined_rows),
            "repaired_rows": str(data.repaired_rows),
            "holdout_rows": str(trained.evaluation.rows.num_rows),
            "contract_hash": contract.contract_hash,
            "estimator": repr(trained.estimator)[:PARAM_LENGTH_MAX],
        }
        moment_ms = int(data.known_until.timestamp() * 1_000)
        client.log_batch(
            run_id,
            params=[Param(key, value) for key, value in params.items()],
            metrics=[
                Metric(f"holdout_{key}", value, moment_ms, 0)
                for key, value in trained.evaluation.metrics.items()
            ],
        )
        client.log_artifact(run_id, str(trained.folder / "contract.json"))
        is_whole = True
    finally:
        client.set_terminated(run_id, status="FINISHED" if is_whole else "FAILED")
    return run_id


def _experiment(repo: Repo, client: Any, name: str) -> str:
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    # A tracking server decides where artifacts go; a database alone would put them in the folder
    # from which the command was called.
    uri = settings().mlflow_uri
    artifacts = repo.state_dir.resolve() / "mlruns" / name
    location = artifacts.as_uri() if uri is None or uri.startswith("sqlite:") else None
    return str(client.create_experiment(name, artifact_location=location))


def _registered(client: Any, name: str) -> Any:
    """MLflow's record of a model; None before its first version."""
    found = client.search_registered_models(f"name = '{name}'")
    return found[0] if found else None


def _find(client: Any, name: str, model: str, version: str) -> Version:
    found = {item.version: item for item in _versions(client, name)}
    if version not in found:
        raise InputError(
            f"Model {model!r} has no version {version!r}: {did_you_mean(version, found)}"
        )
    return found[version]


def _versions(client: Any, name: str) -> list[Version]:
    """All versions, the newest first."""
    found = client.search_model_versions(f"name = '{name}'", max_results=VERSIONS_MAX)
    registered = _registered(client, name)
    aliases = {} if registered is None else registered.aliases
    return [
        Version(
            version=str(item.version),
            contract_hash=str(item.tags.get(HASH_TAG, "")),
            aliases=tuple(
                alias for alias, held in aliases.items() if str(held) == str(item.version)
            ),
        )
        for item in found
    ]


def _history(client: Any, name: str) -> list[str]:
    registered = _registered(client, name)
    text = "[]" if registered is None else registered.tags.get(HISTORY_TAG, "[]")
    return [str(version) for version in json.loads(text)]


def _write_history(client: Any, name: str, history: list[str]) -> None:
    client.set_registered_model_tag(name, HISTORY_TAG, json.dumps(history[-HISTORY_MAX:]))


@contextmanager
def _answering(repo: Repo) -> Iterator[Any]:
    """The client of this repo's MLflow; what it fails with is translated here."""
    uri = settings().mlflow_uri
    if uri is None:
        repo.state_dir.mkdir(parents=True, exist_ok=True)
        uri = f"sqlite:///{(repo.state_dir / 'mlflow.db').resolve()}"
    quiet_mlflow()
    with warnings.catch_warnings():
        # MLflow uses parts of its own dependencies that these call deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        from mlflow.exceptions import MlflowException

        try:
            yield _client(uri)
        except MlflowException as error:
            raise UnavailableError(
                f"MLflow at {_without_secrets(uri)}", str(error).splitlines()[0]
            ) from error


@cache
def _client(uri: str) -> Any:
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        # The first use of a database is reported migration by migration.
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _without_secrets(uri: str) -> str:
    parts = urlsplit(uri)
    return f"{parts.scheme}:" + (f"//{parts.hostname}" if parts.hostname else parts.path)
