"""Facts and rates of the machine."""
