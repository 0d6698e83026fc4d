"""Extraction of features from a set of images, by one process or many, in cached parts that survive an interruption."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from eval.extractors import Extractor, Floats
from eval.feature_cache import FeatureCache, Part
from eval.options import BATCH
from gan.utils.distributed import make_accelerator, on_all, on_main, only_on_main
from gan.utils.progress import progress

PART = 16 * BATCH  # images in one cached part: the most that an interruption loses


class ImageSet(Protocol):
    """Images by index."""

    identity: dict[str, Any]  # equal identities mean equal images

    def __len__(self) -> int: ...
    def read(self, start: int, count: int) -> Tensor:
        """Return the images ``start`` to ``start + count``: uint8 (count, 1 or 3, H, W)."""


@dataclass(frozen=True)
class Features:
    """Features of N images, in the order of the images."""

    values: Floats  # (N, D)
    logits: Floats | None  # (N, classes)
    images: dict[str, Any]  # identity of the images
    extractor: dict[str, Any]  # identity of the extractor

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: slice | NDArray[Any]) -> "Features":
        logits = None if self.logits is None else self.logits[index]
        return Features(self.values[index], logits, self.images, self.extractor)


def extract_parts(
    images: ImageSet,
    extractor: Extractor,
    *,
    count: int | None = None,
    accelerator: Accelerator | None = None,
    check_stop: Callable[[], None] = lambda: None,
    use_cache: bool = True,
    batch: int = BATCH,
    show_progress: bool = True,
    what: str = "image",
) -> Iterator[Features]:
    """Yield the features of the first ``count`` images (default: all) part by part; nothing on other than the main process.

    The processes of ``accelerator`` (default: this one) share the work; the batches, and so the features to the last bit, do
    not depend on their number. ``check_stop`` is called before each round of batches, to raise an exception that stops it;
    ``what`` names the images beside the progress.

    Raises UserError for an image that cannot be read, or a cache that cannot be written.
    """
    accelerator = accelerator or make_accelerator()
    total = len(images) if count is None else count
    spans = [(start, min(start + PART, total)) for start in range(0, total, PART)]
    cache = FeatureCache(images.identity, extractor, getattr(images, "part", None)) if use_cache else None
    with ExitStack() as stack:
        if cache is not None:
            only_on_main(accelerator, partial(stack.enter_context, cache.lock()))
        stored = on_main(accelerator, lambda: [cache is not None and cache.find(*span) for span in spans])
        missing = sum(end - start for (start, end), found in zip(spans, stored, strict=True) if not found)
        show = show_progress and accelerator.is_main_process and missing > 0
        bar = stack.enter_context(progress(total, what, start=total - missing, shown=show))
        for span, found in zip(spans, stored, strict=True):
            part = only_on_main(accelerator, partial(cache.load, *span)) if cache is not None and found else None
            if not found or on_main(accelerator, partial(_is_none, part)):
                part = _extract_part(images, extractor, *span, accelerator, check_stop, batch)
                if cache is not None:
                    only_on_main(accelerator, partial(cache.save, *span, part))
                bar.update(0 if found else span[1] - span[0])
            if accelerator.is_main_process:
                assert part is not None
                yield Features(part["features"], part.get("logits"), images.identity, extractor.identity)


def _is_none(part: Part | None) -> bool:
    return part is None


def extract(images: ImageSet, extractor: Extractor, **options: Any) -> Features | None:
    """Return the joined features of ``extract_parts`` on the main process, None on the others; same options."""
    parts = list(extract_parts(images, extractor, **options))
    if not parts:
        return None
    logits = None if extractor.classes is None else np.concatenate([part.logits for part in parts if part.logits is not None])
    return Features(np.concatenate([part.values for part in parts]), logits, images.identity, extractor.identity)


def _extract_part(
    images: ImageSet,
    extractor: Extractor,
    start: int,
    end: int,
    accelerator: Accelerator,
    check_stop: Callable[[], None],
    batch: int,
) -> Part:
    """Return features and logits of the images ``start`` to ``end``; the processes take the batches in turn."""
    spans = [(first, min(first + batch, end)) for first in range(start, end, batch)]
    batches: list[Part] = []
    for turn in range(0, len(spans), accelerator.num_processes):
        check_stop()
        this_turn = spans[turn : turn + accelerator.num_processes]
        span = this_turn[accelerator.process_index] if accelerator.process_index < len(this_turn) else None
        own = on_all(accelerator, partial(_extract_batch, images, extractor, span))
        if accelerator.num_processes == 1:
            batches.append(own)
            continue
        # Gathering needs arrays of one shape: pad each to a full batch, then cut the padding off.
        joined: Part = {}
        for name, width in extractor.widths.items():
            padded = torch.zeros(batch, width)
            if name in own:
                padded[: len(own[name])] = torch.from_numpy(own[name])
            joined[name] = accelerator.gather(padded.to(accelerator.device)).cpu().numpy()
        for rank, (first, last) in enumerate(this_turn):
            batches.append({name: values[rank * batch : rank * batch + last - first] for name, values in joined.items()})
    return {name: np.concatenate([part[name] for part in batches]) for name in extractor.widths}


def _extract_batch(images: ImageSet, extractor: Extractor, span: tuple[int, int] | None) -> Part:
    """Return features and logits of the images from ``span[0]`` to ``span[1]``; no arrays for None."""
    if span is None:
        return {}
    features, logits = extractor(images.read(span[0], span[1] - span[0]))
    return {"features": features} if logits is None else {"features": features, "logits": logits}
