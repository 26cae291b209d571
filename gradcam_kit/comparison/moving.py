"""Write pictures as a film: GIF or MP4."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from gradcam_kit.errors import CaptureError, OptionError, PictureError
from gradcam_kit.options import positive
from gradcam_kit.pixels.opencv import cv2

Frame = UInt8[np.ndarray, "height width 3"]


def write_film(path: str | PathLike[str], frames: Sequence[Any], fps: SupportsFloat) -> Path:
    """Write RGB frames to a film, GIF or MP4 according to the suffix, and return its path.

    Frames whose size differs from that of the first frame are cropped or padded with white, at the right and bottom.

    Args:
        path: output file, ending in `.gif` or `.mp4`; an existing file is replaced.
        frames: uint8 RGB pictures `(height, width, 3)`.
        fps: frames per second; a GIF rounds frame times to hundredths of a second, and to at least 0.02 s.

    Raises:
        CaptureError: there are no frames.
        OptionError: another suffix, or `fps` is not positive.
        PictureError: the installed OpenCV cannot write this format.
    """
    target, rate = Path(path), positive("fps", fps)
    if target.suffix.lower() not in (".gif", ".mp4"):
        raise OptionError(f"the name of the film is {target.name!r}; expected a name that ends in .gif or .mp4")
    if not frames:
        raise CaptureError("there is no frame yet; call step() or log() before saving the film")
    even = target.suffix.lower() == ".mp4"  # video codecs require even widths and heights
    height, width = (size + (size % 2 if even else 0) for size in frames[0].shape[:2])
    bgr = [np.ascontiguousarray(_fitted(frame, height, width)[..., ::-1]) for frame in frames]
    if even:
        _write_mp4(target, bgr, rate)
    elif hasattr(cv2, "imwriteanimation"):
        animation = cv2.Animation()
        animation.frames, animation.durations = bgr, [max(round(1000 / rate), 20)] * len(bgr)
        # With the default of 0, flat colors would be dithered.
        if not cv2.imwriteanimation(str(target), animation, [cv2.IMWRITE_GIF_DITHER, 3]):
            raise PictureError(f"OpenCV {cv2.__version__} could not write {target}; save the film as .mp4")
    else:  # OpenCV before 4.11
        first, *others = [Image.fromarray(frame[..., ::-1]) for frame in bgr]
        first.save(target, save_all=True, append_images=others, duration=max(round(1000 / rate), 20), loop=0)
    return target


def _write_mp4(target: Path, bgr: list[Frame], rate: float) -> None:
    height, width = bgr[0].shape[:2]
    stream = cv2.VideoWriter(str(target), cv2.VideoWriter.fourcc(*"mp4v"), rate, (width, height))
    try:
        if not stream.isOpened():
            raise PictureError(f"OpenCV {cv2.__version__} could not write {target}; save the film as .gif")
        for frame in bgr:
            stream.write(frame)
    finally:
        stream.release()


def _fitted(frame: Any, height: int, width: int) -> Frame:
    canvas = np.full((height, width, 3), 255, dtype=np.uint8)
    own = frame[:height, :width]
    canvas[: own.shape[0], : own.shape[1]] = own
    return canvas
