"""Read uploaded pictures, and describe their sources as code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gradcam_kit.errors import PictureError
from gradcam_kit.pixels.decoding import decode_picture
from gradcam_kit.pixels.pictures import RGB

MOST_PIXELS = 50_000_000
"""Maximum number of pixels of a picture that the app decodes; as RGB they take 150 MB."""


@dataclass(frozen=True)
class PictureSource:
    """The source of a picture as code.

    Attributes:
        name: displayed name of the picture.
        expression: the expression that loads the picture.
        imports: the import that the expression needs besides `read_picture`; "" for none.
    """

    name: str
    expression: str
    imports: str = ""

    @classmethod
    def file(cls, path: Path) -> PictureSource:
        """Return the source of a file by its name only, because the upload's path is temporary."""
        return cls(path.name, f"read_picture({path.name!r})")


def read_upload(path: str | Path) -> tuple[RGB, PictureSource]:
    """Read an uploaded file.

    Raises:
        PictureError: the file cannot be read, is not a picture, is truncated, or has more pixels than `MOST_PIXELS`.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return decode_picture(file, _admit), PictureSource.file(path)
    except OSError as error:
        raise PictureError(f"cannot read {path.name!r}: {error.strerror or error}") from error
    except PictureError as error:
        raise PictureError(f"cannot read {path.name!r}: {error}") from error


def _admit(pixels: int) -> None:
    if pixels > MOST_PIXELS:
        raise PictureError(
            f"it has {pixels / 1e6:.0f} million pixels, but the app accepts at most {MOST_PIXELS // 10**6} million; "
            "make the picture smaller"
        )
