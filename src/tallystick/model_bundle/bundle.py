"""The model bundle: contract, fitted estimator and frozen on-demand functions, as files.

::

    models/<model>/<contract hash>/contract.json  estimator.joblib  transforms.dill  manifest.json
                                   compiled.bin, if the contract says so
    models/<model>/champion.json

Training writes it and serving loads it. The manifest holds the checksum of every other file, and is
verified before anything is loaded. ``champion.json`` names the version that answers. It is replaced
atomically, and servers watch it: they need neither MLflow's registry nor Feast's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tallystick.definitions.contract import ModelContract
from tallystick.definitions.feature_view import Frozen
from tallystick.errors import DamagedError, Problem, StateError
from tallystick.point_in_time.on_demand import Transforms
from tallystick.storage.atomic_files import scratch_folder, sha256_of, write_text

_PARTS = ("contract.json", "estimator.joblib", "transforms.dill")
_COMPILED = "compiled.bin"


class Champion(Frozen):
    """The version of a model that answers requests.

    Attributes:
        model: Model name.
        version: Version in the model registry.
        contract_hash: Hash of its contract, which names its bundle.
    """

    model: str
    version: str
    contract_hash: str


@dataclass(frozen=True)
class Bundle:
    """A loaded model.

    Attributes:
        contract: Its contract.
        estimator: Its fitted estimator.
        transforms: Its on-demand functions.
        compiled: The compiled form of its estimator, if the contract has one.
    """

    contract: ModelContract
    estimator: Any
    transforms: Transforms
    compiled: bytes | None = None


def models_dir(state_dir: Path) -> Path:
    """Folder of all bundles."""
    return state_dir / "models"


def bundle_dir(state_dir: Path, model: str, contract_hash: str) -> Path:
    """Folder of one bundle."""
    return models_dir(state_dir) / model / contract_hash


def write_bundle(state_dir: Path, bundle: Bundle) -> Path:
    """Write a bundle, whole or not at all, and return its folder.

    Writing the same contract again replaces nothing: a bundle never changes.
    """
    import joblib

    assert (bundle.compiled is None) == (bundle.contract.compiled is None)
    target = bundle_dir(state_dir, bundle.contract.model, bundle.contract.contract_hash)
    if target.is_dir():
        return target
    with scratch_folder(target) as folder:
        (folder / "contract.json").write_text(bundle.contract.canonical_json(), encoding="utf-8")
        joblib.dump(bundle.estimator, folder / "estimator.joblib")
        (folder / "transforms.dill").write_bytes(bundle.transforms.to_bytes())
        if bundle.compiled is not None:
            (folder / _COMPILED).write_bytes(bundle.compiled)
        manifest = {part: sha256_of(folder / part) for part in _parts(bundle.contract)}
        write_text(folder / "manifest.json", json.dumps(manifest, indent=1))
        folder.rename(target)
    return target


def load_bundle(state_dir: Path, model: str, contract_hash: str) -> Bundle:
    """Load a bundle after verifying every file of it.

    Raises:
        StateError: There is no such bundle.
        DamagedError: A file is missing, or its checksum differs.
    """
    import joblib

    folder = bundle_dir(state_dir, model, contract_hash)
    contract = _verified(folder)
    if contract.contract_hash != contract_hash:
        raise DamagedError(
            f"{folder} does not hold the contract that its name says.",
            [Problem("contract hash", contract_hash, contract.contract_hash)],
        )
    return Bundle(
        contract=contract,
        estimator=joblib.load(folder / "estimator.joblib"),
        transforms=Transforms.from_bytes((folder / "transforms.dill").read_bytes()),
        compiled=None if contract.compiled is None else (folder / _COMPILED).read_bytes(),
    )


def load_transforms(state_dir: Path, model: str, contract_hash: str) -> Transforms:
    """Load only the on-demand functions of a bundle, after verifying all of it.

    Raises:
        StateError: There is no such bundle.
        DamagedError: A file is missing, or its checksum differs.
    """
    folder = bundle_dir(state_dir, model, contract_hash)
    _verified(folder)
    return Transforms.from_bytes((folder / "transforms.dill").read_bytes())


def read_contract(path: Path) -> ModelContract:
    """Read a contract from its file.

    Raises:
        DamagedError: The file is not a contract of this version.
    """
    try:
        return ModelContract.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise DamagedError(f"{path} is not a contract that this version can read.") from error


def read_champion(state_dir: Path, model: str) -> Champion:
    """Read which version of a model answers requests.

    Raises:
        StateError: The model has no champion yet.
        DamagedError: The pointer cannot be read.
    """
    path = _pointer(state_dir, model)
    try:
        return Champion.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StateError(
            f"Model {model!r} has no champion.", hint=f"Train one:  tally train {model} --promote"
        ) from error
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise DamagedError(
            f"{path} cannot be read: it should name the champion.",
            hint=f"Write it again:  tally promote {model} --version N",
        ) from error


def publish_champion(state_dir: Path, champion: Champion) -> None:
    """Make a bundle the champion. Running servers load it by themselves.

    Raises:
        StateError: There is no such bundle.
        DamagedError: The bundle is damaged. The champion stays as it is.
    """
    _verified(bundle_dir(state_dir, champion.model, champion.contract_hash))
    write_text(_pointer(state_dir, champion.model), champion.model_dump_json(indent=1))


def champions(state_dir: Path) -> list[str]:
    """Names of the models that have a champion, in order."""
    return sorted(path.parent.name for path in models_dir(state_dir).glob("*/champion.json"))


def _pointer(state_dir: Path, model: str) -> Path:
    return models_dir(state_dir) / model / "champion.json"


def _parts(contract: ModelContract) -> tuple[str, ...]:
    """Files that the manifest covers."""
    return _PARTS if contract.compiled is None else (*_PARTS, _COMPILED)


def _verified(folder: Path) -> ModelContract:
    """The contract of a bundle, after comparing every file with its checksum.

    Raises:
        StateError: There is no such bundle.
        DamagedError: A file is missing, or its checksum differs.
    """
    if not folder.is_dir():
        raise StateError(f"There is no model bundle at {folder}.")
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        listed = (*_PARTS, _COMPILED) if _COMPILED in manifest else _PARTS
        expected = {part: str(manifest[part]) for part in listed}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{folder / 'manifest.json'} cannot be read.") from error
    problems = []
    for part, checksum in expected.items():
        path = folder / part
        got = sha256_of(path) if path.is_file() else "no file"
        if got != checksum:
            problems.append(Problem(str(path), f"SHA-256 {checksum[:12]}…", f"{got[:12]}…"))
    if not problems:
        contract = read_contract(folder / "contract.json")
        if _parts(contract) == listed:
            return contract
        problems = [
            Problem(str(folder / "manifest.json"), ", ".join(_parts(contract)), ", ".join(listed))
        ]
    raise DamagedError(
        "The files of a model bundle are damaged; it is not loaded.",
        problems,
        hint="Restore the files, train again, or go back:  tally rollback MODEL",
    )
