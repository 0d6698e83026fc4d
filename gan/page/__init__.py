"""One HTML page of runs: what their folders hold, as pictures, curves and tables; and what all HTML pages share."""
