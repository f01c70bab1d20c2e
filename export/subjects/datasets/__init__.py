"""Scans with what was shown and said: read from NSD's folders or from plain arrays, for fits and evaluations."""
