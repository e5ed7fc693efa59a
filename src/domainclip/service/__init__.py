"""The HTTP service: a trained model behind a small API, safe by default, observable, and up while models change."""
