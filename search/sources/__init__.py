"""Sweeps that somebody else ran, as they are kept: a table, a folder of runs; and what their
columns mean.
"""
