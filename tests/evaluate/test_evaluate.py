"""Average precision of made-up detections, and the detections file."""

import json
import math
from functools import partial

import numpy as np
import pytest
from detection_cases import (
    CLASSES,
    OBJECTS,
    SPLIT,
    found_at,
    found_from,
    scene,
    select,
    split_of,
    truth_from,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from fsd.evaluate.coco_ap import ENGINES, coco_ap
from fsd.evaluate.detections import (
    Found,
    Truth,
    load_detections,
    rounded,
    save_detections,
    truth_of,
)
from fsd.evaluate.metrics import evaluate_detections
from fsd.evaluate.voc_ap import voc_ap

untimed = settings(deadline=None, max_examples=100)
VOC_AP = partial(voc_ap, use_07=False)


def witness_ap(truth: Truth, found: Found, label: int, threshold: float, use_07: bool) -> float:
    """VOC's AP of one class, one detection after the other, from its definition."""
    objects = [g for g in range(len(truth.label)) if truth.label[g] == label]
    to_find = sum(not truth.difficult[g] for g in objects)
    if not to_find:
        return math.nan
    detections = [d for d in range(len(found.label)) if found.label[d] == label]
    detections.sort(key=lambda d: -found.score[d])
    taken, hits, misses, points = set(), 0, 0, []
    for d in detections:
        x1, y1, x2, y2 = found.boxes[d]
        best, chosen = -1.0, None
        for g in objects:
            if truth.image[g] != found.image[d]:
                continue
            a1, b1, a2, b2 = truth.boxes[g]
            shared = max(0.0, min(x2, a2) - max(x1, a1)) * max(0.0, min(y2, b2) - max(y1, b1))
            union = (x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - shared
            overlap = shared / union if union > 0 else 0.0
            if overlap > best:
                best, chosen = overlap, g
        if best <= threshold:
            misses += 1
        elif not truth.difficult[chosen]:
            misses += chosen in taken
            hits += chosen not in taken
            taken.add(chosen)
        points.append((hits / to_find, hits / max(hits + misses, 1)))
    if use_07:
        recalls = np.arange(0, 1.1, 0.1)
        return float(np.mean([max((p for r, p in points if r >= t), default=0) for t in recalls]))
    area, before = 0.0, 0.0
    for n, (recall, _) in enumerate(points):
        area += (recall - before) * max(p for _, p in points[n:])
        before = recall
    return area


def test_truth_of_a_split():
    truth = truth_of(SPLIT)
    assert truth.image.tolist() == [0, 0, 1, 3, 3]
    for ours, theirs in zip(truth, OBJECTS, strict=True):
        np.testing.assert_array_equal(ours, theirs)


# Both kinds of AP


@pytest.mark.parametrize("difficult_too", [True, False])
def test_perfect_detections(difficult_too):
    found = found_at(OBJECTS)
    if not difficult_too:
        found = select(found, ~OBJECTS.difficult)
    coco = coco_ap(OBJECTS, found, 4, 3)
    assert coco.ap == coco.ap50 == coco.ap75 == coco.ap_small == coco.ar_100 == coco.ar_small == 1
    assert math.isnan(coco.ap_medium) and math.isnan(coco.ap_large) and math.isnan(coco.ar_large)
    np.testing.assert_array_equal(coco.class_ap, [1, 1, np.nan])
    np.testing.assert_array_equal(coco.class_ap50, [1, 1, np.nan])
    for use_07 in (True, False):
        voc = voc_ap(OBJECTS, found, 3, use_07=use_07)
        np.testing.assert_allclose(voc.ap, [[1, 1, np.nan]], rtol=0, atol=1e-15)
        np.testing.assert_allclose(voc.mean, [1], rtol=0, atol=1e-15)


@pytest.mark.parametrize("engine", ENGINES)
def test_no_detections(engine):
    coco = coco_ap(OBJECTS, found_from([]), 4, 3, engine=engine)
    assert coco.ap == coco.ap50 == coco.ap_small == coco.ar_1 == coco.ar_100 == 0
    np.testing.assert_array_equal(coco.class_ap, [0, 0, np.nan])
    for use_07 in (True, False):
        voc = voc_ap(OBJECTS, found_from([]), 3, use_07=use_07)
        np.testing.assert_array_equal(voc.ap, [[0, 0, np.nan]])
        assert voc.mean.tolist() == [0]
        assert [len(curve) for curve in voc.recall[0]] == [0, 0, 0]


@pytest.mark.parametrize("engine", ENGINES)
def test_no_objects(engine):
    found = found_at(OBJECTS)
    coco = coco_ap(truth_from([]), found, 4, 3, engine=engine)
    assert np.isnan(coco[:12]).all() and np.isnan(coco.class_ap).all()
    voc = VOC_AP(truth_from([]), found, 3)
    assert np.isnan(voc.ap).all() and np.isnan(voc.mean).all()


def test_shifted_detections():
    # 20 pixels moved by 4: IoU 16/24, which meets the thresholds 0.50 to 0.65, four of ten
    coco = coco_ap(OBJECTS, found_at(OBJECTS, 4.0), 4, 3)
    assert (coco.ap50, coco.ap75) == (1, 0)
    assert coco.ap == pytest.approx(0.4, abs=1e-12)
    assert coco.ar_100 == pytest.approx(0.4, abs=1e-12)
    voc = VOC_AP(OBJECTS, found_at(OBJECTS, 4.0), 3, iou=(0.5, 0.65, 0.7))
    np.testing.assert_allclose(voc.mean, [1, 1, 0], rtol=0, atol=1e-15)


def test_detections_of_another_class_or_image_do_not_count():
    for wrong in (
        found_at(OBJECTS)._replace(label=np.full(5, 2)),
        found_at(OBJECTS)._replace(image=np.full(5, 2)),
    ):
        assert coco_ap(OBJECTS, wrong, 4, 3).ap == 0
        assert VOC_AP(OBJECTS, wrong, 3).mean == 0


@pytest.mark.parametrize("measure", [partial(coco_ap, num_images=4), VOC_AP])
def test_labels_out_of_range_are_refused(measure):
    for label in (-1, 3):
        found = found_at(OBJECTS)._replace(label=np.full(5, label))
        with pytest.raises(ValueError, match=r"label outside 0\.\.2"):
            measure(OBJECTS, found, num_classes=3)


def test_unknown_image_and_engine_are_refused():
    with pytest.raises(ValueError, match=r"outside 0\.\.2"):
        coco_ap(OBJECTS, found_at(OBJECTS), 3, 3)
    with pytest.raises(ValueError, match="faster-coco-eval, pycocotools"):
        coco_ap(OBJECTS, found_at(OBJECTS), 4, 3, engine="cocoapi")


# COCO


@pytest.mark.parametrize("seed", range(3))
def test_engines_agree(seed):
    truth, found, images, classes = scene(seed, crowded=seed == 2)
    ours, theirs = (coco_ap(truth, found, images, classes, engine=e) for e in ENGINES)
    assert 0.05 < ours.ap < 0.95 and ours.ap_small != ours.ap_large
    for name, a, b in zip(ours._fields, ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12, err_msg=name)
    assert np.isnan(ours.class_ap).tolist() == [False, False, False, True]


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_are_silent(engine, capfd):
    coco_ap(*scene(0), engine=engine)
    assert capfd.readouterr() == ("", "")


def test_coco_excuses_any_number_of_detections_inside_a_difficult_object():
    truth = truth_from([(0, 0, 0, 0, 20, 20, 0), (0, 0, 40, 40, 80, 80, 1)])
    right = (0, 0, 0.5, 0, 0, 20, 20)
    inside = [(0, 0, 0.9, 40, 40, 80, 80), (0, 0, 0.8, 50, 50, 60, 60), (0, 0, 0.7, 41, 41, 79, 79)]
    assert coco_ap(truth, found_from([*inside, right]), 1, 1).ap == 1
    outside = (0, 0, 0.9, 85, 40, 99, 80)
    assert coco_ap(truth, found_from([outside, right]), 1, 1).ap == pytest.approx(0.5)


def test_coco_sizes():
    """Squares just below and above 32 and 96 pixels, one class each; one size found at a time."""
    sides = (31, 33, 95, 97)
    truth = truth_from([(0, k, 0, 0, side, side, 0) for k, side in enumerate(sides)])
    for found, expected in (([0], (1, 0, 0)), ([1, 2], (0, 1, 0)), ([3], (0, 0, 1))):
        coco = coco_ap(truth, select(found_at(truth), found), 1, 4)
        assert (coco.ap_small, coco.ap_medium, coco.ap_large) == expected
        assert (coco.ar_small, coco.ar_medium, coco.ar_large) == expected
        assert coco.class_ap.tolist() == [float(k in found) for k in range(4)]


# VOC


def test_voc_by_hand():
    # hit, miss, hit of two objects: recall 1/2, 1/2, 1 with precision 1, 1/2, 2/3
    truth = truth_from([(0, 0, 0, 0, 20, 20, 0), (1, 0, 0, 0, 20, 20, 0)])
    found = found_from(
        [(0, 0, 0.9, 0, 0, 20, 20), (0, 0, 0.8, 30, 30, 50, 50), (1, 0, 0.7, 0, 0, 20, 20)]
    )
    eleven, area = (voc_ap(truth, found, 1, use_07=use_07) for use_07 in (True, False))
    # best precision 1 at the recalls 0, 0.1, ..., 0.5 and 2/3 at 0.6, ..., 1
    assert eleven.ap[0, 0] == pytest.approx((6 * 1 + 5 * 2 / 3) / 11, abs=1e-12)
    assert area.ap[0, 0] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3, abs=1e-12)
    np.testing.assert_allclose(area.recall[0][0], [0.5, 0.5, 1])
    np.testing.assert_allclose(area.precision[0][0], [1, 0.5, 2 / 3])


def test_three_of_ten_do_not_reach_the_recall_of_three_tenths():
    truth = truth_from([(i, 0, 0, 0, 20, 20, 0) for i in range(10)])
    voc = voc_ap(truth, select(found_at(truth), slice(3)), 1, use_07=True)
    assert voc.ap[0, 0] == pytest.approx(3 / 11, abs=1e-12)  # at recall 0, 0.1 and 0.2


def test_only_the_best_object_counts_and_only_once():
    truth = truth_from([(0, 0, 0, 0, 20, 20, 0), (0, 0, 4, 0, 24, 20, 0)])
    # the second overlaps the free object too (IoU 0.74), but the taken one more (0.90)
    found = found_from([(0, 0, 0.9, 0, 0, 20, 20), (0, 0, 0.8, 1, 0, 21, 20)])
    voc = VOC_AP(truth, found, 1)
    np.testing.assert_allclose(voc.recall[0][0], [0.5, 0.5])
    np.testing.assert_allclose(voc.precision[0][0], [1, 0.5])
    assert coco_ap(truth, found, 1, 1).ap50 == 1  # COCO gives it the free one


def test_difficult_objects_count_neither_way():
    truth = truth_from([(0, 0, 0, 0, 20, 20, 1), (0, 0, 40, 0, 60, 20, 0)])
    rows = [(0, 0, 0.9, 0, 0, 20, 20), (0, 0, 0.8, 1, 0, 21, 20), (0, 0, 0.7, 40, 0, 60, 20)]
    voc = VOC_AP(truth, found_from(rows), 1)
    assert voc.ap[0, 0] == 1
    np.testing.assert_array_equal(voc.precision[0][0], [0, 0, 1])
    np.testing.assert_array_equal(voc.recall[0][0], [0, 0, 1])
    assert VOC_AP(truth, found_from(rows[2:]), 1).ap[0, 0] == 1
    assert np.isnan(VOC_AP(select(truth, [0]), found_from(rows), 1).ap[0, 0])


def test_strict_and_plus_one():
    truth = truth_from([(0, 0, 0, 0, 10, 10, 0)])
    half = found_from([(0, 0, 0.9, 0, 0, 10, 5)])  # IoU exactly 1/2
    assert VOC_AP(truth, half, 1, strict=True).mean == 0
    assert VOC_AP(truth, half, 1, strict=False).mean == 1
    # 6 of 10 rows; without the +1 of inclusive pixels 5 of 9
    found = found_from([(0, 0, 0.9, 0, 0, 10, 6)])
    thresholds = (5 / 9 - 1e-9, 5 / 9 + 1e-9, 0.6 - 1e-9, 0.6 + 1e-9)
    hits = {one: VOC_AP(truth, found, 1, iou=thresholds, plus_one=one).mean for one in (1, 0)}
    assert hits[1].tolist() == [1, 1, 1, 0]
    assert hits[0].tolist() == [1, 0, 0, 0]


def test_a_box_without_extent_matches_nothing():
    truth = truth_from([(0, 0, 5, 5, 5, 5, 0), (0, 0, 0, 0, 1, 1, 0)])
    for plus_one in (True, False):
        voc = VOC_AP(truth, found_at(truth), 1, plus_one=plus_one)
        assert voc.mean[0] == (0.25 if plus_one else 0)


@pytest.mark.parametrize("use_07", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_voc_equals_its_definition(seed, use_07):
    truth, found, _, classes = scene(seed)
    thresholds = (0.3, 0.5, 0.75)
    voc = voc_ap(truth, found, classes, iou=thresholds, use_07=use_07)
    expected = [
        [witness_ap(truth, found, k, t, use_07) for k in range(classes)] for t in thresholds
    ]
    assert 0.05 < expected[1][0] < 0.95
    np.testing.assert_allclose(voc.ap, expected, rtol=0, atol=1e-12)


@untimed
@given(st.integers(0, 2**32 - 1))
def test_voc_properties(seed):
    rng = np.random.default_rng(seed)
    truth, found, _, classes = scene(seed, images=5)
    found = found._replace(score=rng.permutation(len(found.score)) + 1.0)  # no ties
    thresholds = (0.3, 0.5, 0.6, 0.9)
    measure = partial(voc_ap, truth, num_classes=classes, iou=thresholds, use_07=bool(seed % 2))
    before = measure(found)
    known = before.ap[:, ~np.isnan(before.ap[0])]
    assert ((known >= 0) & (known <= 1 + 1e-12)).all()
    # a stricter overlap never helps
    assert (np.diff(known, axis=0) <= 1e-12).all()
    for curve in before.recall[1]:
        assert (np.diff(curve) >= 0).all() or np.isnan(curve).all()

    # neither the order of the detections nor the scale of their scores matters
    moved = measure(select(found, rng.permutation(len(found.score))))
    np.testing.assert_array_equal(moved.ap, before.ap)
    scaled = measure(found._replace(score=np.log(found.score)))
    np.testing.assert_array_equal(scaled.ap, before.ap)

    # one more miss never helps, and the lowest of all changes nothing
    def with_miss(score: float) -> np.ndarray:
        miss = found_from([(0, rng.integers(classes), score, 0, 0, 9, 9)])  # image 0 is empty
        return measure(Found(*map(np.concatenate, zip(found, miss, strict=True)))).ap

    np.testing.assert_allclose(with_miss(0.5), before.ap, rtol=0, atol=1e-12)
    assert (with_miss(rng.uniform(0, len(found.score))) <= before.ap + 1e-12)[
        ~np.isnan(before.ap)
    ].all()


# metrics.json and detections.json


def test_evaluate_detections():
    found = found_at(OBJECTS, 4.0)
    metrics = json.loads(json.dumps(evaluate_detections(SPLIT, found), allow_nan=False))
    assert metrics["ap50"] == metrics["voc_ap50"] == 1 and metrics["ap75"] == 0
    assert metrics["voc07_ap50"] == pytest.approx(1)
    assert metrics["ap"] == pytest.approx(0.4) == metrics["ar_100"]
    assert metrics["ap_small"] == pytest.approx(0.4) and metrics["ap_large"] is None
    assert {"ap_medium", "ar_1", "ar_10"} <= metrics.keys()
    counts = (metrics["images"], metrics["ground_truths"], metrics["difficult"])
    assert counts == (4, 4, 1) and metrics["detections"] == 5
    assert list(metrics["per_class"]) == list(CLASSES)
    fall, unseen = metrics["per_class"]["fall"], metrics["per_class"]["unseen"]
    assert (fall["ground_truths"], fall["detections"], fall["ap50"]) == (2, 3, 1)
    assert unseen == {
        **dict.fromkeys(("ap", "ap50", "voc07_ap50", "voc_ap50")),
        "ground_truths": 0,
        "detections": 0,
    }


def test_evaluate_detections_passes_the_rules_on():
    half = found_at(OBJECTS)
    half = half._replace(boxes=OBJECTS.boxes - np.array([0, 0, 0, 10]))  # the upper half: IoU 1/2
    assert evaluate_detections(SPLIT, half)["voc_ap50"] == 0
    assert evaluate_detections(SPLIT, half, strict=False)["voc_ap50"] == 1
    assert evaluate_detections(SPLIT, half, strict=False, plus_one=False)["voc_ap50"] == 0


@pytest.mark.parametrize("seed", range(2))
def test_the_file_gives_the_same_numbers(tmp_path, seed):
    truth, found, images, classes = scene(seed)
    split = split_of(truth, images, tuple("abcd"[:classes]))
    found = found._replace(score=np.random.default_rng(seed).random(len(found.score)))
    path = tmp_path / "new" / "detections.json"
    saved = save_detections(path, found, split)
    loaded = load_detections(path)
    for a, b, c in zip(saved, loaded, rounded(loaded), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
    assert np.abs(loaded.boxes - found.boxes).max() <= 0.0101
    assert np.abs(loaded.score - found.score).max() <= 0.5001e-5
    assert evaluate_detections(split, loaded) == evaluate_detections(split, found)
    assert [p.name for p in path.parent.iterdir()] == ["detections.json"]
    save_detections(path, loaded, split)
    np.testing.assert_array_equal(load_detections(path).boxes, loaded.boxes)


def test_scores_that_differ_by_less_than_the_file_can_hold_are_equal(tmp_path):
    miss = (0, 0, 0.500002, 40, 30, 60, 48)
    hits = [(0, 0, 0.500001, 0, 0, 20, 20), (1, 0, 0.500001, 10, 10, 30, 30)]
    found = found_from([*hits, miss])  # in this order once the scores are equal
    metrics = evaluate_detections(SPLIT, found)
    assert metrics["per_class"]["person"]["voc_ap50"] == 1
    saved = save_detections(tmp_path / "detections.json", found, SPLIT)
    assert evaluate_detections(SPLIT, saved) == metrics


def test_the_file_is_a_coco_result_list(tmp_path):
    path = tmp_path / "detections.json"
    save_detections(path, found_from([(3, 1, 1 / 3, 10.006, 20, 30.5, 41.25)]), SPLIT)
    assert path.read_text() == (
        '[{"image_id":3,"file_name":"000003.jpg","category_id":1,'
        '"bbox":[10.01,20.0,20.49,21.25],"score":0.33333}]\n'
    )


def test_a_file_without_detections(tmp_path):
    path = tmp_path / "detections.json"
    save_detections(path, found_from([]), SPLIT)
    loaded = load_detections(path)
    assert loaded.boxes.shape == (0, 4) and len(loaded.score) == 0
    assert evaluate_detections(SPLIT, loaded)["ap"] == 0


@pytest.mark.parametrize("content", ["", "{}x", '[{"bbox":[1,2,3,4]}]', '[{"bbox":[1,2]}]', "7"])
def test_another_file_is_refused(tmp_path, content):
    path = tmp_path / "detections.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="is no list of detections; make it again"):
        load_detections(path)
