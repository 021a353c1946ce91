"""The input of every contender: sizes, data, and the float64 twin that defines the right result."""
