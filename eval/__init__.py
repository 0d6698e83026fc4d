"""Scores of generators: IS, FID and KID under named protocols."""
