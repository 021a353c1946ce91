"""Calls as records, the four backends that run them, and the choice of one."""
