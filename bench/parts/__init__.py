"""The parts of a step, each against the torch operations that it replaces."""
