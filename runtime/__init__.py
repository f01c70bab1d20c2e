"""unibrain-rt: decode what a person saw, image and caption, from one fMRI scan.

    from unibrain_rt import Decoder

    reconstruction = Decoder.open().decode(voxels)
    reconstruction.image, reconstruction.caption

Names are imported when they are first used, so that ``import unibrain_rt`` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unibrain_rt.bundle import Bundle as Bundle
    from unibrain_rt.decoder import Decoder as Decoder
    from unibrain_rt.errors import UnibrainError as UnibrainError
    from unibrain_rt.file_decoding import FilePlan as FilePlan
    from unibrain_rt.file_decoding import ScanDecoded as ScanDecoded
    from unibrain_rt.file_decoding import ScanFailed as ScanFailed
    from unibrain_rt.file_decoding import ScanKept as ScanKept
    from unibrain_rt.file_decoding import SheetDone as SheetDone
    from unibrain_rt.file_decoding import decode_files as decode_files
    from unibrain_rt.file_decoding import plan_files as plan_files
    from unibrain_rt.pools.decoder_pool import DecoderPool as DecoderPool
    from unibrain_rt.pools.decoder_pool import Request as Request
    from unibrain_rt.pools.opening import open_pool as open_pool
    from unibrain_rt.reconstruction import Reconstruction as Reconstruction
    from unibrain_rt.scans import read_scans as read_scans

__version__ = "0.1.0"
_HOMES = {
    "Bundle": "bundle",
    "Decoder": "decoder",
    "Reconstruction": "reconstruction",
    "UnibrainError": "errors",
    "read_scans": "scans",
    "plan_files": "file_decoding",
    "FilePlan": "file_decoding",
    "decode_files": "file_decoding",
    "ScanDecoded": "file_decoding",
    "ScanKept": "file_decoding",
    "ScanFailed": "file_decoding",
    "SheetDone": "file_decoding",
    "open_pool": "pools.opening",
    "DecoderPool": "pools.decoder_pool",
    "Request": "pools.decoder_pool",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
