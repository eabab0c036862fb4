"""The names that infra/ uses exist in the program."""

from __future__ import annotations

import json
import re
import shlex
import tempfile
from pathlib import Path

import pytest
import yaml
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from exposed_metrics import exposed
from tallystick.cli.commands import main
from tallystick.online_store.embedded_redis import server_program
from tallystick.point_in_time.feature_status import Status
from tallystick.server_process import ServerProcess
from tallystick.settings import Settings
from tallystick_serving.app import PATHS
from tallystick_serving.serve_command import DRAIN_S
from tallystick_serving.store_config import read_store_config

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
FILES = sorted(path for path in INFRA.rglob("*") if path.is_file())
YAMLS = [path for path in FILES if path.suffix in {".yaml", ".yml"}]
README = (INFRA / "README.md").read_text()
FEATURE_STORE = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)[0]
DASHBOARD = json.loads((INFRA / "grafana" / "dashboard.json").read_text())
ALERTS = yaml.safe_load((INFRA / "prometheus" / "alerts.yml").read_text())
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
EXPRESSIONS = {f"alert {rule['alert']}": rule["expr"] for rule in RULES} | {
    f"panel {panel['title']} {target['refId']}": target["expr"]
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
}
PROMETHEUS_LABELS = {"job", "instance"}
ROUTES = PATHS
COMPOSE = yaml.safe_load((INFRA / "compose.yaml").read_text())
OBJECTS = [
    item
    for path in sorted((INFRA / "kubernetes").glob("*.yaml"))
    for item in yaml.safe_load_all(path.read_text())
]
DOCKERFILE = (INFRA / "Dockerfile").read_text()


def pods() -> dict[str, dict]:
    found = {}
    for item in OBJECTS:
        if item["kind"] in {"Deployment", "CronJob"}:
            spec = item["spec"]
            job = spec["jobTemplate"]["spec"] if item["kind"] == "CronJob" else spec
            found[item["metadata"]["name"]] = job["template"]["spec"]
    return found


PODS = pods()
CONTAINERS = {
    f"{pod} {container['name']}": container
    for pod, spec in PODS.items()
    for container in [*spec.get("initContainers", []), *spec["containers"]]
}


def labels_of_samples() -> dict[str, set[str]]:
    """Sample names of /metrics, each with its labels."""
    samples: dict[str, set[str]] = {}
    for family in exposed().registry.collect():
        for sample in family.samples:
            samples.setdefault(sample.name, set()).update(sample.labels)
    return samples


EXPOSED = labels_of_samples()


def commands() -> dict[str, list[str]]:
    """Every call of ``tally`` in infra/, by where it stands."""
    found = {name: container["args"] for name, container in CONTAINERS.items()}
    for number, text in enumerate(re.findall(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)):
        found[f"Dockerfile {number}"] = json.loads(text)
    for path in FILES:
        text = path.read_text()
        calls = re.findall(r"`tally ([^`]+)`|\btally ((?:[a-z]+)(?: [A-Z]+| --[a-z-]+)*)", text)
        calls += [("", call) for call in re.findall(r"run --rm jobs ([^#\n]+)", text)]
        calls += [("", call) for call in re.findall(r"`jobs ([^`]+)`", text)]
        for number, call in enumerate(calls):
            found[f"{path.name} {number}"] = shlex.split(call[0] or call[1])
    return found


COMMANDS = commands()


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.relative_to(INFRA).as_posix())
def test_yaml_is_read(path):
    assert all(isinstance(item, dict) for item in yaml.safe_load_all(path.read_text()))


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_metrics_are_exposed_with_the_labels_used(where):
    expression = EXPRESSIONS[where]
    code = re.sub(r'"[^"]*"', '""', expression)
    names = set(re.findall(r"\btallystick_\w+", code))
    assert names - EXPOSED.keys() == set()
    assert names or re.search(r"\bup\{", code)
    known = {label for name in names for label in EXPOSED[name]} | PROMETHEUS_LABELS
    selectors = "".join(re.findall(r"\{([^}]*)\}", code))
    queried = set(re.findall(r"(\w+) *(?:=~|!~|!=|=)", selectors))
    for group in re.findall(r"\b(?:by|on|ignoring) *\(([^)]*)\)", code):
        queried |= set(re.findall(r"\w+", group))
    assert queried - known == set()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_shows_only_labels_that_its_metrics_have(rule):
    names = re.findall(r"\btallystick_\w+", rule["expr"])
    known = {label for name in names for label in EXPOSED[name]} | PROMETHEUS_LABELS
    texts = " ".join(rule["annotations"].values())
    assert set(re.findall(r"\$labels\.(\w+)", texts)) - known == set()


def test_routes_and_statuses_exist():
    text = "\n".join(EXPRESSIONS.values())
    for pattern in re.findall(r'route=~"([^"]+)"', text):
        assert any(re.fullmatch(pattern, route) for route in ROUTES), pattern
    assert set(re.findall(r'route="([^"]+)"', text)) <= ROUTES
    probed = {
        container[probe]["httpGet"]["path"]
        for container in CONTAINERS.values()
        for probe in ("startupProbe", "livenessProbe", "readinessProbe")
        if probe in container
    }
    assert probed == {"/health", "/ready"} <= ROUTES
    assert set(re.findall(r"127\.0\.0\.1:8000(/\w+)", DOCKERFILE + README)) <= ROUTES
    assert set(re.findall(r'\bstatus[!=]+"([A-Z_]+)"', text)) <= set(Status)


def check_arguments(name, arguments):
    # A command keeps the help option that its first context gave it, so this one is like main's.
    command = main.commands[name]
    command.make_context(name, [*arguments], obj=Path(), **main.context_settings).close()


@pytest.mark.parametrize("where", COMMANDS)
def test_commands_and_their_options_exist(where):
    name, *arguments = COMMANDS[where]
    assert name in main.commands
    if arguments:  # in prose a command may be named without its model
        check_arguments(name, arguments)


def test_the_jobs_hand_every_argument_over():
    for where, container in CONTAINERS.items():
        name, *arguments = container["args"]
        check_arguments(name, arguments)
        assert container["args"].count("$(MODEL)") == (name in {"monitor", "retrain", "train"}), (
            where
        )


def test_servers_in_containers_are_reached_from_outside_of_them():
    serving = [arguments for arguments in COMMANDS.values() if arguments[0] == "serve"]
    assert len(serving) == 2
    assert all("--host 0.0.0.0 --port 8000" in " ".join(arguments) for arguments in serving)


def test_settings_exist():
    known = {f"TALLYSTICK_{name.upper()}" for name in Settings.model_fields}
    named = {
        (path.name, variable)
        for path in FILES
        for variable in re.findall(r"\bTALLYSTICK_[A-Z_]*[A-Z]\b", path.read_text())
        if variable != "TALLYSTICK_SERVING_PORT"  # the one that Kubernetes would set
    }
    assert {entry for entry in named if entry[1] not in known} == set()
    assert ("Dockerfile", "TALLYSTICK_STATE_DIR") in named


@pytest.mark.parametrize("name", PODS)
def test_pods_get_no_variables_of_services(name):
    """``TALLYSTICK_SERVING_PORT`` and its like would be settings that do not exist."""
    assert PODS[name]["enableServiceLinks"] is False


@pytest.mark.parametrize("name", PODS)
def test_pods_write_to_mounted_folders_only(name):
    spec = PODS[name]
    volumes = {volume["name"] for volume in spec["volumes"]}
    claims = {
        item["metadata"]["name"] for item in OBJECTS if item["kind"] == "PersistentVolumeClaim"
    }
    used = {
        volume["persistentVolumeClaim"]["claimName"]
        for volume in spec["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert used <= claims
    assert spec["securityContext"]["runAsNonRoot"] is True
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts.keys() <= volumes
        assert {"/state", "/tmp"} <= set(mounts.values())
        assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_a_server_has_longer_to_stop_than_it_drains():
    assert PODS["tallystick-serving"]["terminationGracePeriodSeconds"] > DRAIN_S
    assert int(COMPOSE["services"]["serving"]["stop_grace_period"].removesuffix("s")) > DRAIN_S


def test_mounted_and_copied_files_exist():
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", []):
            if volume.startswith("./"):
                assert (INFRA / volume.split(":")[0]).exists(), volume
    for line in re.findall(r"^COPY (?!--from|\$)(.+)$", DOCKERFILE, re.MULTILINE):
        for name in line.split()[:-1]:
            assert (ROOT / name).exists(), name


def test_ports_are_published_to_the_machine_only():
    services = COMPOSE["services"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []
    assert "ports" not in services["redis"]
    assert services["redis"]["networks"] == ["store"]
    assert COMPOSE["networks"]["store"]["internal"] is True


def test_the_repo_in_the_readme_can_be_served(tmp_path, monkeypatch):
    (tmp_path / "feature_store.yaml").write_text(
        re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)[0]
    )
    monkeypatch.setenv(
        "REDIS_CONNECTION", COMPOSE["x-tallystick"]["environment"]["REDIS_CONNECTION"]
    )
    assert read_store_config(tmp_path).redis.connection_string == "redis:6379"


def test_the_repo_in_the_readme_is_one_that_feast_takes(tmp_path, monkeypatch):
    from feast.repo_config import load_repo_config

    file = tmp_path / "feature_store.yaml"
    file.write_text(FEATURE_STORE)
    monkeypatch.setenv("REDIS_CONNECTION", "redis:6379")
    config = load_repo_config(tmp_path, file)
    assert config.online_store.connection_string == "redis:6379"
    assert config.offline_store.memory_limit == "1GB"


def test_redis_takes_its_file():
    with tempfile.TemporaryDirectory(prefix="tally") as folder:
        socket = Path(folder) / "redis.sock"
        options = ["--port", "0", "--unixsocket", str(socket), "--dir", folder]
        command = [str(server_program()), str(INFRA / "redis" / "redis.conf"), *options]
        with ServerProcess("Redis", command, log=Path(folder) / "log") as server:
            client = Redis(unix_socket_path=str(socket))
            server.wait_until(lambda: answers(client))
            got = client.config_get("*")
            assert got["maxmemory-policy"] == "noeviction"
            assert got["maxmemory"] == str(2 << 30)
            assert got["appendonly"] == "yes"
            assert got["save"] == ""
            assert got["bind"].split()[0] == "127.0.0.1"
            assert not {"0.0.0.0", "*"} & set(got["bind"].split())
            client.close()
        assert server.returncode == 0, server.described("ended badly")


def answers(client: Redis) -> bool:
    try:
        return client.ping()
    except RedisConnectionError:
        return False
