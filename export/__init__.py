"""From a published checkpoint to a bundle: torch models, ONNX export, ridge fitting and the phantom."""
