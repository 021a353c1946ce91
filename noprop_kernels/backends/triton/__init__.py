"""The Triton backend: a launch or more for each stage."""
