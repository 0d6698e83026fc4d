"""Networks, their normalisation and their losses: torch only."""
