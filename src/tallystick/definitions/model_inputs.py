"""What a model takes, read from Feast's registry: views, on-demand views, their code hashes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tallystick.definitions.contract import (
    VIEW_FIELDS,
    FeatureSpec,
    ModelInputs,
    TransformSpec,
    ViewUse,
)
from tallystick.definitions.feature_types import Role, feature_type, type_problems
from tallystick.definitions.feature_view import NO_ENTITY_KEY, Column, ViewSpec, columns_of, digest
from tallystick.definitions.model import Model
from tallystick.errors import DefinitionError, Problem

if TYPE_CHECKING:
    from feast import FeatureService, FeatureStore


def model_inputs(
    store: FeatureStore, service: FeatureService, *, model: Model | None = None
) -> ModelInputs:
    """Read what a feature service takes, and what it gives to a model.

    Args:
        store: Feast's store, whose registry holds the views of the service.
        service: The feature service; it may be unregistered itself.
        model: The model that the inputs are for. None accepts features of every type.

    Raises:
        DefinitionError: The definitions cannot serve the model. Every problem is listed.
    """
    return _InputsReader(store, model).read(service)


def stored_view(store: FeatureStore, name: str) -> Any:
    """A view with rows of its own: Feast's feature view, stream feature view or label view.

    Raises:
        FeatureViewNotFoundException: Feast's error, where the registry does not have the view.
    """
    return store.registry.get_any_feature_view(name, store.project)


def materialized_views(store: FeatureStore) -> list[Any]:
    """All views that have rows online and are materialized, as :func:`stored_view`.

    Feast leaves out the same: label views, which are pushed, and views that are disabled.
    """
    views = [*store.list_batch_feature_views(), *store.list_stream_feature_views()]
    return [stored_view(store, view.name) for view in views if view.online and view.enabled]


class _InputsReader:
    """Collects the inputs of one model, and every problem on the way."""

    def __init__(self, store: FeatureStore, model: Model | None) -> None:
        self._store = store
        self._model = model
        self._problems: list[Problem] = []
        self._entity_keys: dict[str, str] = {}
        self._request_fields: dict[str, str] = {}
        self._features: list[FeatureSpec] = []
        self._uses: dict[str, ViewUse] = {}
        self._transforms: list[TransformSpec] = []

    def read(self, service: FeatureService) -> ModelInputs:
        model = self._model
        what = f"Feature service {service.name!r}" if model is None else f"Model {model.name!r}"
        on_demand = {view.name for view in self._store.list_on_demand_feature_views()}
        for projection in service.feature_view_projections:
            if projection.name in on_demand:
                self._add_on_demand(projection)
            else:
                self._add_stored(projection, to_model=True)
        for name in self._entity_keys.keys() & self._request_fields.keys():
            # A key that is a request field as well is one value, so it has one type.
            self._declare(self._entity_keys, "entity key", name, self._request_fields[name])
        if model is not None:
            self._check_label(model)
        if self._problems:
            raise DefinitionError(f"{what} cannot be built from these definitions.", self._problems)
        return ModelInputs(
            project=str(self._store.project),
            model="" if model is None else model.name,
            entity_keys=_columns(self._entity_keys),
            request_fields=_columns(
                {
                    name: dtype
                    for name, dtype in self._request_fields.items()
                    if name not in self._entity_keys
                }
            ),
            features=tuple(self._features),
            views=tuple(self._uses.values()),
            transforms=tuple(self._transforms),
            frame=model is None or model.frame,
        )

    def _add_stored(self, projection: Any, *, to_model: bool) -> None:
        view = stored_view(self._store, projection.name)
        spec = ViewSpec.from_feast(view)
        name = projection.name_to_use()
        selected = [field.name for field in projection.features]
        key_map = {
            key: (projection.join_key_map or {}).get(key, key)
            for key in spec.key_names
            if key != NO_ENTITY_KEY
        }
        self._problems += [
            Problem(
                f"feature {name}__{taken}",
                f"a name that is none of {', '.join(VIEW_FIELDS)}",
                taken,
            )
            for taken in selected
            if taken in VIEW_FIELDS
        ]
        known = self._uses.get(name)
        if known is not None and (known.spec, known.key_map) != (spec, key_map):
            self._problems.append(
                Problem(f"view {name}", "one view, by one set of keys", "two; use with_name")
            )
        before = known.columns if known is not None else ()
        self._uses[name] = ViewUse(
            spec=spec,
            name=name,
            key_map=key_map,
            columns=tuple(column for column in spec.column_names if column in {*before, *selected}),
        )
        for key in spec.join_keys:
            if key.name != NO_ENTITY_KEY:
                self._declare(self._entity_keys, "entity key", key_map[key.name], key.dtype)
        if to_model:
            types = {column.name: column.dtype for column in spec.columns}
            for feature in selected:
                self._add_feature(name, feature, types[feature], kind="view")

    def _add_on_demand(self, projection: Any) -> None:
        view = self._store.get_on_demand_feature_view(projection.name)
        inputs: dict[str, str] = {}
        for source in view.source_feature_view_projections.values():
            self._add_stored(source, to_model=False)
            for field in source.features:
                full = f"{source.name_to_use()}__{field.name}"
                inputs[field.name] = full
                inputs[full] = full
            for key in self._uses[source.name_to_use()].key_map.values():
                inputs.setdefault(key, key)
        for source in view.source_request_sources.values():
            for field in columns_of(source.schema):
                self._declare(self._request_fields, "request field", field.name, field.dtype)
                inputs[field.name] = field.name
        mode = "python_singleton" if view.singleton else view.mode
        if mode not in {"python", "python_singleton", "pandas"}:
            self._problems.append(
                Problem(f"on-demand view {view.name}", 'mode="python" or "pandas"', repr(mode))
            )
            return
        outputs = columns_of(view.features)
        self._transforms.append(
            TransformSpec(
                name=projection.name_to_use(),
                mode=mode,
                code_hash=digest(view.feature_transformation.udf_string),
                inputs=inputs,
                outputs=outputs,
            )
        )
        types = {column.name: column.dtype for column in outputs}
        for field in projection.features:
            self._add_feature(
                projection.name_to_use(), field.name, types[field.name], kind="on_demand"
            )

    def _add_feature(self, view: str, feature: str, dtype: str, *, kind: Any) -> None:
        name = f"{view}__{feature}"
        model = self._model
        refused = type_problems("feature", {name: dtype})
        self._problems += refused
        own = None if refused or model is None else feature_type(dtype)
        usable = own is None or own.is_number or own.is_time
        if model is not None and not usable and not (model.frame and dtype == "STRING"):
            self._problems.append(
                Problem(
                    f"feature {name}",
                    "a number" if model.frame else "a number (or text, with frame=True)",
                    dtype,
                )
            )
        self._features.append(
            FeatureSpec(name=name, view=view, feature=feature, dtype=dtype, kind=kind)
        )

    def _declare(self, known: dict[str, str], kind: Role, name: str, dtype: str) -> None:
        if name not in known:
            self._problems += type_problems(kind, {name: dtype})
        if known.setdefault(name, dtype) != dtype:
            self._problems.append(Problem(f"{kind} {name}", known[name], f"{dtype} elsewhere"))

    def _check_label(self, model: Model) -> None:
        known = self._entity_keys.keys() | self._request_fields.keys()
        self._problems += [
            Problem(f"label key {key}", "an entity key or request field", "neither")
            for key in model.label.keys
            if key not in known
        ]
        computed = {feature.name for feature in self._features} | known
        self._problems += [
            Problem(f"slice {name}", f"one of {', '.join(sorted(computed))}", "unknown")
            for name in model.slices
            if name not in computed
        ]


def _columns(types: dict[str, str]) -> tuple[Column, ...]:
    return tuple(Column(name=name, dtype=dtype) for name, dtype in types.items())
