"""The phantom: a small world of rendered scenes with captions, and simulated subjects who look at them."""
