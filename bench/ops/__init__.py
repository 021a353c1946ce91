"""The operations that users call one by one, each against the torch operations it replaces."""
