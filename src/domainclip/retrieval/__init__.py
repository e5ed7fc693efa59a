"""Finding the texts that fit an image, and the images that fit a text."""
