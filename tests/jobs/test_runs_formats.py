"""Every format of pictures, and files that only claim to be some, through the command line."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import cv2
import disk
import numpy as np
import pytest
from PIL import Image, TiffImagePlugin
from typer.testing import CliRunner

from gradcam_kit.cli import app
from gradcam_kit.jobs.sources.walk import PICTURE_SUFFIXES
from gradcam_kit.pixels.decoding import read_picture

HEIGHT, WIDTH = disk.COFFEE.shape[:2]


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.move_in(tmp_path, monkeypatch)
    Path("pictures").mkdir()


def rows_of(*options: str, status: int) -> dict[str, dict]:
    done = CliRunner().invoke(app, ["run", "pictures", "--model", "shop:net", "--out", "out", "--no-report", *options])
    assert done.exit_code == status, done.output
    return {row["path"]: row for row in disk.read_rows(Path("out"))}


def test_every_format_gives_the_heatmap_of_its_picture() -> None:
    color, gray = Image.fromarray(disk.COFFEE), Image.fromarray(disk.COFFEE).convert("L")
    turned = color.rotate(90)
    for name in ("a.bmp", "a.png", "a.ppm", "a.tga", "a.tif", "a.webp", "a.sgi"):
        color.save(Path("pictures", name), **({"lossless": True} if name == "a.webp" else {}))
    color.convert("RGBA").save("pictures/opaque.png")
    color.convert("CMYK").save("pictures/cmyk.tif")
    color.save("pictures/frames.tif", save_all=True, append_images=[turned])
    color.save("pictures/frames.webp", save_all=True, append_images=[turned], lossless=True)
    deep = disk.COFFEE[..., ::-1].astype(np.uint16) * 257
    for name in ("16.png", "16.tif", "16.ppm"):
        cv2.imwrite(f"pictures/{name}", deep)
    cv2.imwrite("pictures/float.tif", disk.COFFEE[..., ::-1].astype(np.float32) / 255)
    exact = sorted(os.listdir("pictures"))
    for name, kind in (("a.jpg", "RGB"), ("cmyk.jpg", "CMYK"), ("palette.png", "P"), ("frames.gif", "P")):
        color.convert(kind).save(Path("pictures", name))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned to the right
    color.rotate(90, expand=True).save("pictures/turned.png", exif=exif)
    for name, image in (("gray.png", gray), ("gray-alpha.png", gray.convert("LA"))):
        image.save(Path("pictures", name))
    Image.fromarray(np.asarray(gray).astype(np.uint16) * 257).save("pictures/gray16.png")
    Image.new("RGB", (1, 1)).save("pictures/one.png")
    rows = rows_of(status=0)
    assert set(rows) == set(os.listdir("pictures"))
    sized = [name for name in rows if name != "one.png"]
    assert {(rows[name]["picture_height"], rows[name]["picture_width"]) for name in sized} == {(HEIGHT, WIDTH)}
    for name in (*exact, "turned.png"):
        assert np.abs(rows[name]["heatmap"] - rows["a.bmp"]["heatmap"]).max() < 2e-2, name
    for name in ("a.jpg", "cmyk.jpg", "palette.png", "frames.gif"):
        assert np.abs(rows[name]["heatmap"] - rows["a.bmp"]["heatmap"]).mean() < 0.1, name
    for name in ("gray-alpha.png", "gray16.png"):
        assert np.abs(rows[name]["heatmap"] - rows["gray.png"]["heatmap"]).max() < 2e-2, name
    for name in sized:
        with Image.open(f"out/overlays/{name}.grad-cam.jpg") as drawn:
            assert drawn.size == (WIDTH, HEIGHT)


def test_what_the_libraries_read_counts_as_a_picture_or_is_left_out_on_purpose() -> None:
    Image.init()
    read = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    left_out = {".bufr", ".emf", ".eps", ".fit", ".fits", ".flc", ".fli", ".gbr", ".grib", ".h5", ".hdf", ".iim", ".im"}
    assert read - left_out - {".mpeg", ".mpg", ".pcd", ".ps", ".wmf"} <= set(PICTURE_SUFFIXES)


@pytest.mark.parametrize("ending", [".avifs", ".bw", ".icb", ".j2c", ".jpc", ".jpf", ".jpx", ".msp", ".rgb", ".vst"])
def test_rare_endings_of_pil_are_pictures(ending: str) -> None:
    kind = "1" if ending == ".msp" else "L" if ending == ".bw" else "RGB"
    Image.fromarray(disk.COFFEE).convert(kind).save(f"pictures/a{ending}")
    [row] = rows_of(status=0).values()
    assert (row["picture_height"], row["picture_width"]) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("ending", [".pam", ".pic", ".sr"])
def test_rare_endings_of_opencv_are_pictures(ending: str) -> None:
    cv2.imwrite(f"pictures/a{ending}", disk.COFFEE)
    assert list(rows_of(status=0)) == [f"a{ending}"]
    difference = read_picture(f"pictures/a{ending}").astype(int) - disk.COFFEE[..., ::-1]  # which OpenCV takes for BGR
    assert np.abs(difference).mean() < 4


def test_hostile_files_are_error_rows_and_harm_no_other() -> None:
    disk.write_picture(Path("pictures/good.png"), disk.COFFEE)
    said = dict.fromkeys(disk.break_pictures(Path("pictures")), "cannot read the picture")
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 1, 0, 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(7501 * 60_000), 9)), (b"IEND", b"")):
        parts += [struct.pack(">I", len(content)), kind, content, struct.pack(">I", zlib.crc32(kind + content))]
    Path("pictures/bomb.png").write_bytes(b"".join(parts))
    said["bomb.png"] = "DecompressionBombError"
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in {256: 15_000, 257: 15_000, 258: (32,) * 3, 259: 1, 262: 2, 277: 3, 339: (3,) * 3}.items():
        tags[tag] = value
    Path("pictures/bomb.tif").write_bytes(b"II*\0\x08\0\0\0" + tags.tobytes(8))  # floating point: for OpenCV alone
    Path("pictures/bomb.hdr").write_bytes(b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 30000 +X 30000\n\2\2\x75\x30")
    said |= {"bomb.tif": "claims to have 225000000 pixels", "bomb.hdr": "claims to have 900000000 pixels"}
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(ran) (w) file closefile\n"
    Path("pictures/program.jpg").write_bytes(postscript)
    said["program.jpg"] = "PostScript files are programs and are not run"
    Image.new("RGB", (30_000, 1)).save("pictures/thin.png")
    said["thin.png"] = "a picture of 30000 x 1 pixels is too thin"
    Path("pictures/page.png").write_text("<svg/>")
    said["page.png"] = "not a picture of a known format"
    rows = rows_of("--batch-size", "2", status=1)
    assert rows.pop("good.png")["status"] == "ok"
    assert set(rows) == set(said)
    for key, text in said.items():
        assert rows[key]["status"] == "error"
        assert rows[key]["error"].startswith("PictureError: ")
        assert text in rows[key]["error"]
    assert [path.name for path in Path("out/overlays").iterdir()] == ["good.png.grad-cam.jpg"]
