"""A pool for a bundle, by how many processes it may have."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from unibrain_rt.bundle import Bundle
from unibrain_rt.decoder import Decoder
from unibrain_rt.engines.host import usable_cores
from unibrain_rt.pools.decoder_pool import DecoderPool, LocalPool


def open_pool(
    bundle: str | Path | Bundle | None = None,
    *,
    workers: int | None = None,
    threads: int | None = None,
    **options: Any,
) -> DecoderPool:
    """A pool of decoders for one bundle, which is loaded at the first request.

        with open_pool(subject="sub-01", workers=4) as pool:
            for result in pool.decode(Request(scan) for scan in scans):
                ...

    Args:
        bundle: as for `Decoder.open`.
        workers: 1 decodes in this process; more are as many processes, each of which loads the bundle. By default one
            a core. A script that starts processes does so only where ``__name__ == "__main__"``.
        threads: cores that all workers share, at least one each; by default all that this process may run on.
        options: ``subject``, ``preset``, ``engine``, ``captions``, ``cache`` and ``low_memory`` of `Decoder.open`.

    Raises:
        InputError: there is no such bundle.
        BundleError: the bundle is damaged.
    """
    # Opened once: every worker would read and compare all of its files anew.
    options["bundle"] = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    count = workers or usable_cores()
    if count == 1:
        return LocalPool(partial(Decoder.open, **options, threads=threads))

    from unibrain_rt.pools.process_pool import ProcessPool  # only here: multiprocessing takes a while to load

    each = max(1, (threads or usable_cores()) // count)
    return ProcessPool({**options, "threads": each}, count)
