"""What is done to the pictures of a domain before a model sees them."""
