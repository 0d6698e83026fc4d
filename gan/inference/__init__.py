"""Trained generators: load, sample, export."""
