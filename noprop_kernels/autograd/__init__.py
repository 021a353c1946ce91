"""Calls as nodes of torch's graph, and as custom operations for torch.compile."""
