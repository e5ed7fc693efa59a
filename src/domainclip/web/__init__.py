"""What the pages of the package share: the vendored chart library."""
