"""Contenders checked, then timed in turns."""
