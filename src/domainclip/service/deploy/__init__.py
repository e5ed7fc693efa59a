"""Deployment: a model is served at an address for good, and another one takes its place without a request lost."""
