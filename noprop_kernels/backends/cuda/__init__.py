"""The CUDA backend: one launch of the persistent kernel."""
