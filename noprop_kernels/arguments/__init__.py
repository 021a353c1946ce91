"""Arguments of public calls, checked and brought into the forms of backends/calls.py."""
