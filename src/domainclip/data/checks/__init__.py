"""What is better known about a data set before a run than after it."""
