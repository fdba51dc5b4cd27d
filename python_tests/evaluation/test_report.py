import csv
import io
import json
import math
from dataclasses import replace

import pytest
from rich.console import Console

from fewseg_ext.evaluation.evaluator import Scores
from fewseg_ext.evaluation.protocol import EvaluationProtocol
from fewseg_ext.evaluation.published import _read, published_scores
from fewseg_ext.evaluation.report import (
    EvaluationReport,
    FoldScores,
    as_csv,
    as_json,
    as_markdown,
    comparison,
    print_report,
)


def scores(miou, **class_iou):
    return {name: Scores(miou + extra, 70.0, 50.0, class_iou) for name, extra in (("original", 0), ("square", 1))}


# Four folds of one class each, two seeds.
FOLDS = [
    FoldScores(i, [scores(40.0 + i, **{f"class {i}": 40.0 + i}), scores(44.0 + i, **{f"class {i}": 44.0 + i})])
    for i in range(4)
]
REPORT = EvaluationReport(
    dataset="pascal5i",
    num_folds=4,
    model={"name": "BiOpt", "backbone": "resnet50"},
    protocol=EvaluationProtocol(seeds=(0, 1)),
    folds=FOLDS,
    environment={"workers": 2},
)


def test_a_run_stands_in_the_papers_form_beside_their_figures():
    head, original, square, *papers = comparison(REPORT, "miou")
    assert head == ["", "fold 0", "fold 1", "fold 2", "fold 3", "mean"]
    assert original == ["this run, original size", *(f"{42 + i}.00 ± 2.83" for i in range(4)), "43.50 ± 2.83"]
    assert square[0] == "this run, 417 x 417"
    assert square[-1] == "44.50 ± 2.83"
    resnet50 = [row for row in papers if row[0] == "paper: BiOpt, ResNet-50, multi-scale [BiOpt, Table 1]"]
    assert resnet50 == [[resnet50[0][0], "56.21", "64.63", "57.95", "48.61", "56.85"]]
    assert ["paper: BiOpt, ResNet-50, single scale [BiOpt, Table 5]", "", "", "", "", "56.04"] in papers


def test_the_std_is_over_seeds_of_the_mean_over_folds():
    other_way = FoldScores(1, list(reversed(FOLDS[1].seeds)))
    report = replace(REPORT, num_folds=2, folds=[FOLDS[0], other_way])
    # Folds that move against each other: each spreads, their mean does not.
    assert comparison(report, "miou")[1][1:] == ["42.00 ± 2.83", "43.00 ± 2.83", "42.50 ± 0.00"]


def test_one_fold_has_no_mean_to_compare():
    one = replace(REPORT, folds=FOLDS[2:3])
    head, original, *_, last = comparison(one, "miou")
    assert head == ["", "fold 2", "mean"]
    assert original[1:] == ["44.00 ± 2.83", ""]
    assert last == ["paper: VPI deterministic, ResNet-101 [VPI, Table 1]", "", "54.80"]
    assert as_json(one)["scores"]["original"]["miou"]["mean_over_folds"] is None


def test_figures_of_1_way_episodes_do_not_stand_beside_other_ways():
    two_way = replace(REPORT, protocol=replace(REPORT.protocol, ways=2))
    assert len(comparison(two_way, "miou")) == 3
    assert as_json(two_way)["published"] == []


def test_json_repeats_everything_and_knows_no_nan():
    folds = [FoldScores(None, [scores(40.0, a=40.0, never=math.nan), scores(42.0, a=42.0, never=math.nan)])]
    report = replace(REPORT, dataset="fss1000", num_folds=0, folds=folds)
    content = json.loads(json.dumps(as_json(report), allow_nan=False))
    assert content["protocol"]["line"] == str(report.protocol)
    assert content["protocol"]["seeds"] == [0, 1]
    original = content["scores"]["original"]
    assert original["miou"]["mean_over_folds"] == {"mean": 41.0, "std": 2**0.5, "per_seed": [40.0, 42.0]}
    assert original["class_iou"]["never"] == {"mean": None, "std": 0.0, "per_seed": [None, None]}
    assert content["scores"]["square"]["miou"]["folds"][0]["per_seed"] == [41.0, 43.0]
    assert {row["mean"] for row in content["published"]} == {84.3}


def test_every_number_of_the_csv_carries_its_protocol():
    rows = list(csv.DictReader(as_csv(REPORT).splitlines()))
    # Folds, seeds, resolutions; three metrics and one class.
    assert len(rows) == 4 * 2 * 2 * 4
    assert {row["protocol"] for row in rows} == {str(REPORT.protocol)}
    (cell,) = [
        row["per_cent"]
        for row in rows
        if (row["fold"], row["seed"], row["resolution"], row["metric"]) == ("2", "1", "square", "miou")
    ]
    assert cell == "47.0"


def test_positive_iou_is_printed_in_both_readings_beside_the_paper_s():
    report = replace(REPORT, dataset="fss1000", num_folds=0, folds=[FoldScores(None, FOLDS[0].seeds)])
    for metric in ("miou", "positive_iou"):
        assert comparison(report, metric)[-1] == ["paper: VPI, ResNet-101, reading not said [VPI, Table 6]", "84.30"]
    assert comparison(report, "positive_iou")[1][-1] == "50.00 ± 0.00"


def test_shared_photos_are_a_warning_in_every_form():
    report = replace(REPORT, shared_photos=[f"2007_{i:06d}" for i in range(7)])
    console = Console(record=True, width=500, file=io.StringIO())
    print_report(console, report)
    for text in (as_markdown(report), console.export_text()):
        assert "7 of the scored photos were in the training too: 2007_000000," in text
    assert len(as_json(report)["shared_photos"]) == 7
    assert "in the training" not in as_markdown(REPORT)


def test_markdown_and_console_show_protocol_and_tables():
    console = Console(record=True, width=500, file=io.StringIO())
    print_report(console, REPORT)
    for text in (as_markdown(REPORT), console.export_text()):
        assert str(REPORT.protocol) in text
        for part in ("43.50 ± 2.83", "BiOpt, ResNet-50, multi-scale [BiOpt, Table 1]", "class 3"):
            assert part in text


def test_more_classes_than_a_screen_has_lines_are_in_the_files():
    many = {f"class {i}": 40.0 for i in range(41)}
    report = replace(REPORT, folds=[FoldScores(0, [scores(40.0, **many), scores(44.0, **many)])])
    console = Console(record=True, width=500, file=io.StringIO())
    print_report(console, report)
    text = console.export_text()
    assert "41 classes: see the files" in text
    assert "class 3" not in text
    assert "class 3" in as_markdown(report)


def test_published_folds_agree_with_their_means():
    rows = _read()
    with_folds = [row for row in rows if row.folds]
    assert len(with_folds) == 22
    for row in with_folds:
        assert len(row.folds) == 4
        # The paper's own mean of its baseline is 0.09 off that of its folds.
        assert sum(row.folds) / 4 == pytest.approx(row.mean, abs=0.1), row
    assert {row.metric for row in rows} == {"miou", "fb_iou", "positive_iou"}
    assert len(set(rows)) == len(rows)


def test_coco_figures_without_a_split_stand_beside_both():
    for split, mean in (("a", 28.85), ("b", 33.15)):
        rows = published_scores(f"coco20i-{split}", 1, "miou")
        assert {(row.method, row.mean) for row in rows if row.backbone == "ResNet-50"} >= {("BiOpt", mean)}
        assert ("VPI", 23.4) in {(row.method, row.mean) for row in rows}
