"""Plots of results. Each function writes one PNG, whole or not at all."""
