"""The Triton backend: one or more launches for each stage."""
