"""Support of torch.compile."""
