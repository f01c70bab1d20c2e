"""Ridge heads at the size of NSD and on the phantom: fitting, storing, applying, and what compression costs."""
