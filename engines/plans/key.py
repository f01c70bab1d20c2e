"""What a plan was made of, and in words what differs between two of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

KERNELS = "kernels"
"""What an entry holds that is no plan, but what a back end compiled when it ran one."""
TITLES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX", "openvino": "OpenVINO"}


@dataclass(frozen=True)
class PlanKey:
    """What a plan was made of: another value anywhere is another plan.

    ``files`` is the SHA-256 of the graph's file and of its weights, by file name. ``settings`` are the back end's own:
    ``version``, ``target`` (such as ``sm89``), ``free`` (size of the free axes), precision, and whatever else changes
    what is compiled. What is no plan says so by ``holds``, and its file is the plan's that it belongs to.
    """

    engine: str
    graph: str
    files: Mapping[str, str]
    settings: Mapping[str, str]

    @property
    def holds(self) -> str:
        """``plan`` or ``kernels``."""
        return self.settings.get("holds", "plan")

    @property
    def is_plan(self) -> bool:
        return self.holds != KERNELS

    @property
    def digest(self) -> str:
        """SHA-256 over all of it, in hexadecimal."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def same_graph(one: PlanKey, other: PlanKey) -> bool:
    """Whether both were made of a graph's file of the same name; its fp32 form has another."""
    graphs = ({name for name in key.files if name.endswith(".onnx")} for key in (one, other))
    return (one.engine, one.graph) == (other.engine, other.graph) and bool(set.intersection(*graphs))


def differences(old: PlanKey, new: PlanKey) -> list[str]:
    """What changed from one key to another, a clause each."""
    clauses = []
    for name in sorted({*old.settings, *new.settings}):
        was, now = old.settings.get(name, "none"), new.settings.get(name, "none")
        if was == now:
            continue
        if name == "version":
            clauses.append(f"built with {TITLES.get(new.engine, new.engine)} {was}, this is {now}")
        elif name == "target":
            clauses.append(f"built for {was}, not {now}")
        else:
            clauses.append(f"built with {name} {was}, not {now}")
    changed = [
        name for name in sorted({*old.files, *new.files}) if old.files.get(name) != new.files.get(name)
    ]
    if changed:
        clauses.append(f"{' and '.join(changed)} {'has' if len(changed) == 1 else 'have'} changed")
    return clauses
