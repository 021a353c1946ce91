"""All that is measured: our ways of calling, and the rivals."""
