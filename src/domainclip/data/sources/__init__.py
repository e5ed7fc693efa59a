"""Readers: tables, folders and hub data sets become image-text pairs."""
