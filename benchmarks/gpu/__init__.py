"""A whole decode on one GPU: the engine ``cuda`` with and without CUDA graphs, against torch, eager and compiled.

Not run on a GPU yet: ``--dry-run`` takes the same path on the CPU, with the engine ``onnxruntime`` and in fp32.

Every variant starts from the same predicted latents, contexts and noise, and ends with a picture and the tokens of a
caption. All stay loaded; in a round each decodes once, in an order that turns, and ratios are taken within a round.
The roofline (`bench.roofline`) is at the measured rates of a large matrix product and of a large copy, graph by graph,
with nothing run at the same time. Where ONNX Runtime misses a kernel that the graphs were made for, nothing is
measured: the numbers would be of something else.
"""
