"""A subject from a dataset: targets by the bundle's encoders, four ridge heads, and its place in a bundle."""
