"""The shipped bundle and held-out stimuli."""

from __future__ import annotations

from held_out_pictures import bundle, engine, pictures, shown

__all__ = ["bundle", "engine", "pictures", "shown"]
