"""Scores of generators: inception score, FID, KID, precision and recall under named protocols."""
