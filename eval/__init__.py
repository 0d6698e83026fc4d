"""Scores of generators: inception score, FID, KID, precision and recall under named protocols."""

import gan as gan  # first of all: it checks the Python that runs the program
