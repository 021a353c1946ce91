"""Memory in parts and its peak, on a CPU and on a GPU."""
