"""Recipes side by side: the matrix of runs recipes x models, and the table of what came out.

Every cell is an ordinary run in a process of its own. That costs a few seconds of imports for each, and gives a peak
memory that is the cell's alone, nothing left over from the cell before, and a comparison that outlives a cell which
the system kills. What cells of one model have in common they share through a folder, under fingerprints.
"""
