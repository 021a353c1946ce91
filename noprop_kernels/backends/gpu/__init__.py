"""Shared by both GPU backends: a call as a table of stages."""
