"""TensorRT and TensorRT-RTX: one code on two libraries."""
