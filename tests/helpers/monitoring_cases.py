"""The files of domainclip/service/monitoring, and the expressions in them."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(str(resources.files("domainclip.service") / "monitoring"))
RULES = FOLDER / "prometheus-rules.yml"


def rules() -> list[dict[str, Any]]:
    """Recording and alerting rules.

    Returns:
        As they stand in the file, one after the other.
    """
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    """Alerting rules.

    Returns:
        As they stand in the file.
    """
    return [rule for rule in rules() if "alert" in rule]


def dashboard() -> dict[str, Any]:
    """The Grafana dashboard.

    Returns:
        Its JSON.
    """
    return json.loads((FOLDER / "grafana-dashboard.json").read_text(encoding="utf-8"))


def panel_expressions(interval: str) -> list[tuple[str, str]]:
    """What the panels of the dashboard ask Prometheus, with Grafana's variables filled in.

    Args:
        interval: For ``$__rate_interval``.

    Returns:
        Title of the panel and expression.
    """
    return [
        (panel["title"], re.sub(r"\$(job|instance)", ".*", target["expr"].replace("$__rate_interval", interval)))
        for panel in dashboard()["panels"]
        for target in panel.get("targets", ())
    ]


def metric_names(expression: str) -> set[str]:
    """The metrics of the service in an expression.

    Args:
        expression: PromQL.

    Returns:
        Names that begin with domainclip, those of recording rules (with a colon) included.
    """
    return set(re.findall(r"\bdomainclip[\w:]*[a-z0-9]", re.sub(r'"[^"]*"', "", expression)))


def label_values(expression: str) -> list[tuple[str, str, str]]:
    """What an expression wants of labels.

    Args:
        expression: PromQL.

    Returns:
        Metric, label and value or pattern.
    """
    return [
        (metric, label, value)
        for metric, inner in re.findall(r"\b(domainclip_\w+)\{([^}]*)\}", expression)
        for label, value in re.findall(r'(\w+)\s*[=!]~?\s*"([^"]*)"', inner)
    ]
