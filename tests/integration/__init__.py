"""Several stages together, on real parts."""
