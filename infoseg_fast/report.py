"""The report of a run: report.html, one file with curves, scores and segmentations, and
examples.png.
"""

import html
from collections.abc import Sequence

import matplotlib
import numpy as np
from PIL import Image

from . import class_numbers
from .checkpoint import LAST, write_atomically
from .data.base import ImageSet
from .data.images import IGNORE
from .data.scenes import SceneCrops
from .errors import printable
from .palette import coloured, palette
from .pictures import Shown, data_url, figure_url, png, show
from .run_folder import RunFolder
from .scores.matching import class_of_cluster
from .segmenter import Segmenter

EXAMPLES = 12  # number of images
OVERVIEWS = 4  # number of scenes
SHEET_SIDE, SHEET_COLUMNS, SHEET_GAP = 128, 3, 4  # examples.png: pixels of a picture, groups a row, pixels between

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; }
th, td { padding: .25rem .8rem; text-align: left; border-bottom: 1px solid #d8dee4; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.examples { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 1rem; }
.examples figure { margin: 0; } .examples figcaption { font-size: 12px; color: #57606a; }
.examples div { display: flex; gap: 4px; } .examples img { flex: 1; min-width: 0; image-rendering: pixelated; }
.swatch { display: inline-block; width: .9em; height: .9em; margin-right: .4em; vertical-align: -.1em; }
.curves { max-width: 100%; }
"""


def write(run: RunFolder, segmenter: Segmenter, images: ImageSet) -> None:
    """Write the report of a run from its metrics and its last evaluation, with examples from
    `images`, and the examples to examples.png.
    """
    rows, config = run.read_metrics(), run.read_config()
    scores = run.evaluation(LAST, rows[-1]["step"])
    name = text(run.path.resolve().name)
    in_use = rows[-1].get("classes_in_use")
    sections = [
        f"<h1>{name}</h1>",
        f"<p>{rows[-1]['step']} steps on {text(images.name)}; K = {segmenter.num_clusters}; "
        f"last training loss {rows[-1]['loss']:.4f}"
        + (f"; effective number of classes in use {in_use:.2f}" if in_use else "")
        + ".</p>",
        "<h2>Curves</h2>",
        f'<img class="curves" alt="curves" src="{curves(rows)}">',
    ]
    if scores is not None and scores["num_pixels"]:
        sections += [
            f"<h2>Scores on the {scores['split']} split</h2>",
            score_table(scores),
            class_table(scores),
        ]
    matches = scores if scores is not None and scores["num_pixels"] and images.has_labels else None
    overviews, shown = examples(segmenter, images, config["config"]["rgb"])
    pictures = [drawn(one, images, segmenter, matches) for one in shown]
    if overviews:
        whole = [drawn(one, images, segmenter, None) for one in overviews]
        sections += [example_figures("Scenes", overviews, whole, None), legend(overviews, images, segmenter, None)]
    sections += [
        example_figures("Segmentations", shown, pictures, matches),
        *([] if overviews else [legend(shown, images, segmenter, matches)]),
        class_numbers.section(segmenter, images, config["config"]["rgb"]),
        "<h2>Settings</h2>",
        settings_table(config),
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>infoseg: {name}</title><style>{STYLE}</style></head>"
        f"<body>{''.join(sections)}</body></html>\n"
    )
    write_atomically(run.examples, png(contact_sheet(pictures)))
    write_atomically(run.report, page.encode())


def curves(rows: list[dict]) -> str:
    """A figure of the training loss, the classes in use and the scores over the steps, as a data
    URL.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot

    labels = {"loss": "training loss", "classes_in_use": "classes in use"}
    shown = [name for name in labels if name in rows[-1]]
    scored = [row for row in rows if "pixel_accuracy" in row]
    number = len(shown) + bool(scored)
    figure, axes = pyplot.subplots(1, number, figsize=(4 * number, 3.2), layout="constrained", squeeze=False)
    for axis, name in zip(axes[0], shown, strict=False):
        axis.plot([row["step"] for row in rows], [row[name] for row in rows], color="#4477aa")
        axis.set(xlabel="step", title=labels[name])
    if scored:
        axis = axes[0, -1]
        for name, label in (("pixel_accuracy", "accuracy"), ("mean_iou", "mean IoU"), ("nmi", "NMI")):
            axis.plot([row["step"] for row in scored], [row[name] for row in scored], marker=".", label=label)
        constant = scored[-1]["majority_accuracy"]
        axis.axhline(constant, color="grey", linestyle=":", label="constant predictor")
        axis.set(xlabel="step", title="eval split", ylim=(0, 1))
        axis.legend(fontsize=8)
    return figure_url(figure)


def score_table(scores: dict) -> str:
    cells = [
        ("pixel accuracy", f"{scores['pixel_accuracy']:.4f}"),
        ("accuracy of the constant predictor", f"{scores['majority_accuracy']:.4f}"),
        ("mean IoU", f"{scores['mean_iou']:.4f}"),
        ("NMI", f"{scores['nmi']:.4f}"),
        ("pixels counted", f"{scores['num_pixels']:,}"),
    ]
    body = "".join(f'<tr><td>{name}</td><td class="number">{value}</td></tr>' for name, value in cells)
    return f"<table>{body}</table><p>Clusters are matched to classes once for the whole split, one to one.</p>"


def class_table(scores: dict) -> str:
    """The table of the classes of the scores, which may be others than those of the images shown."""
    lines, names = [], scores["classes"] or [f"class {cls}" for cls in range(len(scores["iou"]))]
    for cls, (share, iou) in enumerate(zip(scores["class_shares"], scores["iou"], strict=True)):
        shown = "-" if iou is None else f"{iou:.3f}"
        clusters = ", ".join(str(i) for i, mapped in enumerate(scores["mapping"]) if mapped == cls)
        lines.append(
            f"<tr><td>{swatch(cls, len(scores['iou']))}{text(names[cls])}</td>"
            f'<td class="number">{share:.3f}</td><td class="number">{shown}</td><td>{clusters or "none"}</td></tr>'
        )
    head = "<tr><th>class</th><th>share</th><th>IoU</th><th>cluster</th></tr>"
    return f"<table>{head}{''.join(lines)}</table>"


def class_name(images: ImageSet, cls: int) -> str:
    return images.classes[cls] if images.classes else f"class {cls}"


def swatch(label: int, number: int) -> str:
    return f'<span class="swatch" style="background:#{bytes(palette(number)[label]).hex()}"></span>'


def examples(segmenter: Segmenter, images: ImageSet, rgb: Sequence[int] | None) -> tuple[list[Shown], list[Shown]]:
    """The scenes that crops are cut out of, and images spread evenly over the set."""
    scenes = images.source if isinstance(images, SceneCrops) else None
    overviews = [] if scenes is None else [show(segmenter, scenes, i, rgb) for i in scenes.evenly_spread(OVERVIEWS)]
    return overviews, [show(segmenter, images, index, rgb) for index in images.evenly_spread(EXAMPLES)]


def drawn(shown: Shown, images: ImageSet, segmenter: Segmenter, scores: dict | None) -> list[np.ndarray]:
    """The picture, the ground truth if there are scores, and the segmentation, in colour."""
    if shown.labels is None:
        return [shown.picture]
    if not scores:
        return [shown.picture, coloured(shown.labels, segmenter.num_clusters)]
    truth = images.label(images.stems.index(shown.stem))[:: shown.step, :: shown.step]
    found = class_of_cluster(scores["mapping"])[shown.labels]
    return [shown.picture, *(coloured(labels, images.num_classes) for labels in (truth, found))]


def example_figures(title: str, shown: list[Shown], pictures: list[list[np.ndarray]], scores: dict | None) -> str:
    parts = "image, ground truth, matched segmentation" if scores else "image, clusters"
    figures = []
    for one, drawings in zip(shown, pictures, strict=True):
        tags = "".join(f'<img alt="" src="{data_url(png(picture))}">' for picture in drawings)
        notes = [text(one.stem)]
        if one.step > 1:
            notes.append(f"1 of {one.step} pixels in each direction")
        if one.labels is None:
            notes.append("too large to be segmented here: see infoseg predict")
        figures.append(f"<figure><div>{tags}</div><figcaption>{'; '.join(notes)}</figcaption></figure>")
    return f'<h2>{title}</h2><p>Each: {parts}.</p><div class="examples">{"".join(figures)}</div>'


def legend(shown: list[Shown], images: ImageSet, segmenter: Segmenter, scores: dict | None) -> str:
    """The colours of the classes or clusters, with their shares of the pixels that are shown."""
    number = images.num_classes if scores else segmenter.num_clusters
    counts = np.zeros(256, np.int64)
    for one in shown:
        if one.labels is not None:
            labels = class_of_cluster(scores["mapping"])[one.labels] if scores else one.labels
            counts += np.bincount(labels.ravel(), minlength=256)
    total = max(int(counts[:IGNORE].sum()), 1)
    body = "".join(
        f"<tr><td>{swatch(label, number)}{text(class_name(images, label) if scores else f'cluster {label}')}</td>"
        f'<td class="number">{counts[label] / total:.3f}</td></tr>'
        for label in range(number)
    )
    head = f"<tr><th>{'class' if scores else 'cluster'}</th><th>share of the pixels shown</th></tr>"
    return f"<table>{head}{body}</table>"


def contact_sheet(groups: list[list[np.ndarray]]) -> np.ndarray:
    """One RGB picture of groups of pictures, uint8 [rows, columns, 3]."""
    side, gap = SHEET_SIDE, SHEET_GAP
    group_width = max(map(len, groups)) * (side + gap) + 3 * gap
    rows = -(-len(groups) // SHEET_COLUMNS)
    sheet = np.full((rows * (side + gap) - gap, SHEET_COLUMNS * group_width - 4 * gap, 3), 255, dtype=np.uint8)
    for number, pictures in enumerate(groups):
        for place, picture in enumerate(pictures):
            top = number // SHEET_COLUMNS * (side + gap)
            left = number % SHEET_COLUMNS * group_width + place * (side + gap)
            drawn = Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST)
            sheet[top : top + side, left : left + side] = np.asarray(drawn)
    return sheet


def settings_table(config: dict) -> str:
    found = config["config"] | {
        "commit": config["environment"]["commit"],
        "versions": ", ".join(f"{name} {version}" for name, version in config["environment"]["versions"].items()),
    }
    body = "".join(f"<tr><td>{name}</td><td>{text(value)}</td></tr>" for name, value in found.items())
    return f"<table>{body}</table>"


def text(value: object) -> str:
    """A value in HTML; bytes of a file name that are not UTF-8 are escaped."""
    return html.escape(printable(value))
