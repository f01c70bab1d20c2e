"""From a published checkpoint to a bundle: torch models, ONNX graphs, precision and the manifest."""
