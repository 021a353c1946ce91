"""What every contender is given: sizes, data, and the float64 twin that tells what is right."""
