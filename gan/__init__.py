"""GANs with batch, spectral and mean spectral normalisation: training, checkpoints, sampling."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gan.inference.generator import TrainedGenerator, load_generator

__all__ = ["TrainedGenerator", "load_generator"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: torch takes seconds, and a mistyped setting should be told at once.
    if name in __all__:
        from gan.inference import generator

        return getattr(generator, name)
    raise AttributeError(f"module 'gan' has no attribute {name!r}")
