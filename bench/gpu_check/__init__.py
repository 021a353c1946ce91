"""What a machine with a GPU has to show, in one call."""
