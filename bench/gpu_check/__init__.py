"""The check of a machine with a GPU, in one call."""
