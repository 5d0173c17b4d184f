"""Image files of every kind: what is read is what was stored, and every refusal is one line that
names the file.
"""

import io
import os
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_data import refused

from infoseg_fast.data import raster
from infoseg_fast.data.images import (
    describe,
    georeference_of,
    image_endings,
    page_count,
    read_label,
    read_with,
)
from infoseg_fast.data.pillow import Jpeg2000Reader
from infoseg_fast.data.reader import ReadOptions
from infoseg_fast.errors import DataError

ROWS, COLUMNS = 37, 50


def read_image(path: Path, page: int = 0, **options):
    return read_with(path, ReadOptions(**options), page)


def read_window(path: Path, row: int, column: int, height: int, width: int, options: ReadOptions | None = None):
    return read_with(path, options or ReadOptions(), window=(row, column, height, width))


def random_pixels(dtype: str, bands: int = 1, largest: int = 2**16 - 1, seed: int = 0) -> np.ndarray:
    """[bands, ROWS, COLUMNS] that use the whole range of the dtype, up to `largest`."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(0, 1000, (bands, ROWS, COLUMNS)).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, min(limits.max, largest), (bands, ROWS, COLUMNS), dtype=dtype, endpoint=True)


def last(pixels: np.ndarray) -> np.ndarray:
    """Bands last, as writers take them; a single band without that axis."""
    return pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))


def assert_reads(path: Path, expected: np.ndarray, **options) -> None:
    """The whole image and a window of it are the expected values, and the description announces
    them.
    """
    found = read_image(path, **options)
    assert found.pixels.dtype == expected.dtype and found.pixels.dtype.isnative
    assert np.array_equal(found.pixels, expected) and found.pixels.flags.c_contiguous
    described = describe(path)
    assert (described.height, described.width, described.dtype) == (*expected.shape[1:], expected.dtype)
    window = read_window(path, 5, 3, 20, 44, ReadOptions(**options))
    assert np.array_equal(window.pixels, expected[:, 5:25, 3:47])


# Depth and byte order

LAYOUTS = {
    "strips": {},
    "short strips": {"rowsperstrip": 5, "compression": "deflate"},
    "tiles": {"tile": (16, 32), "compression": "lzw"},
    "BigTIFF": {"bigtiff": True, "tile": (16, 16), "compression": "zstd"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"])
def test_tiff_of_every_dtype_and_byte_order(tmp_path, dtype, order, layout):
    pixels = random_pixels(dtype, largest=2**32 - 1)
    tifffile.imwrite(tmp_path / "x.tif", last(pixels), byteorder=order, **LAYOUTS[layout])
    assert_reads(tmp_path / "x.tif", pixels)


@pytest.mark.parametrize(("stored", "read"), [("int8", "int16"), ("float16", "float32")])
def test_narrow_types_are_widened_without_loss(tmp_path, stored, read):
    pixels = random_pixels(stored)
    tifffile.imwrite(tmp_path / "x.tif", last(pixels))
    assert_reads(tmp_path / "x.tif", pixels.astype(read))


@pytest.mark.parametrize("dtype", ["int64", "uint64", "complex64"])
def test_types_that_are_not_accepted_are_named(tmp_path, dtype):
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((9, 9), dtype))
    refused(lambda: describe(tmp_path / "x.tif"), "x.tif", dtype, "float64")


@pytest.mark.parametrize("bands", [2, 3, 4, 7, 64])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bands_in_every_planar_configuration(tmp_path, bands, planar, layout):
    pixels = random_pixels("uint16", bands)
    given_ = pixels if planar == "separate" else last(pixels)
    colours = "rgb" if bands == 3 else "minisblack"
    tifffile.imwrite(tmp_path / "x.tif", given_, photometric=colours, planarconfig=planar, **LAYOUTS[layout])
    assert_reads(tmp_path / "x.tif", pixels)


def test_more_than_64_bands_have_to_be_chosen(tmp_path):
    pixels = random_pixels("uint8", 70)
    tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="minisblack", planarconfig="separate")
    refused(lambda: read_image(tmp_path / "x.tif"), "70 bands", "--bands")
    assert np.array_equal(read_image(tmp_path / "x.tif", bands=[70, 1, 1]).pixels, pixels[[69, 0, 0]])
    refused(lambda: read_image(tmp_path / "x.tif", bands=[71]), "no band 71", "70")
    refused(lambda: read_image(tmp_path / "x.tif", bands=[0]), "--bands")


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_16_bit_png_of_every_colour_type(tmp_path, bands):
    pixels = random_pixels("uint16", bands, largest=4095)
    (tmp_path / "x.png").write_bytes(imagecodecs.png_encode(last(pixels)))
    assert_reads(tmp_path / "x.png", pixels)
    assert describe(tmp_path / "x.png").alpha == (bands in (2, 4))


@pytest.mark.parametrize(
    ("codec", "dtype", "bands", "how"),
    [
        ("JPEGXL", np.uint8, 3, {"lossless": True}),
        ("JPEGXL", np.uint16, 2, {"lossless": True}),
        ("JPEGXL", np.float32, 1, {"lossless": True}),
        ("AVIF", np.uint16, 3, {"level": 100, "bitspersample": 10}),
    ],
)
def test_jpeg_xl_and_avif_in_full_depth(tmp_path, monkeypatch, codec, dtype, bands, how):
    values = (np.random.default_rng(0).random((20, 30, bands)) * (1 if dtype == np.float32 else 255)).astype(dtype)
    values = values * 4 + 3 if dtype == np.uint16 else values
    path = tmp_path / ("x.jxl" if codec == "JPEGXL" else "x.avif")
    encoded = values[..., 0] if bands == 1 else values
    path.write_bytes(getattr(imagecodecs, f"{codec.lower()}_encode")(encoded, **how))
    found = read_image(path).pixels
    assert found.dtype == dtype and np.array_equal(found, values.transpose(2, 0, 1))
    assert path.suffix in image_endings() and describe(path).alpha == (bands == 2)
    (path.parent / f"y{path.suffix}").write_bytes(path.read_bytes())
    monkeypatch.setattr(getattr(imagecodecs, codec), "available", False)
    refused(lambda: read_image(path.parent / f"y{path.suffix}"), f"no codec {codec}")


@pytest.mark.parametrize(
    ("bands", "dtype", "bits"), [(1, "uint8", 8), (3, "uint8", 8), (1, "uint16", 12), (3, "uint16", 16)]
)
@pytest.mark.parametrize("wrapped", ["jp2", "j2k"])
@pytest.mark.parametrize("rasterio", [True, False])
def test_jpeg_2000_in_full_depth(tmp_path, monkeypatch, bands, dtype, bits, wrapped, rasterio):
    pixels = random_pixels(dtype, bands, largest=2**bits - 1)
    path = tmp_path / f"x.{wrapped}"
    path.write_bytes(
        imagecodecs.jpeg2k_encode(last(pixels), level=0, reversible=True, bitspersample=bits, codecformat=wrapped)
    )
    if rasterio:
        pytest.importorskip("rasterio")
    else:
        monkeypatch.setattr(raster, "available", lambda: False)
        assert np.array_equal(Jpeg2000Reader(path).decode(0, False), pixels)
    assert_reads(path, pixels)


# Colours


@pytest.mark.parametrize("ending", ["png", "tif", "bmp", "gif"])
def test_palettes_become_colours_and_labels_keep_the_indices(tmp_path, ending):
    indices = random_pixels("uint8", largest=9)
    colours = np.random.default_rng(1).integers(0, 256, (256, 3), dtype=np.uint8)
    image = Image.fromarray(indices[0], "P")
    image.putpalette(colours.ravel().tolist())
    image.save(tmp_path / f"x.{ending}")
    assert_reads(tmp_path / f"x.{ending}", np.ascontiguousarray(colours[indices[0]].transpose(2, 0, 1)))
    if ending != "gif":  # whose writer sorts the palette
        assert np.array_equal(read_label(tmp_path / f"x.{ending}"), indices[0])


def test_a_palette_of_16_bits_keeps_its_depth(tmp_path):
    indices = random_pixels("uint8")
    colours = np.random.default_rng(1).integers(0, 2**16, (3, 256), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "x.tif", indices[0], photometric="palette", colormap=colours)
    assert_reads(tmp_path / "x.tif", colours[:, indices[0]])


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_one_bit_is_black_and_white_and_of_labels_0_and_1(tmp_path, ending):
    bits = random_pixels("uint8", largest=1)
    Image.fromarray(bits[0] * 255).convert("1").save(tmp_path / f"x.{ending}")
    assert_reads(tmp_path / f"x.{ending}", bits * np.uint8(255))
    assert np.array_equal(read_label(tmp_path / f"x.{ending}"), bits[0])


@pytest.mark.parametrize("largest", [3, 15, 5])
def test_labels_of_fewer_grey_levels_are_as_stored(tmp_path, largest):
    values = random_pixels("uint8", largest=largest)[0]
    path = tmp_path / "x.pgm"
    path.write_bytes(f"P5 {COLUMNS} {ROWS} {largest}\n".encode() + values.tobytes())
    if largest in (3, 15):  # a palette image of 2 or 4 bits, whose header is changed to grey
        path = tmp_path / "x.png"
        image = Image.fromarray(values, "P")
        image.putpalette(bytes(3 * (largest + 1)))
        image.save(path)
        data = bytearray(path.read_bytes())
        data[25] = 0
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
        palette = data.index(b"PLTE") - 4
        del data[palette : palette + 12 + int.from_bytes(data[palette : palette + 4], "big")]
        path.write_bytes(data)
    assert_reads(path, np.rint(values[None] * 255.0 / largest).astype(np.uint8))
    assert np.array_equal(read_label(path), values)


def test_white_is_the_largest_value_where_the_file_stores_it_as_0(tmp_path):
    pixels = random_pixels("uint16")
    tifffile.imwrite(tmp_path / "x.tif", last(pixels), photometric="miniswhite")
    assert_reads(tmp_path / "x.tif", 65535 - pixels)


def test_white_stored_as_0_leaves_the_alpha_as_it_is(tmp_path):
    stored = random_pixels("uint8", 2)
    tifffile.imwrite(tmp_path / "x.tif", last(stored), photometric="miniswhite", extrasamples=["unassalpha"])
    assert_reads(tmp_path / "x.tif", np.stack([255 - stored[0], stored[1]]))


def test_an_alpha_channel_beside_palette_indices(tmp_path):
    indices, alpha = random_pixels("uint8", 2)
    colours = np.random.default_rng(1).integers(0, 256, (256, 3), dtype=np.uint8)
    image = Image.fromarray(indices, "P")
    image.putpalette(colours.ravel().tolist())
    image = image.convert("PA")
    image.putalpha(Image.fromarray(alpha))
    image.save(tmp_path / "x.tif")
    expected = np.concatenate([colours[indices].transpose(2, 0, 1), alpha[None]])
    assert_reads(tmp_path / "x.tif", expected)
    masked = read_image(tmp_path / "x.tif", alpha="mask")
    assert np.array_equal(masked.pixels, expected[:3]) and np.array_equal(masked.valid, alpha > 0)


@pytest.mark.parametrize("orientation", [3, 6])
def test_ycbcr_colours_that_pillow_would_turn_are_refused(tmp_path, orientation):
    image = Image.fromarray(last(random_pixels("uint8", 3))).convert("YCbCr")
    image.save(tmp_path / "x.tif", compression="tiff_lzw", tiffinfo={274: orientation})
    refused(lambda: read_image(tmp_path / "x.tif"), "x.tif", "orientation", "RGB")


@pytest.mark.parametrize("photometric", ["RGB", "MINISBLACK"])
def test_jpeg_planes_one_after_the_other(tmp_path, photometric):
    rasterio = pytest.importorskip("rasterio")
    pixels = np.sort(random_pixels("uint8", 3), axis=2)
    write_raster(rasterio, tmp_path / "x.tif", pixels, compress="jpeg", interleave="band", photometric=photometric)
    with rasterio.open(tmp_path / "x.tif") as dataset:
        assert_reads(tmp_path / "x.tif", dataset.read())


def fits(values: np.ndarray, bits: int, *more: str) -> bytes:
    """A FITS file of big-endian values [rows, columns] or [planes, rows, columns]."""
    cards = ["SIMPLE  = T", f"BITPIX  = {bits}", f"NAXIS   = {values.ndim}"]
    cards += [f"NAXIS{axis}  = {n}" for axis, n in enumerate(values.shape[::-1], 1)]
    head = b"".join(f"{card[:10]}{card[10:]:>20}".ljust(80).encode() for card in [*cards, *more]) + b"END".ljust(80)
    return b"".join(part.ljust(-(-len(part) // 2880) * 2880, fill)
                    for part, fill in ((head, b" "), (values.tobytes(), b"\0")))  # fmt: skip


def test_fits_that_pillow_would_change_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(raster, "available", lambda: False)
    values = random_pixels("uint8")[0]
    (tmp_path / "x.fits").write_bytes(fits(values, 8))
    assert_reads(tmp_path / "x.fits", values[None, ::-1].copy())
    values = random_pixels("float32")[0]
    for number, content in enumerate((
        fits(random_pixels("int16")[0].astype(">i2"), 16),
        fits(values.astype(">f8"), -64),
        fits(values.astype(">f4"), -32),
        fits(random_pixels("uint8")[0], 8, "BZERO   = 5.0"),
        fits(random_pixels("uint8", 3), 8),
    )):  # fmt: skip
        (tmp_path / f"{number}.fits").write_bytes(content)
        refused(lambda n=number: read_image(tmp_path / f"{n}.fits"), f"{number}.fits", "FITS file of more than 8 bits")


@pytest.mark.parametrize("ending", ["jpg", "tif"])
def test_cmyk_is_converted_and_the_description_says_so(tmp_path, ending):
    path = tmp_path / f"x.{ending}"
    Image.fromarray(last(random_pixels("uint8", 3))).convert("CMYK").save(path)
    assert_reads(path, np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1).copy())
    assert "CMYK" in describe(path).note


def test_colour_spaces_and_depths_that_cannot_be_kept_are_refused(tmp_path, monkeypatch):
    Image.fromarray(last(random_pixels("uint8", 3)), "LAB").save(tmp_path / "lab.tif")
    refused(lambda: read_image(tmp_path / "lab.tif"), "lab.tif", "CIELAB", "RGB")
    tifffile.imwrite(tmp_path / "cmyk.tif", last(random_pixels("uint16", 4)), photometric="separated")
    refused(lambda: read_image(tmp_path / "cmyk.tif"), "cmyk.tif", "CMYK", "uint16")
    monkeypatch.setattr(raster, "available", lambda: False)
    pixels = random_pixels("uint16", 3)
    (tmp_path / "x.ppm").write_bytes(b"P6 # deep\n50 37\n65535\n" + last(pixels).astype(">u2").tobytes())
    refused(lambda: read_image(tmp_path / "x.ppm"), "x.ppm", "16 bits", "rasterio")


def test_a_deep_ppm_is_read_by_rasterio(tmp_path):
    pytest.importorskip("rasterio")
    pixels = random_pixels("uint16", 3)
    (tmp_path / "x.ppm").write_bytes(b"P6\n50 37\n65535\n" + last(pixels).astype(">u2").tobytes())
    assert_reads(tmp_path / "x.ppm", pixels)


@pytest.mark.parametrize("ending", ["webp", "jpg", "bmp", "tga", "ppm", "png", "tif"])
def test_8_bit_colour_is_as_pillow_decodes_it(tmp_path, ending):
    path = tmp_path / f"x.{ending}"
    Image.fromarray(last(random_pixels("uint8", 3))).save(path)
    assert_reads(path, np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1).copy())


def test_exif_orientation_is_not_applied(tmp_path):
    pixels = random_pixels("uint8", 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(last(pixels)).save(tmp_path / "x.png", exif=exif)
    assert_reads(tmp_path / "x.png", pixels)


def test_a_cameras_jpeg_with_previews_is_its_first_frame_and_says_so(tmp_path):
    frames = [Image.fromarray(last(random_pixels("uint8", 3, seed=seed))) for seed in (0, 1)]
    frames[0].save(tmp_path / "x.jpg", format="MPO", save_all=True, append_images=frames[1:])
    assert_reads(tmp_path / "x.jpg", np.asarray(Image.open(tmp_path / "x.jpg")).transpose(2, 0, 1).copy())
    assert "further frames" in describe(tmp_path / "x.jpg").note


def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    refused(lambda: describe(tmp_path / "x.png"), "x.png", "not a regular file")


# Alpha, no-data and masks


def grey_png(values: np.ndarray, bits: int, transparent: int) -> bytes:
    """A grey PNG of 2, 4 or 16 bits with a transparent value."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")

    rows, columns = values.shape
    each = np.array(values, ">u2").view(np.uint8).reshape(rows, columns, 2)
    stored = np.packbits(np.unpackbits(each, axis=2)[..., 16 - bits :].reshape(rows, -1), axis=1)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", columns.to_bytes(4, "big") + rows.to_bytes(4, "big") + bytes([bits, 0, 0, 0, 0]))
        + chunk(b"tRNS", transparent.to_bytes(2, "big"))
        + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in stored)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("bits", "scale"), [(2, 85), (4, 17), (16, 1)])
def test_a_transparent_value_of_a_grey_png(tmp_path, bits, scale):
    values = random_pixels("uint16", largest=2**bits - 1)[0]
    transparent = int(values[3, 4])
    (tmp_path / "x.png").write_bytes(grey_png(values, bits, transparent))
    opaque = 65535 if bits == 16 else 255
    dtype = np.uint16 if bits == 16 else np.uint8
    assert_reads(
        tmp_path / "x.png", np.stack([values * scale, np.where(values == transparent, 0, opaque)]).astype(dtype)
    )


@pytest.mark.parametrize("kind", ["palette", "white is 0", "4 bits", "1 bit"])
def test_the_no_data_value_of_a_file_is_a_stored_value(tmp_path, kind):
    rasterio = pytest.importorskip("rasterio")
    largest, nodata = {"palette": (255, 7), "white is 0": (255, 0), "4 bits": (15, 15), "1 bit": (1, 1)}[kind]
    stored = random_pixels("uint8", largest=largest)
    stored[:, 5] = nodata
    how = {
        "palette": {"photometric": "PALETTE"}, "white is 0": {"photometric": "MINISWHITE"}, "4 bits": {"nbits": 4},
        "1 bit": {"nbits": 1},
    }[kind]  # fmt: skip
    write_raster(rasterio, tmp_path / "x.tif", stored, nodata=nodata, **how)
    if kind == "palette":
        with rasterio.open(tmp_path / "x.tif", "r+") as dataset:
            dataset.write_colormap(1, {value: (value, 255 - value, 3, 255) for value in range(256)})
    found = read_image(tmp_path / "x.tif")
    assert np.array_equal(found.valid, stored[0] != nodata)
    window = read_window(tmp_path / "x.tif", 4, 4, 10, 10)
    assert np.array_equal(window.valid, found.valid[4:14, 4:14])
    label = read_label(tmp_path / "x.tif")
    assert np.array_equal(label, np.where(stored[0] == nodata, 255, stored[0]))


@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("compression", ["lerc", "lerc_deflate"])
@pytest.mark.parametrize("where", ["all bands", "one band"])
def test_nan_in_lerc_blocks_has_no_data(tmp_path, interleave, compression, where):
    rasterio = pytest.importorskip("rasterio")
    pixels = random_pixels("float32", 3)
    pixels[slice(3) if where == "all bands" else 1, 3:9, 4:] = np.nan
    write_raster(rasterio, tmp_path / "x.tif", pixels, compress=compression, interleave=interleave)
    if where == "one band":  # where an old GDAL writes no NaN
        with rasterio.open(tmp_path / "x.tif") as dataset:
            pixels = dataset.read()
    found = read_image(tmp_path / "x.tif")
    valid = np.ones(pixels.shape[1:], bool) if found.valid is None else found.valid
    assert np.array_equal(valid, np.isfinite(pixels).all(axis=0))
    assert np.array_equal(found.pixels, np.nan_to_num(pixels))


@pytest.mark.parametrize("largest", [254, 255])
def test_the_alpha_channel_of_lerc_blocks(tmp_path, largest):
    rasterio = pytest.importorskip("rasterio")
    pixels = random_pixels("uint8", 4)
    pixels[3] = np.where(pixels[3] > 100, largest, 0)
    pixels[:, pixels[3] == 0] = 0  # colours that a mask does not keep
    write_raster(rasterio, tmp_path / "x.tif", pixels, compress="lerc", photometric="RGB", ALPHA="YES")
    assert_reads(tmp_path / "x.tif", pixels)


@pytest.mark.parametrize("endianness", ["LITTLE", "BIG"])
def test_samples_of_24_bits_are_refused(tmp_path, endianness):
    rasterio = pytest.importorskip("rasterio")
    pixels = random_pixels("uint32", largest=2**24 - 1)
    write_raster(rasterio, tmp_path / "x.tif", pixels, nbits=24, ENDIANNESS=endianness)
    refused(lambda: read_image(tmp_path / "x.tif"), "x.tif", "24 bits")


@pytest.mark.parametrize("nodata", [None, 7])
def test_a_sparse_file_of_one_block_that_was_never_written(tmp_path, nodata):
    rasterio = pytest.importorskip("rasterio")
    how = {"driver": "GTiff", "width": COLUMNS, "height": ROWS, "count": 1, "dtype": "uint8", "nodata": nodata}
    with rasterio.open(tmp_path / "x.tif", "w", blockysize=ROWS, SPARSE_OK=True, **how) as dataset:
        dataset.update_tags(text="x" * 2 * ROWS * COLUMNS)  # longer than the pixels
    assert_reads(tmp_path / "x.tif", np.full((1, ROWS, COLUMNS), nodata or 0, np.uint8))


@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
def test_alpha_is_a_band_or_a_mask(tmp_path, ending):
    pixels = random_pixels("uint8", 4)
    pixels[3, :9] = 0
    pixels[3, 9:] = pixels[3, 9:].clip(1)
    given_ = {"lossless": True, "exact": True} if ending == "webp" else {}
    Image.fromarray(last(pixels)).save(tmp_path / f"x.{ending}", **given_)
    assert_reads(tmp_path / f"x.{ending}", pixels)
    masked = read_image(tmp_path / f"x.{ending}", alpha="mask")
    assert np.array_equal(masked.pixels, pixels[:3]) and np.array_equal(masked.valid, pixels[3] > 0)
    assert read_image(tmp_path / f"x.{ending}").valid is None
    refused(lambda: read_image(tmp_path / f"x.{ending}", alpha="white"), "--alpha", "white")


def test_grey_with_alpha_and_transparent_colours_keep_the_alpha(tmp_path):
    pixels = random_pixels("uint8", 2)
    Image.fromarray(last(pixels), "LA").save(tmp_path / "la.png")
    assert_reads(tmp_path / "la.png", pixels)
    Image.fromarray(pixels[0]).save(tmp_path / "l.png", transparency=int(pixels[0, 0, 0]))
    alpha = np.where(pixels[0] == pixels[0, 0, 0], 0, 255).astype(np.uint8)
    assert_reads(tmp_path / "l.png", np.stack([pixels[0], alpha]))


@pytest.mark.parametrize(("dtype", "value"), [("uint16", 0), ("int16", -9999), ("float32", -3.4028234663852886e38)])
def test_the_no_data_value_of_the_file_and_of_the_option(tmp_path, dtype, value):
    pixels = random_pixels(dtype, 3, largest=30000)
    pixels[pixels == np.array(value, dtype)] = 1
    pixels[:, :9] = value
    pixels[0, 20] = value  # in one band alone: the pixel has data
    tag = (42113, "s", 0, repr(value), True)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack", planarconfig="separate", extratags=[tag])
    tifffile.imwrite(tmp_path / "b.tif", pixels, photometric="minisblack", planarconfig="separate")
    expected = np.ones((ROWS, COLUMNS), bool)
    expected[:9] = False
    assert describe(tmp_path / "a.tif").nodata == pytest.approx(value)
    for found in (read_image(tmp_path / "a.tif"), read_image(tmp_path / "b.tif", nodata=value)):
        assert np.array_equal(found.valid, expected) and np.array_equal(found.pixels, pixels)
    assert read_image(tmp_path / "b.tif").valid is None
    expected[20] = False
    assert np.array_equal(read_image(tmp_path / "a.tif", bands=[1]).valid, expected)
    window = read_window(tmp_path / "a.tif", 4, 4, 10, 10)
    assert np.array_equal(window.valid, expected[4:14, 4:14])


def test_values_that_are_not_finite_are_invalid_and_become_0(tmp_path):
    pixels = random_pixels("float32", 2)
    pixels[0, 3, 4], pixels[1, 5, 6] = np.nan, -np.inf
    tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="minisblack", planarconfig="separate")
    found = read_image(tmp_path / "x.tif")
    assert np.argwhere(~found.valid).tolist() == [[3, 4], [5, 6]]
    assert found.pixels[0, 3, 4] == found.pixels[1, 5, 6] == 0 and np.isfinite(found.pixels).all()


def test_a_mask_beside_the_file(tmp_path):
    pixels = random_pixels("uint8", 3)
    mask = np.zeros((ROWS, COLUMNS), np.uint8)
    mask[10:, 7:] = 255
    tifffile.imwrite(tmp_path / "x.tif", last(pixels), photometric="rgb")
    tifffile.imwrite(tmp_path / "x.tif.msk", mask)
    assert_reads(tmp_path / "x.tif", pixels)
    assert describe(tmp_path / "x.tif").masked and np.array_equal(read_image(tmp_path / "x.tif").valid, mask > 0)


# Pages


def test_several_pages_are_refused_unless_the_option_says_which(tmp_path):
    stack = random_pixels("uint16", 5)
    tifffile.imwrite(tmp_path / "x.tif", stack, photometric="minisblack")
    refused(lambda: read_image(tmp_path / "x.tif"), "x.tif", "5 pages", "--pages first", "--pages each")
    assert np.array_equal(read_image(tmp_path / "x.tif", pages="first").pixels, stack[:1])
    assert np.array_equal(read_image(tmp_path / "x.tif", pages="each", page=4).pixels, stack[4:])
    refused(lambda: read_image(tmp_path / "x.tif", pages="each", page=5), "no page 6")
    refused(lambda: read_image(tmp_path / "x.tif", pages="all"), "--pages", "all")
    frames = [Image.fromarray(page.astype(np.uint8)) for page in stack]
    for ending in ("gif", "webp"):
        frames[0].save(tmp_path / f"x.{ending}", save_all=True, append_images=frames[1:])
        refused(lambda ending=ending: read_image(tmp_path / f"x.{ending}"), "5 pages")


def test_channels_that_imagej_or_ome_declare_are_bands(tmp_path):
    pixels = random_pixels("uint16", 5)
    tifffile.imwrite(tmp_path / "x.tif", pixels, imagej=True, metadata={"axes": "CYX"})
    tifffile.imwrite(tmp_path / "x.ome.tif", pixels, metadata={"axes": "CYX"})
    for name in ("x.tif", "x.ome.tif"):
        assert_reads(tmp_path / name, pixels)
    tifffile.imwrite(tmp_path / "z.tif", pixels, imagej=True, metadata={"axes": "ZYX"})
    refused(lambda: read_image(tmp_path / "z.tif"), "5 pages")


def test_the_stacks_of_imagej_that_have_one_header(tmp_path):
    pixels = random_pixels("uint16", 4)
    tifffile.imwrite(
        tmp_path / "x.tif", pixels[0], byteorder=">", description="ImageJ=1.54f\nimages=4\nslices=4\n", metadata=None
    )
    with open(tmp_path / "x.tif", "ab") as file:
        header = tifffile.TiffFile(tmp_path / "x.tif").pages[0]
        file.truncate(header.dataoffsets[0] + pixels[0].nbytes)
        file.seek(0, os.SEEK_END)
        file.write(pixels[1:].astype(">u2").tobytes())
    assert page_count(tmp_path / "x.tif") == 4
    assert np.array_equal(read_image(tmp_path / "x.tif", pages="each", page=3).pixels, pixels[3:])


def test_the_stacks_of_tifffile_that_have_one_header(tmp_path):
    pixels = random_pixels("uint16", 4)
    tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="minisblack", truncate=True)
    assert page_count(tmp_path / "x.tif") == 4
    refused(lambda: read_image(tmp_path / "x.tif"), "4 pages")
    assert np.array_equal(read_image(tmp_path / "x.tif", pages="each", page=3).pixels, pixels[3:])


# Rasters


@pytest.fixture
def rasterio():
    return pytest.importorskip("rasterio")


def write_raster(rasterio, path: Path, pixels: np.ndarray, driver: str = "GTiff", **options) -> None:
    from rasterio.transform import from_origin

    place = {"crs": "EPSG:32633", "transform": from_origin(400000, 5800000, 10, 10)}
    with rasterio.open(
        path, "w", driver=driver, height=ROWS, width=COLUMNS, count=len(pixels), dtype=pixels.dtype, **place | options
    ) as dataset:
        dataset.write(pixels)


@pytest.mark.parametrize("interleave", ["pixel", "band"])
def test_a_geotiff_has_its_pixels_no_data_and_georeference(tmp_path, rasterio, interleave):
    pixels = random_pixels("uint16", 5, largest=4095)
    pixels[:, :, :6] = 0
    path = tmp_path / "x.tif"
    write_raster(
        rasterio, path, pixels, nodata=0, tiled=True, blockxsize=16, blockysize=16, compress="deflate", predictor=2,
        interleave=interleave,
    )  # fmt: skip
    assert_reads(path, pixels)
    found = read_image(path, bands=[4, 1])
    assert np.array_equal(found.pixels, pixels[[3, 0]]) and not found.valid[:, :6].any()
    place = georeference_of(path)
    assert place.transform == (10, 0, 400000, 0, -10, 5800000)
    assert rasterio.crs.CRS.from_wkt(place.crs).to_epsg() == 32633
    write_raster(rasterio, tmp_path / "no_crs.tif", pixels, crs=None)
    assert georeference_of(tmp_path / "no_crs.tif") == ("", place.transform, (), ())
    with rasterio.open(path) as dataset:
        assert np.array_equal(dataset.read(), pixels)
        assert np.array_equal(dataset.dataset_mask() > 0, read_image(path).valid)


def test_overviews_and_internal_masks_of_gdal_are_no_pages(tmp_path, rasterio):
    pixels = random_pixels("uint8", 3)
    path = tmp_path / "x.tif"
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        write_raster(rasterio, path, pixels, tiled=True, blockxsize=16, blockysize=16)
        with rasterio.open(path, "r+") as dataset:
            mask = np.zeros((ROWS, COLUMNS), bool)
            mask[5:30, 5:30] = True
            dataset.write_mask(mask)
            dataset.build_overviews([2, 4])
    assert page_count(path) == 1
    assert_reads(path, pixels)
    assert np.array_equal(read_image(path).valid, mask)


@pytest.mark.parametrize(("driver", "name"), [("ENVI", "x.dat"), ("HFA", "x.img"), ("PCIDSK", "x.pix")])
def test_other_rasters_of_gdal(tmp_path, rasterio, driver, name):
    pixels = random_pixels("uint16", 6)
    write_raster(rasterio, tmp_path / name, pixels, driver)
    assert_reads(tmp_path / name, pixels)
    assert georeference_of(tmp_path / name).transform == (10, 0, 400000, 0, -10, 5800000)


def virtual(path: Path, source: str, bands: list[str]) -> None:
    """A VRT of the bands of a source, with further elements of each band."""
    content = "".join(
        f'<VRTRasterBand dataType="Byte" band="{number}">{more}<SimpleSource><SourceFilename relativeToVRT="1">{source}'
        f"</SourceFilename><SourceBand>{number}</SourceBand></SimpleSource></VRTRasterBand>"
        for number, more in enumerate(bands, 1)
    )
    path.write_text(f'<VRTDataset rasterXSize="{COLUMNS}" rasterYSize="{ROWS}">{content}</VRTDataset>')


@pytest.mark.parametrize("nodata", [None, 7])
def test_the_palette_of_a_raster_becomes_colours(tmp_path, rasterio, nodata):
    indices = random_pixels("uint8", largest=99)
    write_raster(rasterio, tmp_path / "x.tif", indices)
    colours = np.random.default_rng(1).integers(0, 256, (100, 3), dtype=np.uint8)
    entries = "".join(f'<Entry c1="{r}" c2="{g}" c3="{b}" c4="255"/>' for r, g, b in colours.tolist())
    more = "" if nodata is None else f"<NoDataValue>{nodata}</NoDataValue>"
    more += f"<ColorInterp>Palette</ColorInterp><ColorTable>{entries}</ColorTable>"
    virtual(tmp_path / "x.vrt", "x.tif", [more])
    assert_reads(tmp_path / "x.vrt", np.ascontiguousarray(colours[indices[0]].transpose(2, 0, 1)))
    valid = read_image(tmp_path / "x.vrt").valid
    assert valid is None if nodata is None else np.array_equal(valid, indices[0] != nodata)
    label = read_label(tmp_path / "x.vrt")
    assert np.array_equal(label, indices[0] if nodata is None else np.where(indices[0] == nodata, 255, indices[0]))


def test_bands_with_different_no_data_values(tmp_path, rasterio):
    pixels = random_pixels("uint8", 3, largest=2)
    write_raster(rasterio, tmp_path / "x.tif", pixels)
    virtual(tmp_path / "x.vrt", "x.tif", [f"<NoDataValue>{value}</NoDataValue>" for value in (0, 1, 0)])
    missing = (pixels == np.array([0, 1, 0], np.uint8)[:, None, None]).all(axis=0)
    assert missing.any() and np.array_equal(read_image(tmp_path / "x.vrt").valid, ~missing)
    assert np.array_equal(read_window(tmp_path / "x.vrt", 3, 4, 20, 30).valid, ~missing[3:23, 4:34])


def test_subdatasets_are_named(tmp_path, rasterio):
    from scipy.io import netcdf_file

    with netcdf_file(tmp_path / "x.nc", "w") as file:
        for name in ("rows", "columns"):
            file.createDimension(name, 5)
        for name in ("red", "near"):
            file.createVariable(name, "f4", ("rows", "columns"))[:] = 1
    refused(lambda: read_image(tmp_path / "x.nc"), "2 subdatasets", "x.nc", ":red, ", ":near")


def test_without_rasterio_a_raster_names_the_extra(tmp_path, rasterio, monkeypatch):
    write_raster(rasterio, tmp_path / "x.img", random_pixels("uint8"), "HFA")
    write_raster(rasterio, tmp_path / "x.tif", random_pixels("uint8"))
    monkeypatch.setattr(raster, "available", lambda: False)
    refused(lambda: read_image(tmp_path / "x.img"), "x.img", "infoseg-fast[geo]")
    assert read_image(tmp_path / "x.tif").pixels.size and describe(tmp_path / "x.tif").georeferenced
    refused(lambda: georeference_of(tmp_path / "x.tif"), "x.tif", "infoseg-fast[geo]")


# Labels


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32", "int8"])
def test_labels_of_any_integer_dtype(tmp_path, dtype):
    values = (random_pixels("uint8") % 6).astype(dtype)
    tifffile.imwrite(tmp_path / "x.tif", values[0], byteorder=">")
    assert (
        np.array_equal(read_label(tmp_path / "x.tif", 6), values[0])
        and read_label(tmp_path / "x.tif").dtype == np.uint8
    )
    refused(lambda: read_label(tmp_path / "x.tif", 5), "label", "x.tif", "holds 5", "below 5")


@pytest.mark.parametrize("wrong", [-1, 256, 300, 65535])
def test_label_values_that_8_bits_do_not_hold_are_refused(tmp_path, wrong):
    values = np.zeros((ROWS, COLUMNS), np.int32)
    values[3, 4], values[5, 6] = wrong, 255
    tifffile.imwrite(tmp_path / "x.tif", values)
    refused(lambda: read_label(tmp_path / "x.tif"), f"holds {wrong}", "below 255", "ignore")


def test_no_data_of_a_label_raster_is_ignored(tmp_path, rasterio):
    values = np.full((1, ROWS, COLUMNS), 3, np.int16)
    values[0, :5] = -9999
    write_raster(rasterio, tmp_path / "x.tif", values, nodata=-9999)
    found = read_label(tmp_path / "x.tif", 4)
    assert (found[:5] == 255).all() and (found[5:] == 3).all()


# Damage and limits


def test_a_huge_image_is_refused_by_its_header(tmp_path):
    def chunk(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")

    side = (100_000).to_bytes(4, "big")
    for bits in (8, 16):
        header = side + side + bytes([bits, 2, 0, 0, 0])
        (tmp_path / "x.png").write_bytes(
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", header)
            + chunk(b"IDAT", zlib.compress(bytes(1000)))
            + chunk(b"IEND", b"")
        )
        refused(lambda: read_image(tmp_path / "x.png"), "x.png", "GiB", "at most 4 are accepted (--max-bytes)")


def test_long_and_thin_images_are_read(tmp_path):
    for shape in ((100_000, 1), (1, 100_000)):
        pixels = np.arange(100_000, dtype=np.uint16).reshape(shape) % 999
        tifffile.imwrite(tmp_path / "x.tif", pixels, compression="deflate")
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "x.png")
        assert np.array_equal(read_image(tmp_path / "x.tif").pixels[0], pixels)
        assert np.array_equal(read_image(tmp_path / "x.png").pixels[0], pixels.astype(np.uint8))


def test_what_is_no_image_is_one_line(tmp_path):
    for name, content in {
        "a.png": b"",
        "b.tif": b"II*\0",
        "c.jpg": b"\xff\xd8\xff",
        "d.jp2": b"\xff\x4f\xff\x51",
    }.items():
        (tmp_path / name).write_bytes(content)
        refused(lambda name=name: describe(tmp_path / name), name, "cannot be read")
    refused(lambda: describe(tmp_path), "cannot be read")
    refused(lambda: describe(tmp_path / "none.png"), "none.png", "does not exist")
    refused(lambda: read_window(tmp_path / "a.png", 0, 0, 1, 1), "a.png")


def test_windows_beyond_the_image_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", random_pixels("uint8")[0])
    for window in ((-1, 0, 5, 5), (0, 0, ROWS + 1, 5), (0, COLUMNS - 4, 5, 5), (0, 0, 0, 5)):
        refused(lambda window=window: read_window(tmp_path / "x.tif", *window), "x.tif", "within the image")


def samples() -> dict[str, bytes]:
    """A small valid file of each kind."""
    grey, colour, deep = random_pixels("uint8"), random_pixels("uint8", 3), random_pixels("uint16", 3)
    found = {}
    for ending in ("png", "jpg", "webp", "bmp", "gif", "tga", "ppm"):
        buffer = io.BytesIO()
        Image.fromarray(last(colour)).save(buffer, format={"jpg": "JPEG", "tga": "TGA"}.get(ending, ending.upper()))
        found[ending] = buffer.getvalue()
    found["deep.png"] = imagecodecs.png_encode(last(deep))
    found["jp2"] = imagecodecs.jpeg2k_encode(last(deep), level=0, reversible=True, bitspersample=16)
    for number, layout in enumerate(LAYOUTS.values()):
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, last(deep), photometric="rgb", **layout)
        found[f"{number}.tif"] = buffer.getvalue()
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, last(colour), photometric="ycbcr", compression="jpeg", tile=(16, 16))
    found["jpeg.tif"] = buffer.getvalue()
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.stack([grey[0]] * 3), imagej=True, metadata={"axes": "CYX"})
    found["imagej.tif"] = buffer.getvalue()
    return found


SAMPLES = samples()


def assert_reads_or_refuses(path: Path) -> None:
    """Reading gives the described array or raises DataError of one line, and nothing else."""
    for read in (
        lambda: read_image(path, pages="first"),
        lambda: read_label(path),
        lambda: read_window(path, 0, 0, 3, 3, ReadOptions(pages="first")),
    ):
        try:
            read()
        except DataError as error:
            assert "\n" not in str(error) and str(path.name) in str(error)


@pytest.mark.parametrize("name", SAMPLES)
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path, name, data):
    content = bytearray(SAMPLES[name])
    for position in data.draw(st.lists(st.integers(0, min(len(content) - 1, 400)), max_size=6)):
        content[position] = data.draw(st.integers(0, 255))
    keep = data.draw(st.integers(0, len(content)) | st.just(len(content)))
    path = tmp_path / f"x.{name}"
    path.write_bytes(content[:keep])
    assert_reads_or_refuses(path)


# What damaged files once did: hang, or fill the memory


def patched(path: Path, tag: int, value: int) -> None:
    """Overwrite the value of a tag of the first page of a little-endian TIFF file."""
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].tags[tag].valueoffset
    content = bytearray(path.read_bytes())
    content[offset : offset + 4] = value.to_bytes(4, "little")
    path.write_bytes(content)


@pytest.mark.parametrize("compression", ["deflate", "packbits", "zstd"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_a_last_strip_with_the_rows_of_the_others(tmp_path, compression, planar):
    pixels, path = random_pixels("uint16", 3)[:, :32], tmp_path / "x.tif"
    stored = pixels if planar == "separate" else last(pixels)
    how = {"photometric": "rgb", "planarconfig": planar, "rowsperstrip": 16, "metadata": None}
    tifffile.imwrite(path, stored, compression=compression, **how)
    patched(path, 257, 29)  # ImageLength
    assert_reads(path, pixels[:, :-3])


def test_pages_in_a_circle(tmp_path):
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, random_pixels("uint8")[0])
    content = bytearray(path.read_bytes())
    first = int.from_bytes(content[4:8], "little")
    end = first + 2 + 12 * int.from_bytes(content[first : first + 2], "little")
    content[end : end + 4] = content[4:8]
    path.write_bytes(content)
    try:
        assert page_count(path) == 1  # where tifffile itself ends the chain
    except DataError as error:
        assert "circle" in str(error)


def test_a_width_beyond_the_blocks_of_the_file(tmp_path):
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, random_pixels("uint8")[0], tile=(16, 16), compression="deflate")
    patched(path, 256, 16_711_730)
    refused(lambda: describe(path), "x.tif", "12 of 3133452 blocks")


def test_a_block_beyond_the_end_of_the_file(tmp_path):
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, random_pixels("uint8")[0], rowsperstrip=ROWS, compression="deflate")
    patched(path, 279, 2**31 - 1)
    refused(lambda: read_image(path), "x.tif", "ends before")


def test_a_width_that_the_compressed_bytes_cannot_hold(tmp_path):
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, random_pixels("uint16")[0], rowsperstrip=5, compression="deflate")
    patched(path, 256, 16_711_730)
    refused(lambda: read_image(path), "x.tif", "cannot hold")


def test_a_block_beyond_every_limit(tmp_path):
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, random_pixels("uint8")[0], tile=(16, 16), compression="zstd")
    for tag in (322, 323):
        patched(path, tag, 100_000)
    refused(lambda: read_image(path), "x.tif", "blocks of 9.31 GiB")


def test_the_limit_is_an_option_of_images_and_labels(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", random_pixels("uint16")[0])
    whole = 2 * ROWS * COLUMNS
    assert read_with(tmp_path / "x.tif", ReadOptions(max_bytes=whole)).pixels.nbytes == whole
    refused(lambda: read_with(tmp_path / "x.tif", ReadOptions(max_bytes=whole - 1)), "x.tif", "--max-bytes")
    assert read_window(tmp_path / "x.tif", 0, 0, 5, 5, ReadOptions(max_bytes=50)).pixels.shape == (1, 5, 5)
    tifffile.imwrite(tmp_path / "y.tif", random_pixels("uint8")[0] % 3)
    refused(lambda: read_label(tmp_path / "y.tif", 3, max_bytes=99), "y.tif", "--max-bytes")


@pytest.mark.parametrize(("mode", "bands"), [("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4), ("1", 1), ("P", 1)])
def test_large_pngs_are_read_by_rows_to_the_same_values(mode, bands, tmp_path, monkeypatch):
    pytest.importorskip("rasterio")
    pixels = np.random.default_rng(0).integers(0, 256, (60, 70, bands), dtype=np.uint8)
    picture = Image.fromarray(pixels[..., 0] if bands == 1 else pixels)
    (picture.convert(mode) if mode in "1P" else picture).save(tmp_path / "small.png")
    (tmp_path / "large.png").write_bytes((tmp_path / "small.png").read_bytes())
    expected = read_image(tmp_path / "small.png").pixels
    monkeypatch.setattr("infoseg_fast.data.pillow.LARGE_BYTES", 0)
    assert describe(tmp_path / "large.png").windowed == (mode not in "1P")
    assert np.array_equal(read_image(tmp_path / "large.png").pixels, expected)
    part = read_window(tmp_path / "large.png", 5, 6, 20, 30)
    assert np.array_equal(part.pixels, expected[:, 5:25, 6:36]) and part.valid is None
