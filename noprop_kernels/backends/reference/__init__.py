"""The reference backend: the equations in PyTorch's operations."""
