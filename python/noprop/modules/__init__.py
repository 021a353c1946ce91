"""NoProp training of networks of one's own, any nn.Modules, in PyTorch's operations."""
