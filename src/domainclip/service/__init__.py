"""The HTTP service: a model that answers requests, and what keeps it up."""
