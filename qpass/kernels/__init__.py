"""Quantized arithmetic: one plain-PyTorch reference, and one file for each backend."""
