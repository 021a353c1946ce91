"""Slices as one module: its tensors, their invariants, and their training."""
