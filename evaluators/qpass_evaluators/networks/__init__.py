"""Networks whose features metrics are made of, each with the weights and the preprocessing that pin it."""
