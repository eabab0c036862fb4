"""The contract of a model: frozen and hashed by training, loaded by serving.

A :class:`ModelContract` lists the features of a model by name, order and type; their views and
definitions; the keys and request fields; and statistics of the training data. Responses, log
records and audits carry its hash. It is computed once, by training.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from typing import Final, Literal

from pydantic import Field

from tallystick.definitions.feature_view import Column, Frozen, ViewSpec, digest
from tallystick.errors import ContractError, Problem

REQUEST_TIME: Final = "request_time"
"""The column of request times, in entity rows, training sets, labels and the log."""
VIEW_FIELDS: Final = ("status", "event_time", "created_time", "write_time", "definition")
"""What answers and the log say of a view's row, beside its features and named like them."""

CONTRACT_VERSION = 1
"""Version of the contract's own format."""

FeatureKind = Literal["view", "on_demand"]
InputType = Literal["float64", "float32"]
Accepts = Literal["any", "nan", "finite"]
Library = Literal["numpy", "treelite"]


class FeatureSpec(Frozen):
    """One input of the model.

    Attributes:
        name: ``view__feature``, the name under which the model sees it.
        view: Feature view or on-demand view that brings it.
        feature: Its name in that view.
        dtype: Feast value type.
        kind: Stored in a view, or computed on demand.
    """

    name: str
    view: str
    feature: str
    dtype: str
    kind: FeatureKind


class ViewUse(Frozen):
    """A stored view as this model uses it.

    Attributes:
        spec: The view as it was defined when the model was trained.
        name: Name under which its features appear (its alias, or its own name).
        key_map: Key column of the view → entity key of the request, for every key.
        columns: Features that are read: those of the model and inputs of on-demand views.
    """

    spec: ViewSpec
    name: str
    key_map: dict[str, str]
    columns: tuple[str, ...]

    @property
    def request_keys(self) -> tuple[str, ...]:
        """The request's entity keys in the order of the view's key columns, if it has any."""
        return tuple(self.key_map[key] for key in self.spec.key_names if key in self.key_map)


class TransformSpec(Frozen):
    """An on-demand view as this model uses it.

    Attributes:
        name: The on-demand view's name.
        mode: ``python`` (dict of lists), ``python_singleton`` (dict of values) or ``pandas``.
        code_hash: Hash of its source text.
        inputs: Input name in the function → stored feature (``view__feature``) or request field.
        outputs: What it returns, with types.
    """

    name: str
    mode: Literal["python", "python_singleton", "pandas"]
    code_hash: str
    inputs: dict[str, str]
    outputs: tuple[Column, ...]


class LabelSpec(Frozen):
    """The label as it was declared."""

    column: str
    keys: tuple[str, ...]
    matures_after_us: int


class FeatureReference(Frozen):
    """What a feature looked like in training; what drift is measured against.

    Attributes:
        rows: Rows looked at.
        null_share: Share of nulls.
        edges: Bin edges of a number, ascending, outermost open; empty for text.
        categories: Values of a text column, most frequent first; empty for numbers.
        shares: Share of the non-null rows in each bin, or of each category and then of all others.
        mean: Mean of a number.
        std: Standard deviation of a number.
    """

    rows: int
    null_share: float
    edges: tuple[float, ...] = ()
    categories: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()
    mean: float | None = None
    std: float | None = None


class ViewReference(Frozen):
    """How fresh a view was in training.

    Attributes:
        absent_share: Share of the requests without a value.
        age_s_p50: Median age of a value at request time, in seconds; None without values.
        age_s_p99: 99th percentile of it; None without values, and for a view whose values never
            changed in training, since those only get older.
    """

    absent_share: float
    age_s_p50: float | None = None
    age_s_p99: float | None = None


class Reference(Frozen):
    """What the data looked like in training, and what the model scored on the holdout."""

    features: dict[str, FeatureReference]
    views: dict[str, ViewReference]
    prediction: FeatureReference
    label_rate: float
    metrics: dict[str, float] = Field(default_factory=dict)
    slice_values: dict[str, tuple[str, ...]] = Field(default_factory=dict)


class TrainingData(Frozen):
    """Which data the model was trained on.

    Attributes:
        start: First request time, included.
        end: Last request time, excluded.
        known_until: Labels known later than this were not used.
        rows: Rows trained on.
        quarantined_rows: Rows left out because incidents had touched them.
        repaired_rows: Rows that incidents had touched, kept with the values expected; those of the
            holdout count as well.
        clock: Visibility clock of the features.
        content_hash: Hash over the training rows.
    """

    start: datetime
    end: datetime
    known_until: datetime
    rows: int
    quarantined_rows: int
    clock: str
    content_hash: str
    repaired_rows: int = 0


class CompiledSpec(Frozen):
    """The compiled form of the model's trees, and what training found when it compared the forms.

    Attributes:
        library: Package that computes with it.
        version: Its version in training.
        input_type: Type to which the estimator rounds its inputs before it compares them.
        accepts: Numbers that the estimator takes: all, all but infinity, or neither that nor NaN.
        rows: Real rows on which the forms were compared.
        probes: Made-up rows on which they were compared: thresholds, their neighbours, NaN, edges.
        difference_max: Largest difference of a probability.
        tolerance: Largest difference that was allowed.
    """

    library: Library
    version: str
    input_type: InputType
    accepts: Accepts
    rows: int
    probes: int
    difference_max: float
    tolerance: float


class ModelInputs(Frozen):
    """What a request must carry, what is read for it, and what the model sees.

    Attributes:
        project: Feast project.
        model: Model name.
        entity_keys: Keys that a request must carry, with types.
        request_fields: Further fields that a request must carry, with types.
        features: Inputs of the model, in its order.
        views: Stored views that are read.
        transforms: On-demand views, in the order in which they are computed.
        frame: Whether the estimator takes a DataFrame with named columns rather than an array.
    """

    project: str
    model: str
    entity_keys: tuple[Column, ...]
    request_fields: tuple[Column, ...]
    features: tuple[FeatureSpec, ...]
    views: tuple[ViewUse, ...]
    transforms: tuple[TransformSpec, ...]
    frame: bool = False

    @cached_property
    def request_columns(self) -> tuple[Column, ...]:
        """What a request must carry: entity keys, then request fields."""
        return (*self.entity_keys, *self.request_fields)

    def label_key_columns(self, label_keys: Sequence[str]) -> tuple[Column, ...]:
        """The keys of a label, in their order, with their types."""
        columns = {column.name: column for column in self.request_columns}
        return tuple(columns[name] for name in label_keys)

    @cached_property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the model's inputs, in its order."""
        return tuple(feature.name for feature in self.features)

    @cached_property
    def stored_columns(self) -> dict[str, str]:
        """Stored feature (``view__feature``) → Feast value type, for every one that is read."""
        return {
            f"{use.name}__{column.name}": column.dtype
            for use in self.views
            for column in use.spec.columns
            if column.name in use.columns
        }

    @cached_property
    def value_columns(self) -> dict[str, str]:
        """Every feature value of a request, stored ones first, then computed ones, with types."""
        computed = {
            f"{transform.name}__{column.name}": column.dtype
            for transform in self.transforms
            for column in transform.outputs
        }
        return self.stored_columns | computed


class ModelContract(ModelInputs):
    """Everything on which the two halves of a model agree.

    Attributes:
        contract_version: Version of this format.
        label: The label.
        threshold: Probability from which a prediction counts as positive.
        slices: Columns by which evaluations are split.
        reference: What training saw.
        data: Which data it was.
        packages: Versions that shape a prediction.
        compiled: The compiled form that answers; None if the original estimator does.
    """

    contract_version: int = CONTRACT_VERSION
    label: LabelSpec
    threshold: float
    slices: tuple[str, ...]
    reference: Reference
    data: TrainingData
    packages: dict[str, str]
    compiled: CompiledSpec | None = None

    @property
    def is_observed(self) -> bool:
        """Whether it was made for an imported log, rather than frozen by a training."""
        return self.data.rows == 0

    @cached_property
    def contract_hash(self) -> str:
        """Thirty-two hexadecimal digits over the whole content."""
        return digest(self.canonical_json(), length=32)


def label_identity(label_keys: Sequence[str]) -> list[str]:
    """The columns by which a label finds its request: the label's keys and the request time."""
    return [*label_keys, REQUEST_TIME]


def check_same_inputs(ours: ModelInputs, theirs: ModelInputs, *, what: str) -> None:
    """Compare two descriptions of a model's inputs.

    Args:
        ours: The inputs on which the contract in force agrees.
        theirs: The inputs as the definitions are now.
        what: One sentence that says what failed if they differ.

    Raises:
        ContractError: They differ; every difference is listed.
    """
    expected, got = _compared(ours), _compared(theirs)
    problems = [
        Problem(f"{kind} {name}", mine.get(name, "absent"), got[kind].get(name, "absent"))
        for kind, mine in expected.items()
        for name in sorted(mine.keys() | got[kind].keys())
        if mine.get(name) != got[kind].get(name)
    ]
    if not problems and ours.feature_names != theirs.feature_names:
        problems = [
            Problem("feature order", ", ".join(ours.feature_names), ", ".join(theirs.feature_names))
        ]
    if problems:
        raise ContractError(
            what,
            problems,
            hint=f"Undo the change, or train again:  tally train {ours.model}",
        )


def _compared(inputs: ModelInputs) -> dict[str, dict[str, str]]:
    """What two descriptions must agree on: kind of part → name → what it is."""
    views, transforms = inputs.views, inputs.transforms
    return {
        "entity key": {key.name: key.dtype for key in inputs.entity_keys},
        "request field": {field.name: field.dtype for field in inputs.request_fields},
        "feature": {feature.name: feature.dtype for feature in inputs.features},
        "view": {use.name: f"definition {use.spec.definition_hash}" for use in views},
        "keys of view": {use.name: ", ".join(use.request_keys) for use in views if use.key_map},
        "on-demand view": {spec.name: f"code {spec.code_hash}" for spec in transforms},
    }
