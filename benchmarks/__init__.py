"""Latency, memory and fidelity, measured."""
