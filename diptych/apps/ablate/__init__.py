"""Ablations: a grid of changed recipes, its runs, and one table of their measures.

`grid.py` defines grids, `ready.py` holds those of the papers, `runs.py` trains side by side, `table.py` sums up.
"""
