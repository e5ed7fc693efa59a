"""The rules and the Grafana dashboard are valid, and ask for nothing that the service does not have."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

pytest.importorskip("prometheus_client", reason="needs the extra serve")
from prometheus_client.parser import text_string_to_metric_families

from domainclip.inference.backends.golden import MINIMUM_COSINE
from domainclip.service.metrics import SLO_SECONDS, ServiceMetrics
from monitoring_cases import (
    FOLDER,
    RULES,
    alerts,
    dashboard,
    label_values,
    metric_names,
    panel_expressions,
    rules,
)

EXPRESSIONS = [(rule.get("record") or rule["alert"], rule["expr"]) for rule in rules()] + panel_expressions("1m")


def run(*command: str) -> str:
    """What a tool of Prometheus says of a file that it accepts."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]}")
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def series() -> dict[str, dict[str, set[str]]]:
    """The values of each label of each metric."""
    metrics = ServiceMetrics()
    metrics.model("mine", "0123", "torch", "fp32")
    found: dict[str, dict[str, set[str]]] = {}
    for family in text_string_to_metric_families(metrics.exposition()[0].decode()):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    return found


def test_promtool_accepts_the_rules_and_the_examples() -> None:
    assert f"{len(rules())} rules found" in run("promtool", "check", "rules", RULES.name)
    run("promtool", "check", "config", "prometheus.yml")
    run("amtool", "check-config", "alertmanager.yml")


def test_the_rules_pass_their_tests() -> None:
    assert "SUCCESS" in run("promtool", "test", "rules", "prometheus-rules-test.yml")


def test_every_alert_is_tested_and_says_what_to_do() -> None:
    tests = (FOLDER / "prometheus-rules-test.yml").read_text(encoding="utf-8")
    for rule in alerts():
        assert rule["alert"] in tests or rule["alert"].startswith("DomainclipErrors")
        assert rule["annotations"].keys() == {"summary", "description", "action"}, rule["alert"]
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}


@pytest.mark.parametrize(("title", "expression"), EXPRESSIONS, ids=[title for title, _ in EXPRESSIONS])
def test_only_series_are_asked_for_that_the_service_has(
    title: str, expression: str, series: dict[str, dict[str, set[str]]]
) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    names = metric_names(expression)
    assert names <= series.keys() | recorded
    assert names or "up{" in expression
    for metric, label, value in label_values(expression):
        if label in ("job", "instance"):
            continue
        if (metric, label) == ("domainclip_model_info", "precision"):
            assert value in MINIMUM_COSINE
        else:
            assert any(re.fullmatch(value, each) for each in series[metric][label]), f"{label}={value}"


def test_limits_are_edges_of_buckets_and_those_of_the_service() -> None:
    edges = {float(value) for _, text in EXPRESSIONS for _, label, value in label_values(text) if label == "le"}
    assert edges == set(SLO_SECONDS)
    golden = next(rule["expr"] for rule in alerts() if rule["alert"] == "DomainclipGoldenCosine")
    assert [float(limit) for limit in re.findall(r"< ([\d.]+)", golden)] == list(MINIMUM_COSINE.values())
    assert MINIMUM_COSINE.keys() == {"fp32", "bf16", "int8"}


def test_the_dashboard_shows_every_metric_and_every_panel_has_its_place(
    series: dict[str, dict[str, set[str]]],
) -> None:
    shown = {name for _, expression in panel_expressions("1m") for name in metric_names(expression)}
    base = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in series} <= base
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or panel["description"].endswith("."), panel["title"]
