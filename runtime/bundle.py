"""A bundle: the folder that holds everything a decode needs, checked before anything in it is used.

``bundle.json`` names every file with its size and SHA-256. Nothing in a bundle is ever unpickled.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.captions import VOCABULARY
from unibrain_rt.engines.file_digest import file_sha256
from unibrain_rt.engines.graph_spec import GraphSpec
from unibrain_rt.errors import BundleError, InputError
from unibrain_rt.flows import FLOWS, Flow
from unibrain_rt.json_file import Fields
from unibrain_rt.manifest import FileRecord, broken, inside, read_files, read_graph, read_schedule
from unibrain_rt.presets import Preset
from unibrain_rt.samplers import Schedule
from unibrain_rt.subject import Subject
from unibrain_rt.subject_files import DESCRIPTION_FILE, GRAPH_FILE, ROI_FILE, TENSOR_FILE
from unibrain_rt.tensor_file import map_tensors

_log = logging.getLogger(__name__)

MANIFEST = "bundle.json"
SCHEMA_VERSION = 1
CONSTANTS = "constants.safetensors"
UNCONDITIONAL = ("unconditional_image_context", "unconditional_text_context")


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. ``graphs`` and ``tokenizers`` (folders) are by name; ``subjects`` are names."""

    folder: Path
    name: str
    precision: str
    architecture: Mapping[str, Any]
    schedule: Schedule
    graphs: Mapping[str, GraphSpec]
    presets: Mapping[str, Preset]
    files: Mapping[str, FileRecord]
    subjects: tuple[str, ...]
    default_subject: str | None
    tokenizers: Mapping[str, Path]
    provenance: Mapping[str, Any]

    @classmethod
    def open(cls, folder: str | Path | None = None, *, verify: bool = True) -> Bundle:
        """Read the manifest and check every file it names.

        Args:
            folder: the bundle; by default the phantom that is shipped with this package.
            verify: compare every file's SHA-256 too, not only its size.

        Raises:
            InputError: there is no such folder.
            BundleError: the manifest or a file is missing, damaged or of another version.
        """
        folder = phantom_folder() if folder is None else Path(folder)
        if not folder.is_dir():
            raise InputError(f"{folder}: no such bundle; name a folder that `unibrain-rt export` made")
        if not (folder / MANIFEST).is_file():
            raise BundleError(f"{folder / MANIFEST}: no such file; is this a bundle?")
        fields = Fields.load(folder / MANIFEST, broken)
        version = fields.take("schema_version", int)
        if version != SCHEMA_VERSION:
            raise BundleError(
                f"{fields.where}: schema version {version}, but this release reads {SCHEMA_VERSION}; "
                f"{'upgrade unibrain-rt' if version > SCHEMA_VERSION else 'export the bundle again'}"
            )
        files = read_files(folder, fields)
        bundle = cls(
            folder=folder,
            name=fields.take("name", str),
            precision=fields.take("precision", str),
            architecture=fields.take("architecture", dict),
            schedule=read_schedule(fields.object("architecture")),
            graphs={name: read_graph(folder, name, graph, files) for name, graph in fields.objects("graphs")},
            presets={name: Preset.from_fields(name, preset) for name, preset in fields.objects("presets")},
            files=files,
            subjects=tuple(fields.take("subjects", list)),
            default_subject=fields.optional("default_subject", str),
            tokenizers={
                name: inside(folder, path, fields.where)
                for name, path in fields.take("tokenizers", dict).items()
            },
            provenance=fields.take("provenance", dict),
        )
        if not all(isinstance(subject, str) and is_plain(subject) for subject in bundle.subjects):
            raise broken(fields.where, "subjects must be plain names")
        bundle._check_listed(fields.where)
        bundle._check_files(verify)
        _log.debug("opened bundle %s in %s, %d files", bundle.name, folder, len(files))
        return bundle

    def graph(self, name: str) -> GraphSpec:
        """The graph called ``name``."""
        if name not in self.graphs:
            raise BundleError(f"{self.folder}: the bundle has no graph {name}; export it again")
        return self.graphs[name]

    @property
    def has_captions(self) -> bool:
        """Whether captions can be decoded: Optimus and the GPT-2 vocabulary are there."""
        return "optimus_decode" in self.graphs and "gpt2" in self.tokenizers

    @property
    def flows(self) -> tuple[Flow, ...]:
        """The flows that a decode runs: without captions, the text flow has no end."""
        return FLOWS if self.has_captions else ("image",)

    def preset(self, name: str) -> Preset:
        """The preset called ``name``."""
        if name not in self.presets:
            raise InputError(f"no preset {name!r} in this bundle; it has {', '.join(self.presets)}")
        return self.presets[name]

    def subject(self, name: str | None = None) -> Subject:
        """The subject called ``name``; without one, the bundle's default or its only one.

        Raises:
            InputError: there is no such subject, or a choice is needed.
            BundleError: the subject's files are damaged.
        """
        if not self.subjects:
            raise InputError(f"{self.folder}: the bundle has no subject; fit one before decoding")
        if name is None:
            default = self.default_subject
            # A default that is gone (it is being replaced, say) is none.
            if default not in self.subjects and len(self.subjects) > 1:
                raise InputError(
                    f"{self.folder}: choose a subject with --subject: {', '.join(self.subjects)}"
                )
            name = default if default in self.subjects else self.subjects[0]
        if name not in self.subjects:
            raise InputError(f"no subject {name!r} in this bundle; it has {', '.join(self.subjects)}")
        subject = Subject.open(self.folder / "subjects" / name)
        if subject.encoders not in (None, self.encoders):
            raise BundleError(
                f"{subject.folder}: was fitted on another bundle's encoders; fit the subject on this bundle"
            )
        return subject

    @property
    def encoders(self) -> str:
        """A short hash that tells encoders apart: of what CLIP makes of nothing, the same in every precision."""
        return self.files[CONSTANTS].sha256[:16]

    def unconditional_contexts(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Image and text context of nothing seen and nothing said: (1, L, D) each."""
        path = self.folder / CONSTANTS
        try:
            tensors = map_tensors(path)
            image, text = (np.array(tensors[name]) for name in UNCONDITIONAL)
        except (OSError, KeyError, ValueError) as error:
            raise BundleError(
                f"{path}: {' and '.join(UNCONDITIONAL)} cannot be read; export the bundle again"
            ) from error
        for name, array in zip(UNCONDITIONAL, (image, text), strict=True):
            if array.dtype != np.float32 or not np.isfinite(array).all():
                raise BundleError(f"{path}: {name} is not finite float32; export the bundle again")
            if array.ndim != 3 or len(array) != 1:
                raise BundleError(f"{path}: {name} is {array.shape}, not (1, L, D); export the bundle again")
        return image, text

    def fingerprint(self) -> str:
        """A short hash of everything in the bundle, for reports."""
        lines = "".join(f"{name}:{record.sha256}\n" for name, record in sorted(self.files.items()))
        return hashlib.sha256(lines.encode()).hexdigest()[:16]

    def _check_listed(self, where: str) -> None:
        """What is read has to be in the list of files, or nobody would compare its SHA-256."""
        read = {
            CONSTANTS,
            *(
                f"subjects/{name}/{file}"
                for name in self.subjects
                for file in (DESCRIPTION_FILE, TENSOR_FILE)
            ),
            *(f"{path.relative_to(self.folder).as_posix()}/{VOCABULARY}" for path in self._vocabularies()),
        }
        may_be = (f"subjects/{name}/{file}" for name in self.subjects for file in (ROI_FILE, GRAPH_FILE))
        read.update(name for name in may_be if os.path.lexists(self.folder / name))
        # Graphs name their weights themselves; they lie beside them.
        for folder in {graph.path.parent for graph in self.graphs.values()}:
            beside = (path for path in folder.glob("*") if not path.name.startswith("."))
            read.update(path.relative_to(self.folder).as_posix() for path in beside)
        if unlisted := sorted(read - self.files.keys()):
            raise broken(where, f"{unlisted[0]} is not among the manifest's files")

    def _vocabularies(self) -> list[Path]:
        return [self.tokenizers["gpt2"]] if self.has_captions else []

    def _check_files(self, verify: bool) -> None:
        for name, record in self.files.items():
            path = self.folder / name
            try:
                status = path.stat()
            except OSError as error:
                raise BundleError(
                    f"{path}: cannot be read ({error.strerror}); copy or export the bundle again"
                ) from error
            if not stat.S_ISREG(status.st_mode):
                raise BundleError(f"{path}: not a plain file; copy or export the bundle again")
            if status.st_size != record.size_bytes:
                raise BundleError(
                    f"{path}: {status.st_size} bytes, but the manifest says {record.size_bytes}; "
                    "copy or export the bundle again"
                )
            if verify and sha256_of(path) != record.sha256:
                raise BundleError(
                    f"{path}: its contents changed (SHA-256 differs); copy or export the bundle again"
                )


def phantom_folder() -> Path:
    """Where the bundle shipped with this package lies."""
    return Path(__file__).parent / "phantom"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        BundleError: the file cannot be read.
    """
    try:
        return file_sha256(path)
    except OSError as error:
        raise BundleError(
            f"{path}: cannot be read ({error.strerror}); copy or export the bundle again"
        ) from error


def is_plain(name: str) -> bool:
    """Whether a name can be a folder's within the bundle."""
    return bool(name) and name.isprintable() and not set(name) & set("/\\") and name not in (".", "..")
