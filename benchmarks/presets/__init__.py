"""The presets `fast` and `realtime`, by measurement on the phantom."""
