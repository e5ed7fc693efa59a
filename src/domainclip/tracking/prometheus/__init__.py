"""A training's figures for Prometheus: on a port of this machine, or in a file for node_exporter."""

from domainclip.tracking.prometheus.serving import prometheus

__all__ = ["prometheus"]
