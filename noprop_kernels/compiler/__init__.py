"""What torch.compile is told."""
