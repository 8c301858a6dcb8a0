"""The demonstrations: a system trained from nothing on made pictures, and the five tasks that it can then learn."""
