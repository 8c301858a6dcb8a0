"""Demonstrations: trains a system from random weights on generated pictures, then on the five tasks."""
