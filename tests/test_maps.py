"""Label maps as files: places, windows, products, resumption, faults."""

import csv
import itertools
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from conftest import call
from PIL import Image
from processes import each_rank

import infoseg_fast as isf
from infoseg_fast import tile_labels, tiling
from infoseg_fast.checkpoint import save
from infoseg_fast.data.reader import ReadOptions
from infoseg_fast.data.scaling import Scaling, eight_bit
from infoseg_fast.errors import DataError
from infoseg_fast.maps import Products, predict
from infoseg_fast.maps.pipeline import Ahead, Behind
from infoseg_fast.maps.writers import PngWriter, key_of
from infoseg_fast.output_folder import FolderLock
from infoseg_fast.palette import palette
from infoseg_fast.recipe import DataInfo
from infoseg_fast.recipe.labelling import Labelling
from infoseg_fast.recipe.refinement import colour_moments, refinement_of
from infoseg_fast.run_folder import LAYOUT

rasterio = pytest.importorskip("rasterio")
from rasterio.transform import from_origin  # noqa: E402

K = 4
PLACE = {"crs": "EPSG:32633", "transform": from_origin(4e5, 5e6, 10, 20)}


def labelling(channels=3, scaling=None, names=None, num_classes=K, reading=None):
    torch.manual_seed(1)
    network = isf.InfoSegNet(channels, num_classes, width=8, dim=16, depth=0).train()
    for _ in range(3):
        network(torch.rand(4, channels, 64, 64))
    network = network.eval().requires_grad_(False)
    described = [0.5] * channels, [0.3] * channels, scaling
    data = DataInfo(channels, num_classes, names, *described, reading=reading or ReadOptions())
    arguments = {"in_channels": channels, "num_classes": num_classes, "width": 8, "dim": 16, "depth": 0}
    made = Labelling(network, arguments, data, temperature=300.0)
    images = torch.rand(2, channels, 64, 64)
    moments = colour_moments(made.probabilities(images), images, None, 0)
    return Labelling(network, arguments, data, temperature=300.0, refinement=refinement_of(moments, 0))


@pytest.fixture(scope="module")
def made():
    return isf.Segmenter(labelling())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A RUN as `isf.load` reads it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    folder.mkdir()
    save(folder / "checkpoints", {"layout": LAYOUT, "step": 7, "labelling": labelling().state()}, is_best=True)
    return folder


def pixels_of(rows, columns, bands=3, seed=0):
    """Smooth regions with noise, uint8 [bands, rows, columns]."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(20, 230, (bands, rows // 16 + 1, columns // 16 + 1)).repeat(16, 1).repeat(16, 2)
    return (coarse[:, :rows, :columns] + rng.normal(0, 5, (bands, rows, columns))).clip(0, 255).astype(np.uint8)


def write_scene(path, pixels, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    bands, rows, columns = pixels.shape
    how = {"driver": "GTiff", "dtype": pixels.dtype, "count": bands, "height": rows, "width": columns, **PLACE} | how
    with rasterio.open(path, "w", **how) as file:
        file.write(pixels)
    return path


def values(path):
    with rasterio.open(path) as file:
        return file.read(1)


def files_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_scene_gives_a_geotiff_in_its_place(made, tmp_path):
    pixels = pixels_of(300, 410)
    pixels[:, :40, :70] = 0
    scene = write_scene(tmp_path / "in/scene.tif", pixels, nodata=0, tiled=True, blockxsize=64, blockysize=64)
    assert predict(made, [scene], tmp_path / "out").written == 1
    assert files_in(tmp_path / "out") == {"scene.tif"}
    with rasterio.open(scene) as before, rasterio.open(tmp_path / "out/scene.tif") as after:
        assert (after.crs, after.transform, after.shape) == (before.crs, before.transform, before.shape)
        assert after.dtypes == ("uint8",) and after.nodata == 255 and after.count == 1
        assert after.profile["tiled"] and after.profile["compress"] == "deflate" and after.driver == "GTiff"
        assert after.colormap(1)[1][:3] == tuple(palette(K)[1]) and after.colormap(1)[255][3] == 0
        labels = after.read(1)
    invalid = (pixels == 0).all(axis=0)
    assert (labels[invalid] == 255).all() and labels[~invalid].max() < K and len(np.unique(labels[~invalid])) > 1
    assert np.array_equal(labels, made.segment_array(pixels, ~invalid))
    assert np.array_equal(labels, made.segment_file(scene))


def test_ground_control_points_and_a_transform_without_system_are_kept(made, tmp_path):
    points = [
        rasterio.control.GroundControlPoint(*point) for point in ((0, 0, 10, 50), (0, 40, 11, 50), (40, 0, 10, 49))
    ]
    write_scene(tmp_path / "in/points.tif", pixels_of(40, 50), crs="EPSG:4326", transform=None, gcps=points)
    write_scene(tmp_path / "in/plain.tif", pixels_of(40, 50), crs=None)
    areas, polygons = tmp_path / "areas.csv", tmp_path / "x.gpkg"
    outcome = predict(made, [tmp_path / "in"], tmp_path / "out", Products(areas=areas, polygons=polygons))
    assert outcome.written == 2 and len(outcome.notes) == 1 and "points.tif" in outcome.notes[0]
    with rasterio.open(tmp_path / "out/points.tif") as file:
        found, crs = file.gcps
        assert [(p.row, p.col, p.x, p.y) for p in found] == [(p.row, p.col, p.x, p.y) for p in points]
        assert crs.to_epsg() == 4326
    with rasterio.open(tmp_path / "out/plain.tif") as file:
        assert file.crs is None and file.transform == PLACE["transform"]
    table = list(csv.DictReader(areas.open(newline="")))
    assert {row["area"] == "" for row in table if row["image"].endswith("points.tif")} == {True}
    assert sum(float(row["area"]) for row in table if row["image"].endswith("plain.tif")) == 40 * 50 * 200


RPCS = rasterio.rpc.RPC(
    height_off=100.0, height_scale=500.0, lat_off=50.5, lat_scale=0.1, line_off=20.0, line_scale=20.0, long_off=10.25,
    long_scale=0.1, samp_off=25.0, samp_scale=25.0, line_den_coeff=[1.0] + [0.0] * 19,
    samp_den_coeff=[1.0] + [0.0] * 19,
    line_num_coeff=[0.0, 0.0, -1.0] + [0.0] * 17, samp_num_coeff=[0.0, 1.0] + [0.0] * 18,
)  # fmt: skip


@pytest.mark.filterwarnings("error::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("beside", [False, True])
def test_rpcs_are_kept(made, tmp_path, beside):
    how = {"RPB": True, "PROFILE": "BASELINE"} if beside else {}
    write_scene(tmp_path / "in/x.tif", pixels_of(40, 50), crs=None, transform=None, rpcs=RPCS, **how)
    assert (tmp_path / "in/x.RPB").exists() == beside
    areas = tmp_path / "areas.csv"
    assert predict(made, [tmp_path / "in"], tmp_path / "out", Products(areas=areas)).written == 1
    assert {row["area"] for row in csv.DictReader(areas.open(newline=""))} == {""}
    with rasterio.open(tmp_path / "out/x.tif") as file:
        assert file.rpcs.to_gdal().items() >= RPCS.to_gdal().items()
        assert file.crs is None and file.nodata == 255
    assert predict(made, [tmp_path / "in"], tmp_path / "out").skipped == 1


def test_a_folder_of_scenes_and_pictures_keeps_its_paths(made, tmp_path):
    source = tmp_path / "in"
    write_scene(source / "a/scene.tif", pixels_of(40, 50))
    write_scene(source / "b/dem.img", pixels_of(40, 50), driver="HFA")
    Image.fromarray(pixels_of(40, 50).transpose(1, 2, 0)).save(source / "b/photo.jpg")
    Image.fromarray(pixels_of(30, 20).transpose(1, 2, 0)).save(source / "b/placed.png")
    (source / "b/placed.pgw").write_text("2\n0\n0\n-2\n100\n200\n")
    predict(made, [source], tmp_path / "out")
    assert files_in(tmp_path / "out") == {"a/scene.tif", "b/dem.tif", "b/photo.png", "b/placed.tif"}
    with rasterio.open(tmp_path / "out/b/dem.tif") as file:
        assert file.crs.to_epsg() == 32633
    with rasterio.open(tmp_path / "out/b/placed.tif") as file:
        assert file.transform.a == 2 and file.transform.c == 99


@pytest.mark.parametrize("kind", ["tiled", "strips", "plain", "png", "16 bit png"])
def test_windows_of_a_file_give_the_bits_of_the_whole_image(tmp_path, monkeypatch, kind):
    pixels = pixels_of(230, 330)
    scaling = eight_bit(3)
    if kind == "16 bit png":
        import imagecodecs

        pixels, scaling = pixels.astype(np.uint16) * 16, Scaling((0.0,) * 3, (4095.0,) * 3, "uint16")
    made = isf.Segmenter(labelling(scaling=scaling))
    whole = made.segment(scaling.to_float(pixels)[None])[0].numpy()
    path = tmp_path / "in/x.png"
    if kind == "png":
        path.parent.mkdir()
        Image.fromarray(pixels.transpose(1, 2, 0)).save(path)
    elif kind == "16 bit png":
        path.parent.mkdir()
        path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels.transpose(1, 2, 0))))
    else:
        how = {
            "tiled": {"tiled": True, "blockxsize": 32, "blockysize": 64, "compress": "deflate"},
            "strips": {},
            "plain": {},
        }
        place = {"crs": None, "transform": None} if kind == "plain" else {}
        path = write_scene(tmp_path / "in/x.tif", pixels, **how[kind], **place)
    for name, value in (("TILE", 96), ("KEPT_BYTES", 0)):
        monkeypatch.setattr(tile_labels, name, value)
    monkeypatch.setattr(tiling, "READ_BYTES", 130 * 3 * 100 * 2)  # the strips are divided too
    plan = made.plan((230, 330))
    assert plan.passes == 2 and len(list(plan.regions())) > 8
    predict(made, [path], tmp_path / "out", Products(confidence=True))
    (written,) = (tmp_path / "out").glob("x.[pt]*")
    assert np.array_equal(np.asarray(Image.open(written)), whole)


def test_an_interrupted_prediction_goes_on(made, tmp_path, monkeypatch):
    source = tmp_path / "in"
    source.mkdir()
    for i in range(5):
        Image.fromarray(pixels_of(40, 50, seed=i).transpose(1, 2, 0)).save(source / f"{i}.png")

    written = []
    finish = PngWriter.finish

    def stop_at_third(writer):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(writer.path)
        finish(writer)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(PngWriter, "finish", stop_at_third)
        predict(made, [source], tmp_path / "out")
    assert {name for name in files_in(tmp_path / "out") if not name.startswith(".")} == {"0.png", "1.png"}
    before = (tmp_path / "out/0.png").stat().st_mtime_ns
    outcome = predict(made, [source], tmp_path / "out")
    assert (outcome.written, outcome.skipped, outcome.replaced) == (3, 2, 0)
    assert (tmp_path / "out/0.png").stat().st_mtime_ns == before
    assert files_in(tmp_path / "out") == {f"{i}.png" for i in range(5)}


def test_what_is_stale_is_made_again_and_said(made, run, tmp_path, capsys):
    source, out = tmp_path / "in", tmp_path / "out"
    scene = write_scene(source / "scene.tif", pixels_of(40, 50))
    assert call("predict", run, source, "--out", out, "--confidence") == 0
    assert call("predict", run, source, "--out", out) == 0
    assert "1 were there already" in capsys.readouterr().out
    write_scene(scene, pixels_of(40, 50, seed=3))
    assert call("predict", run, source, "--out", out) == 0
    captured = capsys.readouterr()
    assert "1 of them replace" in captured.out and "scene.confidence.tif is of an earlier call" in captured.err
    assert np.array_equal(values(out / "scene.tif"), made.segment_file(scene))
    names = tmp_path / "names.txt"
    names.write_text("\n".join("abcd"))
    assert call("predict", run, source, "--out", out, "--names", names) == 0
    assert "1 of them replace" in capsys.readouterr().out
    (out / "scene.tif").write_bytes((out / "scene.tif").read_bytes()[:100])
    assert call("predict", run, source, "--out", out, "--names", names) == 0
    assert values(out / "scene.tif").shape == (40, 50)


def test_a_map_is_made_again_when_a_file_that_its_image_is_read_from_changes(made, tmp_path):
    write_scene(tmp_path / "source.tif", pixels_of(40, 50))
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{band}"><SimpleSource><SourceFilename relativeToVRT="1">source.tif'
        f"</SourceFilename><SourceBand>{band}</SourceBand></SimpleSource></VRTRasterBand>"
        for band in (1, 2, 3)
    )
    (tmp_path / "a.vrt").write_text(f'<VRTDataset rasterXSize="50" rasterYSize="40">{bands}</VRTDataset>')
    for seed, written in ((0, 1), (0, 0), (1, 1)):
        if written:
            write_scene(tmp_path / "source.tif", pixels_of(40, 50, seed=seed))
        assert predict(made, [tmp_path / "a.vrt"], tmp_path / "out").written == written


def test_areas_count_pixels_and_map_units(made, tmp_path):
    write_scene(tmp_path / "in/scene.tif", pixels_of(60, 70))
    Image.fromarray(pixels_of(40, 50).transpose(1, 2, 0)).save(tmp_path / "in/photo.png")
    names = tmp_path / "names.txt"
    names.write_text("\ufeffwater\r\nforest\r\nfield\r\ntown, city\r\n", encoding="utf-8")
    tables = []
    for name in ("first.csv", "again.csv"):  # the second time the maps are there
        products = Products(areas=tmp_path / name, names=names)
        predict(made, [tmp_path / "in"], tmp_path / "out", products)
        tables.append(list(csv.DictReader((tmp_path / name).open(newline=""))))
    assert tables[0] == tables[1] and len(tables[0]) == 2 * K
    labels = values(tmp_path / "out/scene.tif")
    for row in tables[0]:
        if row["image"].endswith("scene.tif"):
            assert int(row["pixels"]) == (labels == int(row["class"])).sum()
            assert float(row["area"]) == 200 * int(row["pixels"]) and row["unit"] == "metre"
        else:
            assert row["area"] == row["unit"] == ""
    assert [row["name"] for row in tables[0][:K]] == ["water", "forest", "field", "town, city"]
    categories = (tmp_path / "out/scene.tif.aux.xml").read_text()
    assert "<Category>water</Category>" in categories and categories.count("<Category>") == K


def test_polygons_are_the_regions(made, tmp_path):
    pyogrio = pytest.importorskip("pyogrio")
    write_scene(tmp_path / "in/a.tif", pixels_of(60, 70))
    write_scene(
        tmp_path / "in/b.tif", pixels_of(60, 70, seed=1), crs="EPSG:4326", transform=from_origin(10, 50, 0.1, 0.1)
    )
    Image.fromarray(pixels_of(40, 50).transpose(1, 2, 0)).save(tmp_path / "in/c.png")
    file = tmp_path / "regions.gpkg"
    outcome = predict(made, [tmp_path / "in"], tmp_path / "out", Products(polygons=file))
    assert len(outcome.notes) == 1 and "c.png has no georeference" in outcome.notes[0]
    assert [name for name, _ in pyogrio.list_layers(file)] == ["labels", "labels_2"]
    for layer, scene, crs, unit in (("labels", "a", "EPSG:32633", 200), ("labels_2", "b", "EPSG:4326", 0.01)):
        meta, _, geometry, fields = pyogrio.raw.read(file, layer=layer)
        found = dict(zip(meta["fields"], fields, strict=True))
        assert meta["crs"] == crs and len(geometry) > K and set(found["image"]) == {str(tmp_path / f"in/{scene}.tif")}
        labels = values(tmp_path / f"out/{scene}.tif")
        for k in range(K):
            area = found["area"][found["class"] == k].sum()
            assert area == pytest.approx(unit * (labels == k).sum())
    with pytest.raises(DataError, match="must end in .gpkg"):
        predict(made, [tmp_path / "in"], tmp_path / "other", Products(polygons=tmp_path / "x.shp"))


def test_polygons_without_a_transform_are_refused_before_a_map_is_written(run, tmp_path, capsys):
    pytest.importorskip("pyogrio")
    Image.fromarray(pixels_of(40, 50).transpose(1, 2, 0)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    write_scene(tmp_path / "c.tif", pixels_of(40, 50), transform=None)
    images = [tmp_path / name for name in ("a.png", "b.png", "c.tif")]
    command = "predict", run, "--out", tmp_path / "out", "--polygons", tmp_path / "x.gpkg"
    assert call(*command, *images) == 2 and "--polygons needs an image" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    scene = write_scene(tmp_path / "d.tif", pixels_of(400, 500), compress="deflate")
    scene.write_bytes(scene.read_bytes()[:-100])
    assert call(*command, *images, scene) == 1  # its header has a transform
    assert files_in(tmp_path / "out") == {"a.png", "c.tif"} and not (tmp_path / "x.gpkg").exists()
    assert "no image with a transform could be read" in capsys.readouterr().err


def test_confidence_is_a_second_map(made, tmp_path):
    pixels = pixels_of(60, 70)
    pixels[:, :9] = 7
    write_scene(tmp_path / "in/scene.tif", pixels, nodata=7)
    predict(made, [tmp_path / "in"], tmp_path / "out", Products(confidence=True))
    assert files_in(tmp_path / "out") == {"scene.tif", "scene.confidence.tif"}
    found = values(tmp_path / "out/scene.confidence.tif")
    invalid = (pixels == 7).all(axis=0)
    assert (found[invalid] == 255).all() and found[~invalid].max() <= 100 and found[~invalid].min() >= 100 // K


def test_match_writes_classes(tmp_path):
    made = isf.Segmenter(labelling(names=["x", "y", "z", "w"]), [2, -1, 0, 1], ["a", "b", "c", "d", "e"])
    scene = write_scene(tmp_path / "in/scene.tif", pixels_of(60, 70))
    predict(made, [scene], tmp_path / "out", Products(match=True))
    clusters = made.segment_file(scene)
    assert np.array_equal(values(tmp_path / "out/scene.tif"), np.array([2, 255, 0, 1], np.uint8)[clusters])
    assert (tmp_path / "out/scene.tif.aux.xml").read_text().count("<Category>") == 5
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\nd\n")
    with pytest.raises(DataError, match="--names names clusters"):
        predict(made, [scene], tmp_path / "out", Products(match=True, names=names))
    names.write_text("a\nb\n")
    with pytest.raises(DataError, match="2 names; the run has 4 clusters"):
        predict(made, [scene], tmp_path / "out", Products(names=names))


def test_256_clusters_leave_no_value_for_missing_data(tmp_path):
    made = isf.Segmenter(
        Labelling(isf.InfoSegNet(num_classes=256, width=8, dim=8).eval(), {}, DataInfo(3, 256, None, [0] * 3, [1] * 3))
    )
    with pytest.raises(DataError, match="at most 255 clusters"):
        predict(made, [write_scene(tmp_path / "a.tif", pixels_of(40, 40))], tmp_path / "out")


def test_a_damaged_file_is_named_at_the_end_and_leaves_nothing(run, tmp_path, capsys, monkeypatch):
    source, out = tmp_path / "in", tmp_path / "out"
    for name in ("a", "b", "c"):
        write_scene(
            source / f"{name}.tif", pixels_of(200, 210), tiled=True, blockxsize=64, blockysize=64, compress="deflate"
        )
    # The header is whole, and so is the beginning of the pixels.
    data = bytearray((source / "b.tif").read_bytes())
    data[-3000:] = bytes(3000)
    (source / "b.tif").write_bytes(data)
    monkeypatch.setattr(tile_labels, "TILE", 64)
    monkeypatch.setattr(tile_labels, "KEPT_BYTES", 0)
    assert call("predict", run, source, "--out", out, "--areas", tmp_path / "areas.csv") == 1
    captured = capsys.readouterr()
    assert "2 label maps written" in captured.out and "b.tif" in captured.err.splitlines()[-1]
    assert files_in(out) == {"a.tif", "c.tif"}
    assert "b.tif" not in (tmp_path / "areas.csv").read_text()


def test_the_output_folder_is_never_input(run, tmp_path, capsys):
    source = tmp_path / "in"
    write_scene(source / "scene.tif", pixels_of(40, 50))
    for _ in range(2):
        assert call("predict", run, source, "--out", source / "maps") == 0
        assert files_in(source) == {"scene.tif", "maps/scene.tif"}
    capsys.readouterr()
    assert call("predict", run, source, "--out", source) == 2
    assert "is the folder of the images" in capsys.readouterr().err
    assert call("predict", run, source / "scene.tif", "--out", source) == 2
    assert "over the image itself" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)])
def test_a_signal_leaves_no_part_of_a_file_and_the_call_goes_on(run, tmp_path, monkeypatch, capsys, number, status):
    for name in "abc":
        write_scene(tmp_path / f"in/{name}.tif", pixels_of(60, 70))
    parts = isf.Segmenter.parts

    begun = []

    def interrupted(self, plan, *arguments):
        begun.append(plan)
        for part in parts(self, plan, *arguments):
            if len(begun) == 2:
                while not (tmp_path / "out/a.tif").exists():
                    time.sleep(0.01)
                os.kill(os.getpid(), number)
            yield part

    products = "--confidence", "--overlay", "--polygons", tmp_path / "out/x.gpkg"
    command = "predict", run, tmp_path / "in", "--out", tmp_path / "out", *products
    with monkeypatch.context() as patched:
        patched.setattr(isf.Segmenter, "parts", interrupted)
        assert call(*command) == status
    told = capsys.readouterr().err
    assert f"ended by {number.name} after" in told and told.count("\n") == 1
    left = files_in(tmp_path / "out")
    assert "a.tif" in left and not {name for name in left if name[0] in ".bc"}
    assert call(*command) == 0
    assert "were there already" in capsys.readouterr().out and (tmp_path / "out/c.tif").exists()


def test_one_call_at_a_time_writes_to_a_folder(made, tmp_path):
    picture = tmp_path / "x.png"
    Image.fromarray(pixels_of(40, 50).transpose(1, 2, 0)).save(picture)
    with FolderLock(tmp_path / "out", "predict") as lock:
        lock.take()
        with pytest.raises(DataError, match="out is in use"):
            predict(made, [picture], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert predict(made, [picture], tmp_path / "out").written == 1
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="--out .*file is no folder"):
        predict(made, [picture], tmp_path / "file")


def test_images_whose_maps_would_have_one_name_are_named(made, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("x.png", "x.overlay.png", "x" * 251 + ".png"):
        Image.fromarray(pixels_of(40, 50).transpose(1, 2, 0)).save(tmp_path / "in" / name)
    outcome = predict(made, [tmp_path / "in"], tmp_path / "plain")
    assert outcome.written == 3 and not outcome.notes and not outcome.failures
    (tmp_path / "in" / ("x" * 251 + ".png")).unlink()
    outcome = predict(made, [tmp_path / "in"], tmp_path / "out", Products(overlay=True))
    assert outcome.written == 1 and "x.overlay.png already" in outcome.failures[0]


@pytest.mark.parametrize(
    ("product", "name", "told"),
    [
        ("areas", "", "folder"),
        ("areas", "x.tif", "must end in .csv"),
        ("areas", "file/x.csv", "cannot be written"),
        ("polygons", "file/x.gpkg", "cannot be written"),
    ],
)
def test_a_table_that_cannot_be_written_is_named_before_the_maps(made, tmp_path, product, name, told):
    picture = tmp_path / "x.png"
    Image.fromarray(pixels_of(40, 50).transpose(1, 2, 0)).save(picture)
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match=f"--{product} .*{told}"):
        predict(made, [picture], tmp_path / "out", Products(**{product: tmp_path / (name or "folder.csv")}))
    assert not (tmp_path / "out").exists()


def test_a_full_disk_stops_with_one_line(made, tmp_path, monkeypatch):
    Image.fromarray(pixels_of(40, 50).transpose(1, 2, 0)).save(tmp_path / "a.png")

    def full(writer, rows):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PngWriter, "_write", full)
    with pytest.raises(DataError, match="cannot be written: No space left"):
        predict(made, [tmp_path / "a.png"], tmp_path / "out")
    assert not files_in(tmp_path / "out")


def test_a_disk_that_is_full_after_some_maps_keeps_these(run, tmp_path, capsys):
    for name, side in (("a", 8), ("b", 300), ("c", 8)):
        write_scene(tmp_path / f"in/{name}.tif", np.random.default_rng(0).integers(0, 256, (3, side, side), np.uint8))
    command = "predict", run, tmp_path / "in", "--out", tmp_path / "out"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit, status, left in ((300, 2, set()), (4000, 1, {"a.tif"})):  # in bytes, of a file
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        try:
            assert call(*command) == status
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("infoseg")]
        assert len(said) == 1 and "cannot be written: " in said[0]
        found = files_in(tmp_path / "out") if (tmp_path / "out").exists() else set()
        assert left <= found <= left | {"c.tif"}
    assert call(*command) == 0
    assert files_in(tmp_path / "out") == {"a.tif", "b.tif", "c.tif"}


def test_without_rasterio_one_line_names_the_extra(run, tmp_path, capsys, monkeypatch):
    from infoseg_fast.data import raster

    scene = write_scene(tmp_path / "scene.tif", pixels_of(40, 50))
    monkeypatch.setattr(raster, "available", lambda: False)
    assert call("predict", run, scene, "--out", tmp_path / "out") == 2
    printed = capsys.readouterr().err
    assert "infoseg-fast[geo]" in printed and printed.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("world", "found"),
    [("A.TFW", "A.TIF"), ("A.tfw", "A.TIF"), ("a.TFW", "a.tif"), ("a.JGW", "a.jpg"), ("a.WLD", "a.png")],
)
def test_a_world_file_in_any_case(made, tmp_path, world, found):
    source = tmp_path / "in"
    source.mkdir()
    kind = {".tif": "TIFF", ".jpg": "JPEG", ".png": "PNG"}[Path(found).suffix.lower()]
    Image.fromarray(pixels_of(40, 50).transpose(1, 2, 0)).save(source / found, format=kind)
    for top, expected in ((4999990, PLACE["transform"]), (3999990, from_origin(4e5, 4e6, 10, 20))):
        (source / world).write_text(f"10\n0\n0\n-20\n400005\n{top}\n")
        predict(made, [source], tmp_path / "out")
        with rasterio.open(tmp_path / "out" / f"{Path(found).stem}.tif") as file:
            assert file.transform == expected


def test_a_world_file_beside_a_format_that_gdal_does_not_read(made, tmp_path):
    imagecodecs = pytest.importorskip("imagecodecs")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jxl").write_bytes(imagecodecs.jpegxl_encode(pixels_of(40, 50).transpose(1, 2, 0)))
    (tmp_path / "in/a.wld").write_text("10\n0\n0\n-20\n400005\n4999990\n")
    Image.fromarray(pixels_of(40, 50).transpose(1, 2, 0)).save(tmp_path / "in/b.png")
    outcome = predict(made, [tmp_path / "in"], tmp_path / "out")
    assert outcome.written + len(outcome.failures) == 2  # a GDAL with JPEG XL reads it
    assert all("a.jxl" in line and "convert the image to GeoTIFF" in line for line in outcome.failures)


def test_the_place_of_ycbcr_colours(made, tmp_path):
    """Pillow reads these, not tifffile."""
    place = [(33550, 12, 3, (10.0, 20.0, 0.0)), (33922, 12, 6, (0.0, 0.0, 0.0, 4e5, 5e6, 0.0))]
    how = {"photometric": "ycbcr", "subsampling": (1, 1), "extratags": place}
    tifffile.imwrite(tmp_path / "a.tif", pixels_of(40, 50).transpose(1, 2, 0), **how)
    with Image.open(tmp_path / "a.tif") as image:
        if image.mode != "YCbCr":
            pytest.skip("Pillow 11 cannot read them without compression")
    predict(made, [tmp_path / "a.tif"], tmp_path / "out")
    with rasterio.open(tmp_path / "out/a.tif") as file:
        assert file.transform == PLACE["transform"]


def test_control_points_beside_a_picture(made, tmp_path):
    Image.fromarray(pixels_of(40, 50).transpose(1, 2, 0)).save(tmp_path / "a.png")
    points = [rasterio.control.GroundControlPoint(*at) for at in ((0, 0, 10, 50), (0, 50, 11, 50), (40, 0, 10, 49))]
    with rasterio.open(tmp_path / "a.png", "r+") as file:
        file.gcps = points, rasterio.crs.CRS.from_epsg(4326)
    predict(made, [tmp_path / "a.png"], tmp_path / "out")
    with rasterio.open(tmp_path / "out/a.tif") as file:
        assert [(p.row, p.col, p.x, p.y) for p in file.gcps[0]] == [(p.row, p.col, p.x, p.y) for p in points]


@pytest.mark.parametrize("beside", [None, "world", "aux"])
def test_each_page_has_its_own_place(tmp_path, beside):
    """The second page has a place of its own. The others have that of a file beside the image; without
    one the first has its own, and the third none.
    """
    made = isf.Segmenter(labelling(reading=ReadOptions(pages="each")))
    second = {"crs": "EPSG:32634", "transform": from_origin(6e5, 4e6, 30, 30)}
    scene = tmp_path / "a.tif"
    write_scene(scene, pixels_of(40, 50), **({"crs": None, "transform": None} if beside else {}))
    write_scene(scene, pixels_of(60, 30), APPEND_SUBDATASET=True, **second)
    tifffile.imwrite(scene, pixels_of(40, 50).transpose(1, 2, 0), append=True, photometric="rgb", metadata=None)
    if beside == "world":
        (tmp_path / "a.tfw").write_text("10\n0\n0\n-20\n400005\n4999990\n")
    elif beside == "aux":
        numbers = ", ".join(map(str, PLACE["transform"].to_gdal()))
        (tmp_path / "a.tif.aux.xml").write_text(f"<PAMDataset><GeoTransform>{numbers}</GeoTransform></PAMDataset>")
    areas, out = tmp_path / "areas.csv", tmp_path / "out"
    assert predict(made, [scene], out, Products(areas=areas)).written == 3
    assert files_in(out) == {"a#1.tif", "a#2.tif", "a#3.tif" if beside else "a#3.png"}
    places = [PLACE | {"crs": None} if beside else PLACE, second, PLACE | {"crs": None} if beside else None]
    for number, place in enumerate(places, start=1):
        pixel = "" if place is None else place["transform"].a * -place["transform"].e
        for row in csv.DictReader(areas.open(newline="")):
            if row["image"].endswith(f"#{number}"):
                assert row["area"] == ("" if place is None else str(int(row["pixels"]) * pixel))
        if place is not None:
            with rasterio.open(out / f"a#{number}.tif") as file:
                assert (file.transform, file.crs) == (place["transform"], place["crs"])


@pytest.mark.parametrize("place", [{"crs": "EPSG:32633", "transform": None}, {"crs": "EPSG:4807"}])
def test_areas_without_a_transform_and_in_another_unit(made, tmp_path, place):
    write_scene(tmp_path / "a.tif", pixels_of(40, 50), **place)
    predict(made, [tmp_path / "a.tif"], tmp_path / "out", Products(areas=tmp_path / "a.csv"))
    rows = list(csv.DictReader((tmp_path / "a.csv").open(newline="")))
    if place["crs"] == "EPSG:32633":
        assert {(row["area"], row["unit"]) for row in rows} == {("", "")}
    else:
        assert {row["unit"] for row in rows} == {"grad"}


def test_the_polygons_of_images_without_a_pixel_with_data(made, tmp_path):
    pyogrio = pytest.importorskip("pyogrio")
    write_scene(tmp_path / "in/a.tif", np.zeros((3, 40, 50), np.uint8), nodata=0)
    for count in (0, 1):
        predict(made, [tmp_path / "in"], tmp_path / "out", Products(polygons=tmp_path / "a.gpkg"))
        assert [name for name, _ in pyogrio.list_layers(tmp_path / "a.gpkg")] == ["labels"]
        assert (len(pyogrio.raw.read(tmp_path / "a.gpkg")[2]) > 0) == count
        write_scene(tmp_path / "in/b.tif", pixels_of(40, 50))


@pytest.mark.parametrize(
    ("option", "bad"), [(None, None), ("--confidence", ".confidence.tif"), ("--names", ".aux.xml")]
)
def test_a_name_that_is_too_long_for_its_map_is_refused_alone(run, tmp_path, capsys, option, bad):
    long = tmp_path / "in" / ("a" * 251 + ".tif")
    write_scene(tmp_path / "in/b.tif", pixels_of(40, 50))
    (tmp_path / "in/b.tif").rename(long)
    write_scene(tmp_path / "in/b.tif", pixels_of(40, 50))
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\n")
    options = [] if option is None else [option] + [tmp_path / "names.txt"] * (option == "--names")
    assert call("predict", run, tmp_path / "in", "--out", tmp_path / "out", *options) == (bad is not None)
    assert (tmp_path / "out" / long.name).exists() == (bad is None) and (tmp_path / "out/b.tif").exists()
    printed = capsys.readouterr().err
    assert bad is None or (f"{bad} has a name above 255 bytes" in printed and printed.count("\n") == 1)


def test_scenes_in_folders_and_files_whose_names_are_not_utf8(run, tmp_path):
    folder = tmp_path / os.fsdecode(b"\xff")
    write_scene(tmp_path / "a.tif", pixels_of(300, 50))
    folder.mkdir()
    (folder / os.fsdecode(b"\xfe.tif")).write_bytes((tmp_path / "a.tif").read_bytes())
    options = ["--areas", tmp_path / "a.csv", "--polygons", tmp_path / "a.gpkg", "--confidence"]
    for _ in range(2):
        assert call("predict", run, folder, "--out", folder / "out", *options) == 0
        assert len({path.stat().st_ino for path in (folder / "out").iterdir()}) == 2
    (tmp_path / "b.tif").write_bytes((folder / "out" / os.fsdecode(b"\xfe.tif")).read_bytes())
    with rasterio.open(tmp_path / "b.tif") as file:
        assert file.transform == PLACE["transform"] and file.read(1).max() < K


@pytest.mark.parametrize("name", [b"caf\xe9.png", b"two\nlines.png"])
def test_odd_file_names_are_kept_and_escaped_in_messages(run, tmp_path, name, capsys):
    source = tmp_path / "in"
    source.mkdir()
    picture = tmp_path / "picture.png"
    Image.fromarray(pixels_of(40, 50).transpose(1, 2, 0)).save(picture)
    (source / os.fsdecode(name)).write_bytes(picture.read_bytes())
    (source / os.fsdecode(b"x" + name)).write_bytes(picture.read_bytes()[:200])
    assert call("predict", run, source, "--out", tmp_path / "out", "--areas", tmp_path / "a.csv") == 1
    told = capsys.readouterr().err.splitlines()
    assert [os.fsencode(path.name) for path in (tmp_path / "out").iterdir()] == [name]
    assert len(told) == 1 and told[0].startswith("infoseg predict:") and told[0].isprintable()
    assert len(list(csv.reader((tmp_path / "a.csv").open(encoding="utf-8", newline="")))) == 1 + K


def test_a_closed_pipe_ends_quietly_with_the_files_written(run, tmp_path):
    Image.fromarray(pixels_of(40, 50).transpose(1, 2, 0)).save(tmp_path / "a.png")
    command = (
        f"{sys.executable} -m infoseg_fast predict {run} {tmp_path}/a.png --out {tmp_path}/out; echo status $? >&2"
    )
    done = subprocess.run(["bash", "-c", f"({command}) | true"], capture_output=True, text=True, check=False)
    assert done.stderr == "status 0\n"
    assert files_in(tmp_path / "out") == {"a.png"}


def segmented(run, pixels):
    return isf.load(run).segment(pixels).numpy()


def _segmented_twice(rank, number, run, pixels, method):
    """The labels here, with threads, and then in a process that `method` starts."""
    isf.load(run)
    torch.set_num_threads(2)  # after `load`, since this process is a fork too
    here = segmented(run, pixels)
    with multiprocessing.get_context(method).Pool(1) as pool:
        return here, pool.apply_async(segmented, (run, pixels)).get(timeout=120)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_load_works_in_another_process(run, method):
    ((here, there),) = each_rank(_segmented_twice, 1, run, torch.rand(1, 3, 200, 200), method)
    assert np.array_equal(here, there)


def _segmented_by_the_inherited(rank, number, run, pixels):
    """The labels here, with threads, and then in a forked process with the same segmenter."""
    segmenter = isf.load(run)
    torch.set_num_threads(2)  # after `load`, since this process is a fork too
    here = segmenter.segment(pixels).numpy()
    there = multiprocessing.get_context("fork").SimpleQueue()
    child = multiprocessing.get_context("fork").Process(
        target=lambda: there.put((segmenter.segment(pixels).numpy(), torch.get_num_threads()))
    )
    child.start()
    child.join(timeout=60)
    child.kill()
    return here, *(there.get() if not there.empty() else (None, None))


def test_a_segmenter_works_in_a_forked_process(run):
    ((here, there, threads),) = each_rank(_segmented_by_the_inherited, 1, run, torch.rand(1, 3, 200, 200))
    assert np.array_equal(here, there) and threads == 1


def test_arrays_are_segmented_in_the_runs_own_scale():
    scaling = Scaling((100.0,) * 2, (3000.0,) * 2, "uint16")
    made = isf.Segmenter(labelling(2, scaling))
    stored = pixels_of(50, 60, 2).astype(np.uint16) * 12
    labels = made.segment_array(stored)
    assert np.array_equal(labels, made.segment(scaling.to_float(stored)[None])[0])
    assert np.array_equal(labels, made.segment_array(torch.from_numpy(stored)))
    assert np.array_equal(labels, made.segment_array(stored.astype(">u2")))
    valid = np.ones((50, 60), bool)
    valid[3:5] = False
    right = made.segment_array(stored, valid)
    assert (right[3:5] == 255).all()
    masked = np.ma.array(stored, mask=np.broadcast_to(~valid, stored.shape))
    for same in (made.segment_array(masked), made.segment_array(stored, torch.from_numpy(valid).byte())):
        assert np.array_equal(same, right)
    with pytest.raises(ValueError, match=r"valid must be bool \[50, 60\], not \[50\]"):
        made.segment_array(stored, valid[:, 0])
    missing = stored.astype(np.float32)
    missing[0, 7, 8] = np.nan
    found = made.segment_array(missing)
    assert found[7, 8] == 255 and (found == 255).sum() == 1
    for wrong, message in (
        (stored[:1].repeat(5, 0), "5 channels"),
        (stored.astype(np.uint8), "uint8"),
        (stored[None], "pixels must be"),
    ):
        with pytest.raises(ValueError, match=message):
            made.segment_array(wrong)


def test_reading_ahead_and_writing_behind_are_bounded_and_raise():
    made = []

    def numbers():
        for i in itertools.count():
            made.append(i)
            yield i

    with Ahead(numbers(), 2) as ahead:
        assert [next(ahead) for _ in range(3)] == [0, 1, 2]
        assert len(made) <= 3 + 2 + 2

    def fails():
        yield 1
        raise ValueError("the reader failed")

    with Ahead(fails(), 2) as ahead, pytest.raises(ValueError, match="reader failed"):
        assert list(ahead) == []

    def fail():
        raise ValueError("the writer failed")

    with pytest.raises(ValueError, match="writer failed"), Behind(1) as behind:
        behind.submit(fail)


def test_the_png_writer_is_read_by_others(tmp_path):
    rng = np.random.default_rng(0)
    for bands, shape in ((1, (70, 33)), (3, (70, 33, 3))):
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        writer = PngWriter(tmp_path / "x.png", (70, 33), "the key", bands)
        writer.write(pixels[:50])
        assert not (tmp_path / "x.png").exists()
        writer.write(pixels[50:])
        writer.finish()
        assert np.array_equal(np.asarray(Image.open(tmp_path / "x.png")), pixels)
        assert key_of(tmp_path / "x.png") == "the key" and key_of(Path("none.png")) is None
        (tmp_path / "x.png").unlink()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_what_a_file_has_where_there_is_no_data_changes_no_label(dtype, monkeypatch):
    """A border, a hole and single pixels: neither the colours, nor the global features, nor tiles."""
    scaling = None if dtype == np.uint8 else Scaling((20.0,) * 3, (230.0,) * 3, "float32")
    made = isf.Segmenter(labelling(scaling=scaling))
    pixels, valid = pixels_of(150, 170).astype(dtype), np.ones((150, 170), bool)
    valid[:31], valid[60:90, 40:100], valid[100::7, ::5] = False, False, False
    found = made.segment_array(pixels, valid)
    assert (found[~valid] == 255).all() and len(np.unique(found[valid])) > 1
    for value in (0, 255):
        assert np.array_equal(made.segment_array(np.where(valid, pixels, value).astype(dtype), valid), found)
    monkeypatch.setattr(tile_labels, "TILE", 48)
    monkeypatch.setattr(tile_labels, "KEPT_BYTES", 0)
    assert np.array_equal(made.segment_array(pixels, valid), found)
    assert (made.segment_array(pixels, np.zeros_like(valid)) == 255).all()


def test_a_border_without_data_hardly_changes_the_labels():
    """The global features are of the pixels with data alone."""
    made = isf.Segmenter(labelling())
    pixels, valid = np.zeros((3, 224, 240), np.uint8), np.zeros((224, 240), bool)
    pixels[:, 64:-64, 64:-64], valid[64:-64, 64:-64] = pixels_of(96, 112), True
    found, alone = made.segment_array(pixels, valid), made.segment_array(pixels_of(96, 112))
    assert (found[64:-64, 64:-64] == alone).mean() > 0.9
    black = made.segment_array(pixels)[64:-64, 64:-64]
    assert (black == alone).mean() < (found[64:-64, 64:-64] == alone).mean()
