"""What every package uses and what knows none of them: settings, errors, files, random numbers."""
