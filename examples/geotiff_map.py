"""From a scene to a georeferenced label map, with areas (extra [geo]).

python geotiff_map.py scene.tif OUT     # a scene of your own
python geotiff_map.py                   # a scene that is drawn
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

import infoseg_fast as isf
from infoseg_fast.maps import Products, predict


def draw_scene(path: Path, side: int = 256) -> Path:
    """Three bands of fields, at 10 m a pixel in UTM zone 33 north, with a corner without data."""
    import rasterio
    from rasterio.transform import from_origin

    rng = np.random.default_rng(0)
    field = rng.integers(0, 3, (side // 32, side // 32)).repeat(32, 0).repeat(32, 1)
    colours = np.array([[60, 110, 50], [170, 150, 90], [50, 70, 140]])
    pixels = (colours[field] + rng.normal(0, 12, (side, side, 3))).clip(1, 255).astype(np.uint8)
    pixels[:16, :16] = 0
    profile = {"driver": "GTiff", "width": side, "height": side, "count": 3, "dtype": "uint8", "nodata": 0}
    with rasterio.open(path, "w", crs="EPSG:32633", transform=from_origin(4e5, 5.8e6, 10, 10), **profile) as file:
        file.write(pixels.transpose(2, 0, 1))
    return path


def main(scene: str | None = None, out: str | None = None, steps: int = 60, **settings) -> Path | None:
    try:
        import rasterio
    except ImportError:
        print("this example needs rasterio: pip install 'infoseg-fast[geo]'")
        return None
    folder = Path(out or tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    image = Path(scene) if scene else draw_scene(folder / "scene.tif")
    isf.train(str(image), folder / "run", classes=3, steps=steps, **settings)
    areas = folder / "areas.csv"
    predict(isf.load(folder / "run"), [image], folder / "maps", Products(areas=areas))
    written = folder / "maps" / f"{image.stem}.tif"
    with rasterio.open(image) as before, rasterio.open(written) as after:
        assert (before.crs, before.transform, before.shape) == (after.crs, after.transform, after.shape)
        print(f"{written}: {after.crs}, {after.width} x {after.height}, values {np.unique(after.read(1)).tolist()}")
    print(areas.read_text())
    return written


if __name__ == "__main__":
    main(*sys.argv[1:3])
