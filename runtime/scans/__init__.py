"""Scans in files: read header first, checked against the subject, one scan at a time."""

from __future__ import annotations

from unibrain_rt.scans.reading import Scan, VoxelSpace, inspect_all, iter_scans, read_scans

__all__ = ["Scan", "VoxelSpace", "inspect_all", "iter_scans", "read_scans"]
