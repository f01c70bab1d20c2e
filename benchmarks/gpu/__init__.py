"""Correct and fast on one NVIDIA GPU, for a machine that is there for a quarter of an hour and has no network.

`pack` prepares all that travels: the pruned wheel of ONNX Runtime, the graphs of the published size without their
weights, and what the CPU decodes of the phantom. There, `machine.sh` installs it, `correct` compares with the CPU and
with torch, and `fast` times whole decodes. Both write every result as soon as it is there; `pages` turns what came
back into Markdown.

Weights are random, drawn on the device and the same for torch and for the graphs: every variant starts from the same
predicted latents, contexts and noise, and ends with a picture and the tokens of a caption. Every variant is a process
of its own that stays loaded; in a round each decodes once, in an order that turns, and ratios are taken within a round.
"""
