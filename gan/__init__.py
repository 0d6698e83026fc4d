"""GANs with batch, spectral and mean spectral normalisation: training, checkpoints, sampling."""

from gan.generators import TrainedGenerator, load_generator

__all__ = ["TrainedGenerator", "load_generator"]
