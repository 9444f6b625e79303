"""Calibration sets: which inputs of the original model are kept to fit quantizers on, one way in each file."""
