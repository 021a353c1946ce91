"""The CPU backend: the compiled extension."""
