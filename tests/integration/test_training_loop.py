"""Training, registry and retraining on real files and a real MLflow database."""

from __future__ import annotations

import dataclasses
import json
import shutil
from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

import looks
from tallystick.definitions.feature_repo import open_repo
from tallystick.definitions.model import Gate
from tallystick.errors import (
    ContractError,
    DamagedError,
    DataError,
    DefinitionError,
    InputError,
    StateError,
)
from tallystick.model_bundle.bundle import (
    bundle_dir,
    load_bundle,
    publish_champion,
    read_champion,
    write_bundle,
)
from tallystick.model_bundle.compiled.scorer import Scorer
from tallystick.model_bundle.model_matrix import feature_matrix
from tallystick.point_in_time.rule import VisibilityClock
from tallystick.records.causes import Cause
from tallystick.records.record_store import (
    AffectedKeys,
    Decision,
    Incident,
    load_records,
    save_record,
)
from tallystick_training import model_registry, train_command
from tallystick_training.evaluation import predictions_of
from tallystick_training.retrain import retrain
from tallystick_training.retraining_policy import judge
from tallystick_training.row_selection import RowSelection
from tallystick_training.train import train
from tallystick_training.training_set import build_dataset
from tiny_repo import END, MATURES_AFTER, MODEL, START, copy_tiny_repo

DAY = timedelta(days=1)
EARLY = START + 30 * DAY
MIDDLE = START + 40 * DAY


@pytest.fixture(scope="session")
def trained_tiny_repo(applied_tiny_repo, tmp_path_factory):
    """A repo with versions 1 and 2 registered, trained at two times; none is champion."""
    path = copy_tiny_repo(applied_tiny_repo, tmp_path_factory.mktemp("trained") / "repo")
    repo = open_repo(path)
    for end in (EARLY, MIDDLE):
        train_command.train(repo, MODEL, end=end)
    return path


@pytest.fixture
def repo(trained_tiny_repo, tmp_path):
    return open_repo(copy_tiny_repo(trained_tiny_repo, tmp_path / "repo"))


def learn(repo, model=None, **changes):
    window = {"start": START, "end": MIDDLE, "known_until": MIDDLE, **changes}
    return train(repo, model or repo.model(MODEL), RowSelection(**window))


def changed(repo, **changes):
    return repo.model(MODEL).model_copy(update=changes)


def standing(repo):
    """What MLflow and the champion's pointer say."""
    uri = f"sqlite:///{(repo.state_dir / 'mlflow.db').resolve()}"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    name = f"{repo.project}.{MODEL}"
    registered = client.get_registered_model(name)
    versions = client.search_model_versions(f"name = '{name}'")
    aliases = {alias: str(version) for alias, version in registered.aliases.items()}
    return SimpleNamespace(
        hashes={str(each.version): each.tags["contract_hash"] for each in versions},
        champion=aliases.get("champion"),
        challenger=aliases.get("challenger"),
        serving=read_champion(repo.state_dir, MODEL).version,
        history=json.loads(registered.tags["champions"]),
    )


def look_at(repo, *, at, **found):
    contract_hash = read_champion(repo.state_dir, MODEL).contract_hash
    return looks.report(at=at, contract_hash=contract_hash, model=MODEL, **found)


def test_the_holdout_is_the_end_of_the_mature_rows_and_is_not_learned(tiny_repo):
    trained = learn(tiny_repo)
    end = MIDDLE - MATURES_AFTER
    split = end - 7 * DAY
    rows = build_dataset(
        tiny_repo,
        tiny_repo.model(MODEL),
        RowSelection(start=START, end=MIDDLE, known_until=MIDDLE),
    ).table.to_pylist()
    assert trained.contract.data.rows == sum(row["request_time"] < split for row in rows)
    assert trained.estimator["standardscaler"].n_samples_seen_ == trained.contract.data.rows
    times = trained.evaluation.rows["request_time"].to_pylist()
    assert min(times) >= split
    assert len(times) == len(rows) - trained.contract.data.rows
    assert trained.evaluation.metrics["auc"] > 0.7
    assert trained.contract.reference.metrics == trained.evaluation.metrics


def test_the_reference_describes_the_rows_learned(tiny_repo):
    trained = learn(tiny_repo)
    data = build_dataset(
        tiny_repo,
        tiny_repo.model(MODEL),
        RowSelection(start=START, end=MIDDLE, known_until=MIDDLE),
    )
    count = trained.contract.data.rows
    reference = trained.contract.reference
    ages_s = []
    for row, time in zip(
        data.table[:count].to_pylist(), data.times[:count].to_pylist(), strict=True
    ):
        if time["item_stats__status"] == "PRESENT":
            ages_s.append((row["request_time"] - time["item_stats__event_time"]).total_seconds())
    view = reference.views["item_stats"]
    assert view.absent_share == pytest.approx(1 - len(ages_s) / count)
    assert view.absent_share > 0
    assert view.age_s_p50 == pytest.approx(np.quantile(ages_s, 0.5))
    assert view.age_s_p99 == pytest.approx(np.quantile(ages_s, 0.99))
    assert reference.features["item_stats__price"].null_share == pytest.approx(view.absent_share)
    assert set(reference.slice_values["shop"]) == {f"shop-{letter}" for letter in "abcdef"}
    labels = [row["label"] for row in data.table[:count].to_pylist()]
    assert reference.label_rate == pytest.approx(sum(labels) / count)


def test_training_again_on_the_same_data_gives_the_same_contract(tiny_repo):
    assert learn(tiny_repo).contract.contract_hash == learn(tiny_repo).contract.contract_hash


def test_a_bundle_predicts_what_training_predicted(tiny_repo):
    trained = learn(tiny_repo)
    bundle = load_bundle(tiny_repo.state_dir, MODEL, trained.contract.contract_hash)
    again = predictions_of(
        tiny_repo, bundle, trained.evaluation.rows, clock=VisibilityClock.KNOWLEDGE
    )
    assert np.array_equal(again, trained.evaluation.predictions)


def test_an_ensemble_of_trees_is_compiled_with_its_contract(tiny_repo):
    model = changed(tiny_repo, estimator=HistGradientBoostingClassifier(max_iter=20))
    trained = learn(tiny_repo, model)
    spec = trained.contract.compiled
    assert trained.compilation.reason == ""
    holdout = trained.evaluation.rows
    assert spec.rows == trained.contract.data.rows + holdout.num_rows
    assert 0 <= spec.difference_max <= 1e-14 < spec.tolerance == model.compile_tolerance
    bundle = load_bundle(tiny_repo.state_dir, MODEL, trained.contract.contract_hash)
    scorer = Scorer(bundle.contract, bundle.estimator, bundle.compiled)
    assert scorer.form == "compiled"
    columns = {name: holdout[name] for name in bundle.contract.feature_names}
    found = scorer.predict(feature_matrix(bundle.contract, columns))
    assert found == pytest.approx(trained.evaluation.predictions, abs=1e-14)
    assert learn(tiny_repo, model).contract.contract_hash == trained.contract.contract_hash


def test_what_is_not_compiled_has_no_form_in_its_contract(tiny_repo):
    trained = learn(tiny_repo)
    assert "Pipeline" in trained.compilation.reason
    assert trained.contract.compiled is None
    assert not (trained.folder / "compiled.bin").exists()
    never = changed(
        tiny_repo, estimator=HistGradientBoostingClassifier(max_iter=3), compile_tolerance=None
    )
    assert "compile_tolerance is None" in learn(tiny_repo, never).compilation.reason


def test_a_champion_that_cannot_be_compared_is_named(tiny_repo):
    trained = learn(tiny_repo)
    bundle = load_bundle(tiny_repo.state_dir, MODEL, trained.contract.contract_hash)
    rows = trained.evaluation.rows.drop_columns(["quantity"])
    with pytest.raises(ContractError, match="quantity"):
        predictions_of(tiny_repo, bundle, rows, clock=VisibilityClock.KNOWLEDGE)


@pytest.mark.parametrize(
    ("window", "says"),
    [
        ({"end": START + 8 * DAY}, "rows before the holdout"),
        ({"known_until": START}, "no mature label yet"),
    ],
)
def test_too_few_rows_are_refused(tiny_repo, window, says):
    with pytest.raises(DataError, match=says):
        learn(tiny_repo, **window)
    assert not (tiny_repo.state_dir / "models").exists()


def test_one_class_only_is_refused(tiny_repo):
    path = tiny_repo.path / "data" / "labels.parquet"
    table = pq.read_table(path)
    ones = [1] * table.num_rows
    pq.write_table(
        table.set_column(table.schema.get_field_index("returned"), "returned", [ones]), path
    )
    with pytest.raises(DataError, match="only 1"):
        learn(tiny_repo)


def test_an_estimator_without_probabilities_is_refused(tiny_repo):
    with pytest.raises(DefinitionError, match="predict_proba"):
        learn(tiny_repo, changed(tiny_repo, estimator=LinearSVC()))


def test_an_estimator_that_takes_no_null_is_refused_with_a_hint(tiny_repo):
    with pytest.raises(DefinitionError, match="imputer"):
        learn(tiny_repo, changed(tiny_repo, estimator=LogisticRegression()))


def test_registering_again_gives_the_same_version(repo):
    first = model_registry.register(repo, learn(repo))
    assert first.version == "3"
    assert model_registry.register(repo, learn(repo)) == first
    model_registry.promote(repo, MODEL, "3")
    assert set(standing(repo).hashes) == {"1", "2", "3"}


def test_promoting_moves_alias_and_pointer(repo):
    with pytest.raises(StateError, match="no champion"):
        read_champion(repo.state_dir, MODEL)
    model_registry.mark_challenger(repo, MODEL, "1")
    for version in ("1", "2", "2"):
        train_command.promote(repo, MODEL, version=version)
    found = standing(repo)
    assert (found.champion, found.serving, found.challenger) == ("2", "2", None)
    assert found.history == ["1", "2"]
    champion = read_champion(repo.state_dir, MODEL)
    assert champion.contract_hash == standing(repo).hashes["2"]


def test_rolling_back_gives_the_champion_before(repo):
    for version in ("1", "2", "1"):
        model_registry.promote(repo, MODEL, version)
    assert "Version 2" in str(train_command.rollback(repo, MODEL))
    assert model_registry.rollback(repo, MODEL).version == "1"
    assert standing(repo).champion == standing(repo).serving == "1"
    with pytest.raises(StateError, match="no champion before"):
        model_registry.rollback(repo, MODEL)


def crash(*_):
    raise KeyboardInterrupt


def test_a_crash_between_alias_and_pointer_is_mended_by_running_again(repo, monkeypatch):
    model_registry.promote(repo, MODEL, "1")
    with monkeypatch.context() as patch:
        patch.setattr(model_registry, "publish_champion", crash)
        with pytest.raises(KeyboardInterrupt):
            model_registry.promote(repo, MODEL, "2")
    torn = standing(repo)
    assert (torn.champion, torn.serving) == ("2", "1")
    model_registry.promote(repo, MODEL, "2")
    mended = standing(repo)
    assert (mended.champion, mended.serving, mended.history) == ("2", "2", ["1", "2"])


def test_a_rollback_that_crashed_is_finished_not_repeated(repo, monkeypatch):
    for version in ("2", "1", "2"):
        model_registry.promote(repo, MODEL, version)
    with monkeypatch.context() as patch:
        patch.setattr(model_registry, "publish_champion", crash)
        with pytest.raises(KeyboardInterrupt):
            model_registry.rollback(repo, MODEL)
    assert model_registry.rollback(repo, MODEL).version == "1"
    assert standing(repo).history == ["2", "1"]


def test_a_damaged_bundle_is_not_promoted(repo):
    model_registry.promote(repo, MODEL, "1")
    folder = bundle_dir(repo.state_dir, MODEL, standing(repo).hashes["2"])
    with (folder / "estimator.joblib").open("ab") as file:
        file.write(b"x")
    with pytest.raises(DamagedError):
        model_registry.promote(repo, MODEL, "2")
    shutil.rmtree(folder)
    with pytest.raises(StateError):
        model_registry.promote(repo, MODEL, "2")
    found = standing(repo)
    assert (found.champion, found.serving, found.history) == ("1", "1", ["1"])


def test_an_unknown_version_or_model_is_refused(repo):
    with pytest.raises(InputError, match="no version '9'"):
        model_registry.promote(repo, MODEL, "9")
    with pytest.raises(InputError, match="did you mean demo_model"):
        train_command.promote(repo, "demo_modle", version="1")


def test_a_retraining_that_passes_its_gates_is_promoted_and_recorded(repo):
    model_registry.promote(repo, MODEL, "1")
    incident = looks.incident(at=MIDDLE, is_open=False, requests=9, model=MODEL)
    save_record(repo.state_dir, incident, model=MODEL, name="one")
    model = changed(repo, gates=(Gate(metric="log_loss", max_regression=0.1, per_slice=True),))
    look = look_at(repo, at=END, gain=0.01)
    decision = retrain(repo, model, look, at=END, repair=False)
    assert (decision.outcome, decision.challenger, decision.promoted) == ("retrain", "3", True)
    assert decision.gates
    assert all(result.champion is not None for result in decision.gates)
    remaining = pq.read_table(repo.path / "data" / "requests.parquet")["event_time"].to_pylist()
    quarantined = sum(incident.start <= at <= incident.end for at in remaining)
    assert decision.quarantined_rows == quarantined > 0
    assert load_records(repo.state_dir, Decision, model=MODEL) == [decision]
    assert read_champion(repo.state_dir, MODEL).version == "3"
    assert judge(decision.inputs)[0] == "retrain"
    assert load_records(repo.state_dir, Incident, model=MODEL) == [incident]
    # Asked again for the same time: the same decision, and nothing more is done.
    assert retrain(repo, model, look, at=END, repair=False) == decision


def closed(*, cause, keys=None, **changes):
    found = looks.incident(at=MIDDLE, is_open=False, requests=9, model=MODEL)
    return found.model_copy(update={"cause": Cause(cause), "keys": keys, **changes})


SHOP = AffectedKeys(names=("shop",), values=(("shop-c",),), first=("shop-c",), last=("shop-c",))


def test_training_repairs_what_it_can_and_says_so(repo):
    plain = learn(repo)
    found = [closed(cause="entity_missing", keys=SHOP, start=START)]
    left_out = learn(repo, incidents=found)
    repaired = learn(repo, incidents=found, repair=True)
    numbers = repaired.contract.data
    assert numbers.repaired_rows == repaired.counts.repaired > 50
    assert (numbers.quarantined_rows, left_out.contract.data.repaired_rows) == (0, 0)
    assert left_out.counts.quarantined >= numbers.repaired_rows
    # The same rows, and other words about them.
    assert numbers.content_hash == plain.contract.data.content_hash
    assert repaired.contract.contract_hash != plain.contract.contract_hash
    # Where nothing was to be repaired it is the contract of old.
    assert learn(repo, repair=True).contract == plain.contract
    for name, incident in enumerate((*found, closed(cause="unexplained"))):
        save_record(repo.state_dir, incident, model=MODEL, name=str(name))
    text = str(train_command.train(repo, MODEL, end=MIDDLE, repair=True))
    both = learn(repo, incidents=[*found, closed(cause="unexplained")], repair=True)
    assert f"left out: {both.counts.quarantined:,} quarantined" in text
    assert f"; repaired: {both.counts.repaired:,}\n" in text


def test_a_retraining_repairs_if_requested_and_records_it(repo):
    model_registry.promote(repo, MODEL, "1")
    incident = closed(cause="materialization_lag", keys=SHOP, start=START)
    save_record(repo.state_dir, incident, model=MODEL, name="one")
    model = changed(repo, gates=(Gate(metric="auc", limit=0.999),))
    look = look_at(repo, at=END, gain=0.01)
    decision = retrain(repo, model, look, at=END, repair=True)
    assert (decision.outcome, decision.quarantined_rows) == ("retrain", 0)
    assert decision.repaired_rows > 50
    assert load_records(repo.state_dir, Decision, model=MODEL) == [decision]
    numbers = f"touched 0 were left out, {decision.repaired_rows} repaired\n"
    assert numbers in str(train_command.Decided(decision))
    later = END + 9 * DAY
    without = retrain(repo, model, look_at(repo, at=later, gain=0.01), at=later, repair=False)
    assert (without.outcome, without.repaired_rows) == ("retrain", 0)
    assert without.quarantined_rows >= decision.repaired_rows


def test_nothing_is_repaired_for_a_challenger_of_what_was_served(repo):
    model_registry.promote(repo, MODEL, "1")
    champion = read_champion(repo.state_dir, MODEL)
    bundle = load_bundle(repo.state_dir, MODEL, champion.contract_hash)
    data = bundle.contract.data.model_copy(update={"clock": "served"})
    content = bundle.contract.model_dump() | {"data": data.model_dump()}
    served = dataclasses.replace(bundle, contract=type(bundle.contract).model_validate(content))
    write_bundle(repo.state_dir, served)
    contract_hash = served.contract.contract_hash
    publish_champion(repo.state_dir, champion.model_copy(update={"contract_hash": contract_hash}))
    look = look_at(repo, at=END, gain=0.01)
    with pytest.raises(InputError, match="retrain without --repair"):
        retrain(repo, repo.model(MODEL), look, at=END, repair=True)
    assert load_records(repo.state_dir, Decision, model=MODEL) == []


def test_a_crash_between_promotion_and_its_record_is_mended_by_running_again(repo, monkeypatch):
    model_registry.promote(repo, MODEL, "1")
    model = changed(repo, gates=(Gate(metric="log_loss", max_regression=0.1),))
    look = look_at(repo, at=END, gain=0.01)
    promote = model_registry.promote

    def promote_and_crash(*arguments):
        promote(*arguments)
        crash()

    with monkeypatch.context() as patch:
        patch.setattr(model_registry, "promote", promote_and_crash)
        with pytest.raises(KeyboardInterrupt):
            retrain(repo, model, look, at=END, repair=False)
    (torn,) = load_records(repo.state_dir, Decision, model=MODEL)
    assert (torn.challenger, torn.promoted) == ("3", False)
    assert read_champion(repo.state_dir, MODEL).version == "3"
    mended = retrain(repo, model, look, at=END, repair=False)
    assert mended == torn.model_copy(update={"promoted": True})
    assert load_records(repo.state_dir, Decision, model=MODEL) == [mended]


def test_a_challenger_is_trained_under_the_clock_of_the_champion(repo):
    train_command.train(repo, MODEL, end=MIDDLE, clock="event", promote=True)
    model = changed(repo, gates=())
    decision = retrain(repo, model, look_at(repo, at=END, gain=0.01), at=END, repair=False)
    assert decision.promoted
    champion = read_champion(repo.state_dir, MODEL)
    contract = load_bundle(repo.state_dir, MODEL, champion.contract_hash).contract
    assert (contract.data.clock, contract.data.known_until) == ("event", END)


def test_a_challenger_that_fails_a_gate_stays_a_challenger(repo):
    model_registry.promote(repo, MODEL, "1")
    model = changed(repo, gates=(Gate(metric="auc", limit=0.999),))
    decision = retrain(repo, model, look_at(repo, at=END, gain=0.01), at=END, repair=False)
    assert (decision.outcome, decision.promoted) == ("retrain", False)
    assert "auc at least 0.999 (all)" in decision.reason
    found = standing(repo)
    assert (found.champion, found.serving, found.challenger) == ("1", "1", "3")


def test_an_open_incident_is_not_trained_away(repo):
    model_registry.promote(repo, MODEL, "1")
    incident = looks.incident(at=END, is_open=True, requests=9, model=MODEL)
    look = look_at(repo, at=END, gain=0.01, incidents=[incident])
    decision = retrain(repo, repo.model(MODEL), look, at=END, force=True, repair=False)
    assert (decision.outcome, decision.challenger) == ("refuse", None)
    assert load_records(repo.state_dir, Decision, model=MODEL) == [decision]


def test_a_challenger_that_cannot_be_trained_is_a_refusal_on_record(repo):
    model_registry.promote(repo, MODEL, "1")
    terms = repo.model(MODEL).retraining.model_copy(update={"window": DAY})
    look = look_at(repo, at=END, gain=0.01)
    decision = retrain(repo, changed(repo, retraining=terms), look, at=END, repair=False)
    assert decision.outcome == "refuse"
    assert "no challenger could be trained" in decision.reason


def test_the_commands_say_what_they_did(repo, tmp_path):
    written = train_command.dataset(repo, MODEL, out=tmp_path / "set.parquet", end=MIDDLE)
    assert pq.read_table(written.path).num_rows == written.counts.rows
    assert f"Wrote {written.counts.rows:,} rows" in str(written)
    trained = train_command.train(repo, MODEL, end=MIDDLE, promote=True)
    assert trained.version == "2"
    assert "It is the champion." in str(trained)
    assert "The original estimator answers requests: Pipeline is not one of" in str(trained)
    with pytest.raises(StateError, match="tally monitor demo_model"):
        train_command.retrain(repo, MODEL, at=END)
    look = look_at(repo, at=END)
    save_record(repo.state_dir, look, model=MODEL, name="look")
    assert str(train_command.retrain(repo, MODEL, at=END)).startswith("nothing: ")


def test_the_command_says_that_the_compiled_form_answers(repo, monkeypatch):
    model = changed(repo, estimator=HistGradientBoostingClassifier(max_iter=5))
    monkeypatch.setattr(type(repo), "model", lambda *_: model)
    text = str(train_command.train(repo, MODEL, end=MIDDLE))
    assert f"Its compiled form (numpy {np.__version__}) answers requests" in text
    assert "(allowed: 1e-09)" in text
