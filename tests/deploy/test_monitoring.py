"""The alerting rules and the dashboard: they load, and they ask for metrics that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import promql_parser
import pytest
import yaml

from tests.support.replicas import Replicas

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus/mesh.rules.yml"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana/mesh.json").read_text())
GROUPS: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"]
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TESTS = ("mesh.tests.yml", "objectives.tests.yml")
#: What Prometheus itself adds to a scrape, and what kube-state-metrics tells in Kubernetes.
OF_OTHERS = {"up", "kube_deployment_spec_replicas"}


def rules() -> Iterator[dict[str, Any]]:
    for group in GROUPS:
        yield from group["rules"]


def expressions() -> list[str]:
    asked = [target["expr"] for panel in PANELS for target in panel["targets"]]
    return [rule["expr"] for rule in rules()] + asked


def metrics_in(expression: str) -> set[str]:
    """Return the names of the metrics that an expression selects."""
    without_strings = re.sub(r'"[^"]*"', '""', expression)
    return set(re.findall(r"\b([a-z_:][a-z0-9_:]*)\{", without_strings)) | set(
        re.findall(r"\b(mesh:[a-z0-9_:]+)", without_strings)
    )


@pytest.mark.parametrize("expression", expressions())
def test_every_expression_is_valid(expression: str) -> None:
    """A full parser of the query language reads it."""
    promql_parser.parse(expression)


def test_a_broken_expression_does_not_pass() -> None:
    """The parser can fail."""
    with pytest.raises(ValueError):
        promql_parser.parse("sum(rate(mesh_http_requests_total[5m])")


def test_every_alert_says_how_bad_it_is_and_what_it_means() -> None:
    """Every alert has a severity, a summary and a description."""
    alerts = [rule for rule in rules() if "alert" in rule]
    assert len({alert["alert"] for alert in alerts}) == len(alerts)
    for alert in alerts:
        assert alert["labels"]["severity"] in {"critical", "warning", "info"}
        assert set(alert["annotations"]) == {"summary", "description", "runbook"}


def test_every_alert_has_a_paragraph_in_the_runbook() -> None:
    """The runbook has a paragraph under the name of each alert, and none for an alert that is gone."""
    headings = re.findall(r"^### (\w+)$", (DEPLOY.parent / "docs/runbook.md").read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(rule["alert"] for rule in rules() if "alert" in rule)
    for rule in rules():
        if "alert" in rule:
            assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"


def test_every_alert_fires_in_a_test_of_promtool_and_is_quiet_in_one() -> None:
    """An alert that can never fire is worse than none. A healthy mesh is quiet about all."""
    texts = [yaml.safe_load((DEPLOY / "prometheus" / name).read_text()) for name in TESTS]
    checks = [check for text in texts for test in text["tests"] for check in test.get("promql_expr_test", ())]
    fired = {
        found[1]
        for check in checks
        if check["exp_samples"] and (found := re.search(r'alertname="(\w+)"', check["expr"]))
    }
    assert fired == {rule["alert"] for rule in rules() if "alert" in rule}
    assert {"expr": "ALERTS", "eval_time": "10m", "exp_samples": []} in checks


async def test_rules_and_dashboard_ask_for_metrics_that_a_replica_has(replicas: Replicas, tmp_path: Path) -> None:
    """After a metric was renamed, its panel would stay empty and its alert would never fire."""
    environ = {"SERVICES": "values,addresses,messages,grades,movements", "REPLICAS": "1", **files_in(tmp_path)}
    (process,) = await replicas(1, environ)
    async with httpx.AsyncClient() as client:
        text = (await client.get(process.private + "/metrics")).text
    declared = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    offered = declared | {f"{name}_{part}" for name in declared for part in ("bucket", "count")} | OF_OTHERS
    offered |= {rule["record"] for rule in rules() if "record" in rule}
    asked = {name for expression in expressions() for name in metrics_in(expression)}
    assert "mesh_http_requests_total" in asked
    assert asked - offered == set()
    lint(text)


#: The text of the task asks for this name: docs/tasks.md.
ASKED_FOR = "movements_stored_counter"


def lint(text: str) -> None:
    """Assert that the names follow the conventions of Prometheus, and that all have one prefix."""
    of_others = ("mesh_", "process_", ASKED_FOR)
    assert [name for name in re.findall(r"^# TYPE (\S+)", text, re.MULTILINE) if not name.startswith(of_others)] == []
    assert "_created" not in text
    if shutil.which("promtool"):
        ours = "".join(line for line in text.splitlines(keepends=True) if ASKED_FOR not in line)
        done = subprocess.run(["promtool", "check", "metrics"], input=ours, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def files_in(folder: Path) -> dict[str, str]:
    return {"MOVEMENTS_DB_PATH": str(folder / "movements.db"), "GRADES_SNAPSHOT_DIR": str(folder / "grades")}


def test_the_dashboard_fits_together() -> None:
    """Ids are unique; panels are inside the 24 columns and do not overlap; each has its data source."""
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in PANELS:
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["datasource"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool here")
@pytest.mark.parametrize(
    "arguments",
    [("check", "config", "prometheus.yml"), ("check", "rules", "mesh.rules.yml"), ("test", "rules", *TESTS)],
)
def test_prometheus_itself_takes_them(arguments: tuple[str, ...]) -> None:
    """promtool loads the configuration and the rules, and the alerts fire in their unit tests."""
    done = subprocess.run(
        ["promtool", *arguments], cwd=DEPLOY / "prometheus", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
