from __future__ import annotations

import hashlib

import pytest
from pydantic import ValidationError

from contracts import small_contract
from tallystick.definitions.contract import CompiledSpec, ModelContract, check_same_inputs
from tallystick.definitions.feature_view import Column
from tallystick.errors import ContractError

# The canonical text of the contract by ``small_contract``: a change of the format shows here.
WRITTEN = (
    '{"compiled":null,"contract_version":1,"data":{"clock":"knowledge","content_hash":"0",'
    '"end":"2013-03-01T00:00:00Z","known_until":"2013-03-01T00:00:00Z","quarantined_rows":0,'
    '"repaired_rows":0,"rows":10,"start":"2013-01-01T00:00:00Z"},"entity_keys":[{"dtype":"INT64",'
    '"name":"driver"}],"features":[{"dtype":"INT64","feature":"trips","kind":"view",'
    '"name":"stats__trips","view":"stats"},{"dtype":"FLOAT","feature":"rate","kind":"view",'
    '"name":"stats__rate","view":"stats"}],"frame":false,"label":{"column":"y",'
    '"keys":["driver"],"matures_after_us":3600000000},"model":"demo_model","packages":{},'
    '"project":"demo","reference":{"features":{},"label_rate":0.5,"metrics":{},'
    '"prediction":{"categories":[],"edges":[],"mean":null,"null_share":0.0,"rows":0,'
    '"shares":[],"std":null},"slice_values":{},"views":{}},'
    '"request_fields":[{"dtype":"DOUBLE","name":"amount"}],"slices":[],"threshold":0.5,'
    '"transforms":[],"views":[{"columns":["trips","rate"],"key_map":{"driver":"driver"},'
    '"name":"stats","spec":{"columns":[{"dtype":"INT64","name":"trips"},{"dtype":"FLOAT",'
    '"name":"rate"}],"created_column":"created","event_column":"event_time",'
    '"field_mapping":{},"join_keys":[{"dtype":"INT64","name":"driver"}],"name":"stats",'
    '"ttl_us":3600000000}}]}'
)
FORM = CompiledSpec(
    library="treelite",
    version="4.8.1",
    input_type="float64",
    accepts="any",
    rows=10,
    probes=20,
    difference_max=3e-16,
    tolerance=1e-9,
)


def changed_view(**changes):
    contract = small_contract()
    use = contract.views[0]
    spec = use.spec.model_copy(update=changes)
    return small_contract(views=(use.model_copy(update={"spec": spec}),))


def test_the_hash_is_of_the_content_and_survives_the_file():
    contract = small_contract()
    again = ModelContract.model_validate_json(contract.canonical_json())
    assert again == contract
    assert again.contract_hash == contract.contract_hash == small_contract().contract_hash


def test_a_copy_computes_its_columns_and_hashes_itself():
    contract = small_contract()
    before = (contract.contract_hash, [column.name for column in contract.request_columns])
    fields = (*contract.request_fields, Column(name="town", dtype="STRING"))
    copied = contract.model_copy(update={"request_fields": fields})
    assert [column.name for column in copied.request_columns] == [*before[1], "town"]
    assert copied.contract_hash != before[0]
    assert contract.contract_hash == before[0]


def test_the_written_form_of_a_contract_and_its_hash():
    contract = ModelContract.model_validate_json(WRITTEN)
    assert contract == small_contract()
    assert contract.canonical_json() == WRITTEN
    assert contract.contract_hash == hashlib.sha256(WRITTEN.encode()).hexdigest()[:32]


def test_repaired_rows_are_part_of_the_content():
    data = small_contract().data.model_copy(update={"repaired_rows": 3})
    contract = small_contract(data=data)
    again = ModelContract.model_validate_json(contract.canonical_json())
    assert again.data.repaired_rows == 3
    assert again.contract_hash == contract.contract_hash != small_contract().contract_hash


def test_a_compiled_form_is_part_of_the_content():
    contract = small_contract(compiled=FORM)
    again = ModelContract.model_validate_json(contract.canonical_json())
    assert again.compiled == FORM
    assert again.contract_hash == contract.contract_hash != small_contract().contract_hash
    other = FORM.model_copy(update={"tolerance": 1e-6})
    assert small_contract(compiled=other).contract_hash != contract.contract_hash


@pytest.mark.parametrize("change", [{"threshold": 0.4}, {"slices": ("driver",)}, {"project": "x"}])
def test_every_change_changes_the_hash(change):
    assert small_contract(**change).contract_hash != small_contract().contract_hash


def test_a_contract_cannot_be_changed():
    with pytest.raises(ValidationError):
        small_contract().threshold = 0.1


def test_where_a_source_lies_is_no_part_of_a_definition_but_its_ttl_is():
    before = small_contract().views[0].spec
    assert changed_view(ttl_us=1).views[0].spec.definition_hash != before.definition_hash


def test_equal_inputs_pass():
    check_same_inputs(small_contract(), small_contract(threshold=0.3), what="fits")


def test_every_difference_is_listed_side_by_side():
    ours = small_contract()
    features = (ours.features[0].model_copy(update={"dtype": "DOUBLE"}),)
    theirs = changed_view(ttl_us=1).model_copy(update={"features": features, "request_fields": ()})
    with pytest.raises(ContractError) as caught:
        check_same_inputs(ours, theirs, what="The champion no longer fits.")
    assert str(caught.value).splitlines() == [
        "The champion no longer fits.",
        "  ✗ request field amount: expected DOUBLE, got absent",
        "  ✗ feature stats__rate: expected FLOAT, got absent",
        "  ✗ feature stats__trips: expected INT64, got DOUBLE",
        (
            f"  ✗ view stats: expected definition {ours.views[0].spec.definition_hash}, "
            f"got definition {theirs.views[0].spec.definition_hash}"
        ),
        "Undo the change, or train again:  tally train demo_model",
    ]


def test_the_order_of_features_is_part_of_the_agreement():
    ours = small_contract()
    with pytest.raises(ContractError, match="feature order"):
        check_same_inputs(ours, small_contract(features=ours.features[::-1]), what="no")


def test_a_view_that_is_read_by_other_keys_is_another_input():
    ours = small_contract()
    keys = (*ours.entity_keys, Column(name="other", dtype="INT64"))
    ours = small_contract(entity_keys=keys)
    use = ours.views[0].model_copy(update={"key_map": {"driver": "other"}})
    theirs = small_contract(entity_keys=keys, views=(use,))
    with pytest.raises(ContractError, match="keys of view stats: expected driver, got other"):
        check_same_inputs(ours, theirs, what="The champion no longer fits.")
