"""Measurements: scripts that print a table and write JSON; `results/` holds measured files."""
