"""Plain photos and videos: one camera without calibration, so somebody has to say the focal length.

A focal length comes from whoever runs the program, else from a photo's EXIF, else it is guessed:
`GUESSED_FOV_DEG` across the longer side. Depth in metres is proportional to it, so every reader
says which of the three it was.
"""

import importlib.util
import math
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from fsmde_jax.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".gif")
GUESSED_FOV_DEG = 60.0
# EXIF: the folder of camera settings, and in it the focal length on 35 mm film, whose frame's
# diagonal is what makers compare with (CIPA DC-008).
_EXIF_IFD, _FOCAL_35MM = 0x8769, 0xA405
_DIAGONAL_35MM = math.hypot(36.0, 24.0)


class PhotoError(UserError):
    """A photo or video is missing or broken; the text names the file."""


class Photo(NamedTuple):
    """An image upright, and its focal length in its own pixels."""

    image: Image.Image  # RGB
    focal_px: float
    focal_from: str  # in words


def find_photos(folder: Path) -> list[Path]:
    """The image files of a folder, not of its subfolders, by name."""
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise PhotoError(
            f"{folder}: holds no images ({', '.join(IMAGE_SUFFIXES)}), no prepared dataset and no "
            "recording"
        )
    return found


def read_photo(path: Path, focal_px: float | None = None) -> Photo:
    """A photo, turned as its EXIF says; `focal_px` goes before what EXIF says and a guess."""
    try:
        with Image.open(path) as file:
            film_mm = file.getexif().get_ifd(_EXIF_IFD).get(_FOCAL_35MM)
            image = ImageOps.exif_transpose(file).convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # decoders of broken files raise errors of a dozen kinds
        raise PhotoError(f"{path}: the image is truncated or broken ({error})") from error
    if focal_px is None and film_mm:
        focal = float(film_mm) * math.hypot(*image.size) / _DIAGONAL_35MM
        return Photo(image, focal, f"EXIF, {film_mm} mm on 35 mm film")
    return Photo(image, *focal_of(image.size, focal_px))


def focal_of(size: tuple[int, int], focal_px: float | None) -> tuple[float, str]:
    """The focal length that is given, or the guess for an image of that size, and which it is."""
    if focal_px is not None:
        return focal_px, "given"
    guess = max(size) / 2 / math.tan(math.radians(GUESSED_FOV_DEG / 2))
    return guess, f"guessed, {GUESSED_FOV_DEG:.0f}° across the longer side"


class Video:
    """The frames of a video, decoded one at a time by ffmpeg.

    Attributes:
      count: frames in the file, whether they can be decoded or not.
      problems: by frame, what is wrong with those that cannot; their neighbours may be smeared.
        Damage that the decoder does not notice is not in here: H.264 has no checksums.
      complaint: the first thing the decoder said, "" for a sound file.
      fps: frames a second.

    Raises `PhotoError` for a file of which nothing can be decoded.
    """

    def __init__(self, path: Path):
        self.path = path
        good, every, self.complaint = _decode_all(path)
        if not good:
            raise PhotoError(f"{path}: no frame can be decoded ({self.complaint or 'it is empty'})")
        self.count = len(every)
        self._good = [every.index(time) for time in good if time in every]
        missing = sorted(set(range(self.count)) - set(self._good))
        # Without complaint a frame is absent because the file says so (an edit list).
        self.problems = {
            i: f"{path}: frame {i} is corrupt and left out ({self.complaint})"
            for i in missing
            if self.complaint
        }
        self._frames = ffmpeg().read_frames(
            str(path), output_params=["-map", "0:v:0", "-fps_mode", "passthrough"]
        )
        about = next(self._frames)
        self.size, self.fps = tuple(about["size"]), about["fps"] or 25.0

    def __iter__(self) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]:
        """The sound frames with their numbers."""
        width, height = self.size
        for index, content in zip(self._good, self._frames, strict=False):
            yield index, np.frombuffer(content, np.uint8).reshape(height, width, 3)

    def close(self) -> None:
        """Ends ffmpeg, which may not have come to the end."""
        self._frames.close()


def _decode_all(path: Path) -> tuple[list[int], list[int], str]:
    """Times of the frames that decode, of all frames in the file, and ffmpeg's first complaint.

    ffmpeg lists the packets as they are stored (stream 0) and the frames it makes of them (1), both
    in the file's own time base. Never ask it for `-err_detect explode`: with H.264 it may not end.
    """
    command = [
        *(ffmpeg().get_ffmpeg_exe(), "-v", "error", "-copyts", "-i", str(path)),
        *("-map", "0:v:0", "-map", "0:v:0", "-c:v:0", "copy", "-c:v:1", "rawvideo"),
        *("-fps_mode:v:1", "passthrough", "-enc_time_base:v:1", "demux", "-f", "framecrc", "-"),
    ]
    with tempfile.TemporaryFile() as said:
        listed = subprocess.run(command, stdout=subprocess.PIPE, stderr=said, check=False).stdout
        said.seek(0)
        complaint = said.read(1000).decode(errors="replace").splitlines()
    rows = [line.split(",") for line in listed.decode().splitlines() if not line.startswith("#")]
    packets, frames = (sorted(int(row[2]) for row in rows if row[0] == kind) for kind in "01")
    return frames, packets, complaint[0].partition("] ")[2] or complaint[0] if complaint else ""


class VideoWriter:
    """Writes RGB frames of one size as H.264, which needs even sides: an odd last row goes."""

    def __init__(self, path: Path, fps: float):
        self._path, self._fps, self._frames = path, fps, None

    def add(self, frame: UInt8[np.ndarray, "h w 3"]) -> None:
        """One more frame."""
        frame = frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2]
        if self._frames is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._frames = ffmpeg().write_frames(
                str(self._path), frame.shape[1::-1], fps=self._fps, quality=8, macro_block_size=2
            )
            self._frames.send(None)
        self._frames.send(np.ascontiguousarray(frame))

    def close(self) -> None:
        """Finishes the file, if there is any frame."""
        if self._frames is not None:
            self._frames.close()


def ffmpeg():
    """The package imageio_ffmpeg; `UserError` where it is not installed."""
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        raise UserError('videos need the package imageio-ffmpeg: pip install -e ".[predict]"')
    import imageio_ffmpeg  # only here: it is an extra

    return imageio_ffmpeg
