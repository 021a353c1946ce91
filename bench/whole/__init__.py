"""Whole runs: their time, their accuracy, and their bits after a kill."""
