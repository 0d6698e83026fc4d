"""Images: sources (folder, zip, published data sets), decoding to one size, the cache of pixels, and the batch stream.

``load_images`` opens what a DataConfig names; ``BatchStream`` makes batches of it."""

from gan.data.datasets import ImageDataset, load_images
from gan.data.stream import BatchShard, BatchStream

__all__ = ["BatchShard", "BatchStream", "ImageDataset", "load_images"]
