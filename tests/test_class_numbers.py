"""The part of the report about other numbers of classes."""

import pytest
from conftest import write_folder

import infoseg_fast as isf
from infoseg_fast import class_numbers
from infoseg_fast.data import open_set
from infoseg_fast.recipe.merging import criteria, merge
from infoseg_fast.recipe.resampling import total

SMALL = {"crop": 32, "width": 8, "dim": 16, "batch_size": 4, "eval_every": 0, "classes": 3, "steps": 2}


def test_the_report_has_the_scores_and_maps_of_other_numbers(tmp_path, monkeypatch):
    data = str(write_folder(tmp_path / "data", number=6, side=40))
    isf.train(data, tmp_path / "run", **SMALL)
    page = (tmp_path / "run/report.html").read_text()
    assert "Other numbers of classes" in page
    for number in (2, 3, 6):
        assert f"<figcaption>{number} classes</figcaption>" in page
    segmenter, images = isf.load(tmp_path / "run"), open_set(data, "train")
    plotted = []
    monkeypatch.setattr("matplotlib.axes.Axes.plot", lambda self, x, y, **how: plotted.append((x, y)))
    class_numbers.section(segmenter, images, None)
    ((numbers, scores),) = plotted
    assert numbers == list(range(2, 10))
    sums = total(segmenter.labelling.over_clusters.blocks)
    whole = criteria(sums)
    assert scores[-1] == pytest.approx(float(whole.score(whole)))  # nothing is merged
    four = sums.merged(merge(sums, 4))
    assert scores[2] == pytest.approx(float(criteria(four).score(whole)))


def test_a_run_without_over_clusters_has_no_such_part(tmp_path):
    isf.train(write_folder(tmp_path / "data", number=6, side=40), tmp_path / "run", **SMALL, recipe="paper")
    assert "Other numbers" not in (tmp_path / "run/report.html").read_text()


def test_numbers_are_from_two_to_the_most():
    assert class_numbers.shown_numbers(2, 6) == [2, 4] and class_numbers.shown_numbers(5, 7) == [2, 5, 7]
    numbers = class_numbers.scored_numbers(200)
    assert numbers[0] == 2 and numbers[-1] == 200 and numbers == sorted(set(numbers))
    assert len(class_numbers.scored_numbers(256)) <= class_numbers.MOST_SCORED
    assert class_numbers.scored_numbers(3) == [2, 3]
