"""The contenders: our ways of calling, and the rivals."""
