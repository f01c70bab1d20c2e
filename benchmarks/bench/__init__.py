"""``unibrain-rt bench``: where each millisecond of a decode goes, and how close it is to what the machine can do.

Needs what a decode needs, and no more: numpy, click and an engine.
"""
