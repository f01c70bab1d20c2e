"""3 × 3 convolutions of the published size in fp16, under every setting of two options of the CUDA provider.

``use_tf32`` off keeps cuDNN off the tensor cores, for fp16 too; ``fuse_conv_bias`` has cuDNN add the bias. Each
operator is run under all settings, timed, and compared with torch in fp32 on the same device, twice: an output whose
memory is not clear may be added to, which only a second run shows. Many in a row are one graph, so that the device
and not the host's launches sets the time.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from unibrain_rt.benchmarks.gpu.parts import write
from unibrain_rt.benchmarks.gpu.scan import distance
from unibrain_rt.engines.onnxruntime_cuda.provider import on_device, prepare, provider

BATCH, CHANNELS, SIDE = 2, 320, 64
IN_A_ROW, RUNS = 40, 10
OPERATORS = ("Conv", "NhwcConv")


def measure(out: Path) -> None:
    """Write TFLOP/s and errors of every operator and setting, each as soon as it is known."""
    import torch

    rng = np.random.default_rng(0)
    image = rng.standard_normal((BATCH, CHANNELS, SIDE, SIDE)).astype(np.float16)
    weights = (rng.standard_normal((CHANNELS, CHANNELS, 3, 3)) / (9 * CHANNELS) ** 0.5).astype(np.float16)
    bias = (rng.standard_normal(CHANNELS) / 10).astype(np.float16)
    torch.backends.cudnn.allow_tf32 = False
    on = [torch.from_numpy(array).cuda().float() for array in (image, weights, bias)]
    x = on[0]
    for _ in range(IN_A_ROW):
        x = torch.nn.functional.conv2d(x, *on[1:], padding=1)
    wanted = x.cpu().numpy()
    results: dict[str, Any] = {"shape": [BATCH, CHANNELS, SIDE, SIDE], "in_a_row": IN_A_ROW, "rows": []}
    for operator, tf32, fused in itertools.product(OPERATORS, (0, 1), (0, 1)):
        row: dict[str, Any] = {"operator": operator, "use_tf32": tf32, "fuse_conv_bias": fused}
        try:
            row |= _one(operator, tf32, fused, image, weights, bias, wanted)
        except Exception as error:  # what fails is worth as much as what works
            row["error"] = str(error)[:500]
        results["rows"].append(row)
        write(out / "convolution.json", results)


def _one(
    operator: str, tf32: int, fused: int, image: Any, weights: Any, bias: Any, wanted: Any
) -> dict[str, Any]:
    import onnxruntime

    prepare(onnxruntime)
    last = operator == "NhwcConv"
    given = np.ascontiguousarray(image.transpose(0, 2, 3, 1)) if last else image
    session = onnxruntime.InferenceSession(
        _model(operator, given, weights.transpose(0, 2, 3, 1) if last else weights, bias),
        providers=[provider(graphs=False, half=bool(tf32), fuse_conv_bias=bool(fused))],
        enable_fallback=0,
    )
    binding = session.io_binding()
    values = [on_device(onnxruntime, array, "a value") for array in (given, np.full_like(given, 7))]
    binding.bind_ortvalue_input("x", values[0])
    binding.bind_ortvalue_output("y", values[1])
    quick = onnxruntime.RunOptions()
    quick.add_run_config_entry("disable_synchronize_execution_providers", "1")
    errors = []
    for _ in range(2):
        session.run_with_iobinding(binding)
        result = values[1].numpy().astype(np.float32)
        errors.append(distance(result.transpose(0, 3, 1, 2) if last else result, wanted))
    best = float("inf")
    for _ in range(3):
        begun = perf_counter()
        for _ in range(RUNS - 1):
            session.run_with_iobinding(binding, quick)
        session.run_with_iobinding(binding)
        best = min(best, (perf_counter() - begun) / RUNS / IN_A_ROW)
    flops = 2 * BATCH * SIDE * SIDE * CHANNELS * CHANNELS * 9
    return {"microseconds": best * 1e6, "tflops": flops / best / 1e12, "errors": errors}


def _model(operator: str, image: Any, weights: Any, bias: Any) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    attributes = {
        "kernel_shape": [3, 3],
        "pads": [1, 1, 1, 1],
        "strides": [1, 1],
        "dilations": [1, 1],
        "group": 1,
    }
    domain = "com.microsoft" if operator == "NhwcConv" else ""
    names = ["x", *(f"x{place}" for place in range(1, IN_A_ROW)), "y"]
    nodes = [
        helper.make_node(operator, [names[place], "w", "b"], [names[place + 1]], domain=domain, **attributes)
        for place in range(IN_A_ROW)
    ]
    held = [
        numpy_helper.from_array(np.ascontiguousarray(weights), "w"),
        numpy_helper.from_array(bias, "b"),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, image.shape) for name in "xy"]
    graph = helper.make_graph(nodes, "convolution", ports[:1], ports[1:], held)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    serialized: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    return serialized
