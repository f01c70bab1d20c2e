"""Scans in files: read header first, checked against the subject, one scan at a time."""

from __future__ import annotations

from unibrain_rt.scans.reading import Scan, inspect_all, iter_scans, read_scans
from unibrain_rt.scans.voxel_space import VoxelSpace

__all__ = ["Scan", "VoxelSpace", "inspect_all", "iter_scans", "read_scans"]
