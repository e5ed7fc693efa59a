"""The page of a run: read from its folder, served while it goes on, or written as one file."""
