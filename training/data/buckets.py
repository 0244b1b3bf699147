"""Resolution buckets: a few picture sizes of about equal area, so that photos keep their aspect ratio and a batch has one size."""

from __future__ import annotations

import math

STEP = 64  # pixels; the sides that the bases were trained on (aspect ratio bucketing of NovelAI and SDXL)
LONGEST = 2  # times the resolution: the most oblong bucket is 4 to 1


def bucket_sizes(resolution: int, latent_scale: int = 8) -> list[tuple[int, int]]:
    """All buckets (height, width) in pixels: sides are multiples of 64 (of `latent_scale` below 256 pixels), no area passes resolution^2."""
    step = latent_scale * math.ceil((STEP if resolution >= 4 * STEP else latent_scale) / latent_scale)
    tall = [(resolution**2 // width // step * step, width) for width in range(step, resolution + 1, step)]
    tall = [(height, width) for height, width in tall if height <= LONGEST * resolution]
    return sorted({*tall, *((width, height) for height, width in tall)})


def nearest_bucket(height: int, width: int, sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """The bucket whose aspect ratio is nearest to that of a picture of height x width; of equally near ones the largest."""
    ratio = math.log(height / width)
    return min(sizes, key=lambda size: (round(abs(math.log(size[0] / size[1]) - ratio), 9), -size[0] * size[1]))
