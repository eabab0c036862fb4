from __future__ import annotations

import hashlib
import json

import pytest
from sklearn.linear_model import LogisticRegression

from contracts import small_contract
from ensembles import compiled_bundle, fitted
from tallystick.errors import DamagedError, StateError
from tallystick.model_bundle.bundle import (
    Bundle,
    Champion,
    bundle_dir,
    champions,
    load_bundle,
    load_transforms,
    publish_champion,
    read_champion,
    write_bundle,
)
from tallystick.point_in_time.on_demand import Transforms

CONTRACT = small_contract()
POINTER = Champion(model=CONTRACT.model, version="1", contract_hash=CONTRACT.contract_hash)


@pytest.fixture
def state(tmp_path):
    estimator = LogisticRegression().fit([[0.0, 0.0], [1.0, 1.0]], [0, 1])
    write_bundle(tmp_path, Bundle(CONTRACT, estimator, Transforms({})))
    return tmp_path


def test_a_bundle_comes_back_as_it_was(state):
    bundle = load_bundle(state, CONTRACT.model, CONTRACT.contract_hash)
    assert bundle.contract == CONTRACT
    assert bundle.estimator.predict_proba([[1.0, 1.0]])[0, 1] > 0.5


@pytest.mark.parametrize("part", ["contract.json", "estimator.joblib", "transforms.dill"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_bundle_is_not_loaded(state, part, damage):
    path = bundle_dir(state, CONTRACT.model, CONTRACT.contract_hash) / part
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))
    elif damage == "truncate":
        path.write_bytes(bytes(data[:-1]))
    else:
        path.unlink()
    with pytest.raises(DamagedError, match=part):
        load_bundle(state, CONTRACT.model, CONTRACT.contract_hash)


def test_a_damaged_manifest_is_named(state):
    folder = bundle_dir(state, CONTRACT.model, CONTRACT.contract_hash)
    (folder / "manifest.json").write_text(json.dumps({"contract.json": "0"}))
    with pytest.raises(DamagedError, match=r"manifest\.json"):
        load_bundle(state, CONTRACT.model, CONTRACT.contract_hash)


def test_the_champion_is_what_was_published(state):
    assert champions(state) == []
    with pytest.raises(StateError, match="tally train demo_model --promote"):
        read_champion(state, CONTRACT.model)
    publish_champion(state, POINTER)
    assert read_champion(state, CONTRACT.model) == POINTER
    assert champions(state) == [CONTRACT.model]


def test_a_damaged_bundle_cannot_become_champion(state):
    publish_champion(state, POINTER)
    folder = bundle_dir(state, CONTRACT.model, CONTRACT.contract_hash)
    (folder / "estimator.joblib").write_bytes(b"")
    with pytest.raises(DamagedError):
        publish_champion(state, POINTER.model_copy(update={"version": "2"}))
    assert read_champion(state, CONTRACT.model).version == "1"


def test_a_damaged_pointer_says_how_to_mend_it(state):
    publish_champion(state, POINTER)
    (state / "models" / CONTRACT.model / "champion.json").write_text("{")
    with pytest.raises(DamagedError, match="tally promote demo_model"):
        read_champion(state, CONTRACT.model)


def test_a_bundle_that_is_not_there_is_a_clear_error(tmp_path):
    with pytest.raises(StateError, match="no model bundle"):
        load_bundle(tmp_path, "m", "0")


@pytest.fixture
def compiled_state(tmp_path):
    estimator, matrix = fitted("forest")
    bundle, _ = compiled_bundle(estimator, matrix)
    return tmp_path, bundle, write_bundle(tmp_path, bundle)


def test_a_compiled_form_comes_back_as_it_was(compiled_state):
    state, bundle, folder = compiled_state
    contract = bundle.contract
    assert (folder / "compiled.bin").read_bytes() == bundle.compiled
    loaded = load_bundle(state, contract.model, contract.contract_hash)
    assert loaded.compiled == bundle.compiled
    assert loaded.contract == contract


def test_a_bundle_without_a_compiled_form_has_no_file_of_it(state):
    folder = bundle_dir(state, CONTRACT.model, CONTRACT.contract_hash)
    names = {"contract.json", "estimator.joblib", "transforms.dill"}
    assert {path.name for path in folder.iterdir()} == {*names, "manifest.json"}
    assert set(json.loads((folder / "manifest.json").read_text())) == names
    assert load_bundle(state, CONTRACT.model, CONTRACT.contract_hash).compiled is None


def flip(folder):
    path = folder / "compiled.bin"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def take_away(folder):
    (folder / "compiled.bin").unlink()


def take_away_with_its_line(folder):
    take_away(folder)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["compiled.bin"]
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize("damage", [flip, take_away, take_away_with_its_line])
def test_a_compiled_form_that_is_not_what_was_written_is_refused(compiled_state, damage):
    state, bundle, folder = compiled_state
    model, contract_hash = bundle.contract.model, bundle.contract.contract_hash
    damage(folder)
    pointer = Champion(model=model, version="1", contract_hash=contract_hash)
    for use in (
        lambda: load_bundle(state, model, contract_hash),
        lambda: load_transforms(state, model, contract_hash),
        lambda: publish_champion(state, pointer),
    ):
        with pytest.raises(DamagedError, match=r"compiled\.bin"):
            use()


def test_a_form_that_the_contract_does_not_know_is_refused(state):
    folder = bundle_dir(state, CONTRACT.model, CONTRACT.contract_hash)
    (folder / "compiled.bin").write_bytes(b"x")
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    checksum = hashlib.sha256(b"x").hexdigest()
    path.write_text(json.dumps(manifest | {"compiled.bin": checksum}))
    with pytest.raises(DamagedError, match=r"expected .*transforms\.dill, got .*compiled\.bin"):
        load_bundle(state, CONTRACT.model, CONTRACT.contract_hash)
