"""The options by which commands are given a subject's data: NSD's folders, or plain files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from unibrain_rt.export.option_groups import Decorator, grouped

if TYPE_CHECKING:
    from unibrain_rt.export.subjects.datasets.dataset import Dataset

_path = click.Path(path_type=Path)


@dataclass(frozen=True)
class DataFiles:
    """Where the data lie; each field is the option of that name."""

    nsd: Path | None
    coco: Path | None
    scans: Path | None
    images: Path | None
    captions: Path | None
    mask: Path | None
    rois: Path | None

    def check(self) -> None:
        """Raise `click.UsageError` for options that do not go together."""
        if (self.nsd is None) == (self.scans is None):
            raise click.UsageError("Give either --nsd, or --scans with --images and --captions.")
        plain = ("images", "captions", "mask", "rois")
        if self.nsd is not None and (given := [name for name in plain if getattr(self, name) is not None]):
            raise click.UsageError(f"--{given[0]} goes with --scans: NSD's folders hold their own.")
        if self.scans is not None and (self.images is None or self.captions is None):
            raise click.UsageError(
                "--scans needs --images and --captions: what was shown, and what it shows."
            )

    @property
    def inputs(self) -> list[Path]:
        """The files, as far as they are given, that nothing may be written over."""
        return [path for path in (self.scans, self.captions, self.mask) if path is not None]

    def read(
        self,
        name: str,
        part: Literal["train", "test"],
        say: Callable[[str], None],
        *,
        average: bool = True,
    ) -> Dataset:
        """The scans of one subject. ``part`` and ``average`` are of NSD. Raises `InputError`."""
        if self.nsd is not None:
            from unibrain_rt.export.subjects.datasets.nsd import read_nsd

            return read_nsd(self.nsd, name, part, average=average, coco=self.coco, report=say)
        from unibrain_rt.export.subjects.datasets.folders import read_folder

        assert self.scans is not None
        assert self.images is not None
        assert self.captions is not None
        return read_folder(name, self.scans, self.images, self.captions, mask=self.mask, rois=self.rois)


def data_options(*, nsd: str, scans: str) -> Decorator:
    """Give a command the options of `DataFiles`, which it takes as ``data``; help of two of them is its own."""
    options = [
        click.option("--nsd", type=_path, help=f"Folder of NSD, or of a phantom's recording: {nsd}"),
        click.option(
            "--coco", type=_path, help="With --nsd: COCO's captions.  [default: annotations in that folder]"
        ),
        click.option("--scans", type=_path, help=f"{scans}: .npy (scans, voxels), or NIfTI with --mask."),
        click.option("--images", type=_path, help="With --scans: folder of pictures, sorted as the scans."),
        click.option(
            "--captions",
            type=_path,
            help="With --scans: JSON by picture or by scan, or text, a line a scan.",
        ),
        click.option("--mask", type=_path, help="With --scans: NIfTI, above 0 where the voxels lie."),
        click.option("--rois", type=_path, help="With --mask: folder of region files named as in NSD."),
    ]
    return grouped(options, DataFiles, "data")
