"""Defines the pages, one file each: their fields, the models that answer, and what the answer shows."""
