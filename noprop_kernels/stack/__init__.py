"""Slices as one module: its tensors, what must stay true of them, and their training."""
