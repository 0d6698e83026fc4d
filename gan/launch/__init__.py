"""Start many trainings: the grid of a sweep, its processes on this machine, its array job under Slurm, and its status."""
