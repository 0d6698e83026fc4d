"""The training loop, and what one step of a GAN computes."""
