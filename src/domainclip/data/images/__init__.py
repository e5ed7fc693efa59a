"""From an image file to what a model takes."""
