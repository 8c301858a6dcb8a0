"""Ablations: a grid of recipe replacements → runs → one table.

`grid.py` says what is trained, `ready.py` holds those of the papers, `runs.py` trains side by side, `table.py` sums up.
"""
