"""The classifiers of the MSN paper: Tables I and III, Figures 1 to 6."""

import gan as gan  # first of all: it checks the Python that runs the program
