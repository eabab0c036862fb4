"""What a parity check compares: stored views, on-demand views, feature services and models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

from feast import FeatureService
from feast.errors import FeastError

from tallystick.definitions.contract import ModelInputs, check_same_inputs
from tallystick.definitions.feature_repo import Repo
from tallystick.definitions.model_inputs import stored_view
from tallystick.errors import TallystickError
from tallystick.model_bundle.bundle import Bundle, champions, load_bundle, read_champion
from tallystick.model_bundle.compiled.scorer import Scorer
from tallystick.point_in_time.on_demand import Transforms
from tallystick_monitoring.parity_check.parity_report import SubjectReport

Kind = Literal["view", "on-demand view", "feature service", "model"]
PREDICTION: Final = "prediction"
"""Name of a model's probabilities among its values."""


@dataclass(frozen=True)
class Subject:
    """One thing that a parity check compares.

    Attributes:
        kind: What it is.
        name: Its name.
        inputs: Keys and request fields that it takes, stored features that are read, functions.
        transforms: The on-demand functions as they are.
        features: The features as Feast takes them, ``view:feature``. A feature service has none.
        compared: Names of the values to compare, ``view__feature``.
        bundle: The champion of a model.
    """

    kind: Kind
    name: str
    inputs: ModelInputs
    transforms: Transforms
    features: tuple[str, ...]
    compared: tuple[str, ...]
    bundle: Bundle | None = None

    @cached_property
    def parts(self) -> dict[str, tuple[str, str]]:
        """``view__feature`` → view, as it is called here, and feature."""
        stored = [(use.name, column) for use in self.inputs.views for column in use.columns]
        computed = [
            (spec.name, output.name) for spec in self.inputs.transforms for output in spec.outputs
        ]
        return {f"{view}__{feature}": (view, feature) for view, feature in (*stored, *computed)}

    @cached_property
    def scorer(self) -> Scorer | None:
        """What computes a model's probabilities."""
        if self.bundle is None:
            return None
        return Scorer(self.bundle.contract, self.bundle.estimator, self.bundle.compiled)

    @property
    def answered(self) -> tuple[str, ...]:
        """Names of the values that are answered, ``view__feature``: inputs as well."""
        if not self.features:
            return self.compared
        return tuple(feature.replace(":", "__") for feature in self.features)

    @property
    def needs_single_requests(self) -> bool:
        """Whether Feast must get one request at a time.

        It calls a singleton function for the first one only.
        """
        return any(spec.mode == "python_singleton" for spec in self.inputs.transforms)

    @property
    def by_full_names(self) -> bool:
        """Whether values must be requested with the names of their views.

        Only where short names are ambiguous: by full names Feast leaves out what on-demand views in
        python mode compute.
        """
        short = [self.parts[name][1] for name in self.answered]
        short += [key.name for key in self.inputs.request_columns]
        return len(set(short)) < len(short)

    @property
    def names(self) -> dict[str, str]:
        """Name in the answer → ``view__feature``."""
        if self.by_full_names:
            return {name: name for name in self.answered}
        return {self.parts[name][1]: name for name in self.answered}

    @property
    def computed(self) -> dict[str, tuple[str, ...]]:
        """Computed value → the stored features that it is computed from."""
        stored = self.inputs.stored_columns
        return {
            f"{spec.name}__{output.name}": tuple(
                dict.fromkeys(source for source in spec.inputs.values() if source in stored)
            )
            for spec in self.inputs.transforms
            for output in spec.outputs
        }


def subjects(repo: Repo) -> Iterator[Subject | SubjectReport]:
    """Everything that an applied repo serves, in that order of kinds.

    What cannot be compared is a report, which says why.
    """
    store = repo.store
    views = {view.name: view for view in store.list_batch_feature_views() if view.online}
    for name, view in sorted(views.items()):
        yield _read(repo, "view", name, FeatureService(name=name, features=[view]))
    for view in sorted(store.list_on_demand_feature_views(), key=lambda view: str(view.name)):
        yield _read(
            repo, "on-demand view", view.name, FeatureService(name=view.name, features=[view])
        )
    for service in sorted(store.list_feature_services(), key=lambda service: str(service.name)):
        yield _read(repo, "feature service", service.name, service)
    for model in champions(repo.state_dir):
        yield _read_model(repo, model)


def _read(repo: Repo, kind: Kind, name: str, service: Any) -> Subject | SubjectReport:
    try:
        inputs = repo.service_inputs(service)
        transforms = Transforms.from_repo(repo, inputs)
    except (TallystickError, FeastError) as error:
        return SubjectReport(kind=kind, name=name, failures=(str(error),))
    offline_only = [
        use.spec.name for use in inputs.views if not stored_view(repo.store, use.spec.name).online
    ]
    if offline_only:
        reason = f"not served, as view {', '.join(offline_only)} is not online (online=False)"
        return SubjectReport(kind=kind, name=name, notes=(reason,))
    features: tuple[str, ...] = ()
    if kind != "feature service":
        of_inputs = [
            f"{use.name}:{column}"
            for use in inputs.views
            for column in (use.columns if inputs.transforms else ())
        ]
        own = [f"{feature.view}:{feature.feature}" for feature in inputs.features]
        features = tuple(dict.fromkeys((*of_inputs, *own)))
    compared = tuple(feature.name for feature in inputs.features)
    return Subject(kind, name, inputs, transforms, features, compared)


def _read_model(repo: Repo, model: str) -> Subject | SubjectReport:
    try:
        champion = read_champion(repo.state_dir, model)
        bundle = load_bundle(repo.state_dir, model, champion.contract_hash)
        if model not in repo.models:
            reason = "not compared: it has a champion, and is not declared any more"
            return SubjectReport(kind="model", name=model, notes=(reason,))
        check_same_inputs(
            bundle.contract,
            repo.inputs(repo.models[model]),
            what=f"The champion of {model!r} no longer fits the repo's definitions.",
        )
    except TallystickError as error:
        return SubjectReport(kind="model", name=model, failures=(str(error),))
    contract = bundle.contract
    return Subject(
        "model", model, contract, bundle.transforms, (), tuple(contract.value_columns), bundle
    )
