"""Ways to fit scales and zero points to values, one in each file."""
