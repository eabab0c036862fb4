"""docs/http-api.md names what the server has, no more and no less."""

from __future__ import annotations

import re
from pathlib import Path

from exposed_metrics import exposed
from tallystick_serving.app import FAST_ROUTES, ROUTERS
from tallystick_serving.error_responses import PROBLEM_TYPES

TEXT = (Path(__file__).parents[2] / "docs" / "http-api.md").read_text()


def test_every_route_has_its_heading():
    routes = [
        f"{method} {route.path}"
        for router in ROUTERS
        for route in router.routes
        for method in sorted(route.methods - {"HEAD"})
    ] + [f"POST {route.path}" for route in FAST_ROUTES]
    assert sorted(re.findall(r"^### `([A-Z]+ /.*)`$", TEXT, re.MULTILINE)) == sorted(routes)


def test_every_metric_is_named_with_its_type_and_labels():
    families = list(exposed().registry.collect())
    found = re.findall(
        r"^\| ((?:`tallystick_\w+`(?:, )?)+) \| (\w+)[^|]*\|(.*)\|$", TEXT, re.MULTILINE
    )
    documented = {
        name: (kind, set(re.findall(r"`(\w+)`", labels.split(" (")[0])))
        for names, kind, labels in found
        for name in re.findall(r"`(\w+)`", names)
    }
    assert documented == {
        f"{family.name}_total" if family.type == "counter" else family.name: (
            family.type,
            {label for sample in family.samples for label in sample.labels} - {"le"},
        )
        for family in families
    }


def test_every_metric_in_the_text_is_exposed():
    lines = exposed().text().decode().splitlines()
    names = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    assert set(re.findall(r"`(tallystick_\w+)`", TEXT)) == names


def test_every_problem_type_stands_in_the_table_with_its_status():
    documented = set(re.findall(r"^\| `([a-z-]+)` \| (\d{3}) \|", TEXT, re.MULTILINE))
    assert documented == {(kind.slug, str(kind.status)) for kind in PROBLEM_TYPES.values()}
