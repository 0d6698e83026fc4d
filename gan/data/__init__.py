"""Images: where they come from, how they are decoded, and the batches made of them."""
