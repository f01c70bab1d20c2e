"""NVIDIA devices: memory, streams, and whole decodes as one captured graph."""
