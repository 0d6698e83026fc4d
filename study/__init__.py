"""The classifiers of the MSN paper: Tables I and III, Figures 1 to 6."""
