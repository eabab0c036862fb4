"""A Feast repo and the models declared in it: opened by path, applied, read from the registry."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tallystick.definitions.contract import ModelInputs
from tallystick.definitions.model import Model
from tallystick.definitions.model_inputs import model_inputs, stored_view
from tallystick.errors import (
    DamagedError,
    DefinitionError,
    InputError,
    StateError,
    did_you_mean,
)
from tallystick.settings import settings

if TYPE_CHECKING:
    from feast import FeatureService, FeatureStore, RepoConfig

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Repo:
    """A loaded repo.

    Attributes:
        path: Folder of ``feature_store.yaml``.
        models: Models by name.
        objects: All other objects that the files of the repo define.
        settings_file: Read in place of the repo's ``feature_store.yaml``. Relative paths in it and
            in the definitions still start at ``path``.
    """

    path: Path
    models: dict[str, Model]
    objects: tuple[Any, ...] = ()
    settings_file: Path | None = None

    @cached_property
    def store(self) -> FeatureStore:
        """Feast's feature store of this repo.

        Raises:
            DefinitionError: ``feature_store.yaml`` cannot be used.
        """
        from feast import FeatureStore
        from google.protobuf.message import DecodeError

        try:
            with self._usable_settings():
                store = FeatureStore(repo_path=str(self.path), config=self.config)
                store.refresh_registry()  # else it is read later, anywhere
        except DecodeError as error:
            raise DamagedError(
                f"The registry that {self._settings} names cannot be read.",
                hint="Restore it, or delete it and register again:  tally apply",
            ) from error
        return store

    @cached_property
    def config(self) -> RepoConfig:
        """The configuration in ``feature_store.yaml``; neither registry nor store is opened.

        Raises:
            DefinitionError: It cannot be used.
        """
        from feast.repo_config import load_repo_config
        from feast.utils import get_default_yaml_file_path

        with self._usable_settings():
            return load_repo_config(
                self.path, self.settings_file or get_default_yaml_file_path(self.path)
            )

    @property
    def _settings(self) -> Path:
        return self.settings_file or self.path / "feature_store.yaml"

    @contextmanager
    def _usable_settings(self) -> Iterator[None]:
        from feast.errors import FeastError
        from feast.repo_config import FeastConfigError
        from yaml import YAMLError  # type: ignore[import-untyped]

        try:
            yield
        # TypeError: the file is not a mapping. FeastConfigError does not derive from FeastError.
        except (
            *(FeastError, FeastConfigError, YAMLError),
            *(ValueError, TypeError, OSError),
        ) as error:
            raise DefinitionError(f"{self._settings} cannot be used: {error}") from error

    def declared(self, kind: type[Kind]) -> list[Kind]:
        """The objects of a type that the files of the repo define, each once."""
        found = {id(value): value for value in self.objects if isinstance(value, kind)}
        return list(found.values())

    @property
    def project(self) -> str:
        """Name of the Feast project."""
        return str(self.store.project)

    @property
    def state_dir(self) -> Path:
        """The folder with Tallystick's state of this repo."""
        return state_dir(self.path)

    def model(self, name: str) -> Model:
        """The model of that name.

        Raises:
            InputError: No such model is declared.
        """
        if name not in self.models:
            raise InputError(
                f"There is no model {name!r} in {self.path}: {did_you_mean(name, self.models)}"
            )
        return self.models[name]

    def inputs(self, model: Model) -> ModelInputs:
        """Read the inputs of a model from the registry, as they were applied.

        Raises:
            StateError: The repo has not been applied.
            DefinitionError: The definitions cannot serve a model; every reason is listed.
        """
        service = self.feature_service(model.features.name)
        return model_inputs(self.store, service, model=model)

    def service_inputs(self, service: FeatureService) -> ModelInputs:
        """Read the inputs of a feature service, with features of any type.

        Args:
            service: Of views that are in the registry; it need not be there itself.

        Raises:
            DefinitionError: The definitions contradict each other; every reason is listed.
        """
        return model_inputs(self.store, service)

    def feature_service(self, name: str) -> FeatureService:
        """A feature service as it was applied.

        Raises:
            StateError: There is no such service in the registry.
        """
        from feast.errors import FeastObjectNotFoundException

        try:
            return self.store.get_feature_service(name)
        except FeastObjectNotFoundException as error:
            raise StateError(
                f"Feature service {name!r} is not in the registry of {self.path}.",
                hint="Register the definitions first:  tally apply",
            ) from error

    def view_source(self, view: str) -> Any:
        """The Feast batch source of a stored view.

        Raises:
            StateError: No such view is applied.
        """
        from feast.errors import FeatureViewNotFoundException

        try:
            return stored_view(self.store, view).batch_source
        except FeatureViewNotFoundException as error:
            raise StateError(
                f"Feature view {view!r} is not among those applied in {self.path}.",
                hint="Put it back into the definitions, and apply them:  tally apply",
            ) from error


def state_dir(repo_path: Path) -> Path:
    """The state folder of the repo at ``repo_path``."""
    return settings().state_dir or repo_path / ".tallystick"


def require_repo(path: Path) -> None:
    """Refuse a folder that is not a Feast repo.

    Raises:
        InputError: It has no ``feature_store.yaml``.
    """
    if not (path / "feature_store.yaml").is_file():
        raise InputError(
            f"{path} is not a Feast repo: it has no feature_store.yaml.",
            hint="Name the folder that has one:  tally --repo DIR …",
        )


def open_repo(path: Path) -> Repo:
    """Import the definitions of a repo and collect its models.

    Args:
        path: Folder that holds ``feature_store.yaml``.

    Raises:
        InputError: There is no Feast repo at ``path``.
        DefinitionError: A file of the repo cannot be imported, or two models share a name.
    """
    path = path.resolve()
    settings()  # before anything changes the working folder, from which relative paths are taken
    require_repo(path)
    objects = tuple(
        value for module in _import_definitions(path) for value in vars(module).values()
    )
    models: dict[str, Model] = {}
    for value in objects:
        if isinstance(value, Model) and models.setdefault(value.name, value) is not value:
            raise DefinitionError(f"Two models in {path} are called {value.name!r}.")
    return Repo(path=path, models=models, objects=objects)


def apply(repo: Repo) -> None:
    """Register the repo's Feast definitions, as ``feast apply`` does.

    Raises:
        DefinitionError: Feast refuses a definition.
    """
    from feast.errors import FeastError
    from feast.repo_operations import apply_total

    with _inside(repo.path), warnings.catch_warnings():
        # Feast warns that its offline on-demand views are slow; here it does not compute them.
        warnings.filterwarnings("ignore", "On demand feature view is", RuntimeWarning)
        try:
            apply_total(repo.store.config, repo.path, skip_source_validation=False)
        except (FeastError, ValueError, TypeError, OSError) as error:
            raise DefinitionError(f"Feast cannot apply {repo.path}: {error}") from error
    repo.store.refresh_registry()


@contextmanager
def unchanged_registry(repo: Repo) -> Iterator[None]:
    """Remove the registry afterwards if there was none before.

    Feast writes an empty one when it opens a repo that was not applied yet, and takes the repo for
    applied from then on.
    """
    registry = repo.config.registry
    file = repo.path / registry.path
    folder = file.parent
    is_new = str(registry.registry_type) == "file" and "://" not in registry.path
    is_new = is_new and not file.exists()
    folder_is_new = not folder.exists()
    try:
        yield
    finally:
        if is_new:
            file.unlink(missing_ok=True)
            if folder_is_new and folder.exists():
                folder.rmdir()


@contextmanager
def _inside(path: Path) -> Iterator[None]:
    """Work in the repo's folder: Feast resolves some relative paths against it."""
    before = Path.cwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)


def _import_definitions(path: Path) -> list[Any]:
    """Import every file that ``feast apply`` would, as modules of the repo's own.

    Modules that were imported from another repo under the same name are dropped first, so that one
    process can open several repos.
    """
    from feast.repo_operations import get_repo_files, py_path_to_module

    folder = str(path)
    for name, module in sys.modules.copy().items():
        origin = getattr(module, "__tallystick_repo__", None)
        if origin is not None and origin != folder:
            del sys.modules[name]
            sys.path[:] = [entry for entry in sys.path if entry != origin]
    if folder not in sys.path:
        # Last, as Feast does: a file of the repo must not stand in for a library.
        sys.path.append(folder)
    modules = []
    with _inside(path), _path_removed_on_failure(folder):
        for file in sorted(get_repo_files(path)):
            before = set(sys.modules)
            try:
                modules.append(importlib.import_module(py_path_to_module(file)))
            except Exception as error:
                # Any exception: the file is the user's code.
                raise DefinitionError(
                    f"{file} cannot be imported: {type(error).__name__}: {error}"
                ) from error
            finally:
                for name in set(sys.modules) - before:
                    _mark(sys.modules[name], folder)
            _check_origin(modules[-1], file)
    return modules


@contextmanager
def _path_removed_on_failure(folder: str) -> Iterator[None]:
    """Remove the repo's path after a failure: another repo in this process would import from it."""
    try:
        yield
    except DefinitionError:
        sys.path[:] = [entry for entry in sys.path if entry != folder]
        raise


def _check_origin(module: Any, file: Path) -> None:
    """Refuse a file with the name of another module: its definitions would be ignored.

    Raises:
        DefinitionError: Python imported another module.
    """
    origin = getattr(module, "__file__", None)
    if origin is None or Path(origin).resolve() != file:
        raise DefinitionError(
            f"{file} is not read: Python finds another module {module.__name__!r} first.",
            hint="Rename the file.",
        )


def _mark(module: Any, folder: str) -> None:
    file = getattr(module, "__file__", None)
    if file and Path(file).is_relative_to(folder) and "site-packages" not in file:
        module.__tallystick_repo__ = folder
