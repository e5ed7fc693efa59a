"""Linear probing before and after the towers are trained."""
