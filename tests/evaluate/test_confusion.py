"""Confusion of classes and precision-recall curves of made-up detections."""

import numpy as np
import pytest
from detection_cases import CLASSES, OBJECTS, SPLIT, found_at, found_from, scene, truth_from

from fsd.evaluate.coco_ap import coco_ap
from fsd.evaluate.confusion import confusion
from fsd.evaluate.metrics import evaluate_detections


def test_by_hand():
    """Two objects beside each other, a difficult one in another image."""
    truth = truth_from([(0, 0, 0, 0, 10, 10, 0), (0, 1, 20, 0, 30, 10, 0), (1, 0, 0, 0, 10, 10, 1)])
    found = found_from(
        [
            (0, 1, 0.9, 0, 0, 10, 10),  # takes object 0 for class 1
            (0, 0, 0.8, 0, 0, 10, 9),  # comes too late for it: background
            (0, 1, 0.29, 20, 0, 30, 10),  # below the score: object 1 is missed
            (1, 1, 0.9, 0, 0, 10, 10),  # on the difficult object: nowhere
            (1, 0, 0.5, 50, 50, 60, 60),  # on nothing
        ]
    )
    assert confusion(truth, found, 2).tolist() == [[0, 1, 0], [0, 0, 1], [2, 0, 0]]


def test_the_closest_of_two_objects_is_taken():
    truth = truth_from([(0, 0, 0, 0, 10, 10, 0), (0, 1, 2, 0, 12, 10, 0)])
    found = found_from([(0, 1, 0.9, 2, 0, 12, 10), (0, 0, 0.8, 1, 0, 11, 10)])
    assert confusion(truth, found, 2).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("found", [found_from([]), found_at(OBJECTS)], ids=["none", "all"])
def test_without_objects(found):
    counts = confusion(truth_from([]), found, 3)
    assert counts[:3].sum() == 0 and counts[3].sum() == (found.score >= 0.3).sum()


@pytest.mark.parametrize("seed", range(4))
def test_every_object_and_every_detection_counts_once(seed):
    truth, found, _, classes = scene(seed)
    counts = confusion(truth, found, classes)
    objects = np.bincount(truth.label[~truth.difficult], minlength=classes)
    assert counts[:classes].sum(1).tolist() == objects.tolist()
    detections = np.bincount(found.label[found.score >= 0.3], minlength=classes)
    assert (counts[:, :classes].sum(0) <= detections).all() and counts[classes, classes] == 0
    order = np.random.default_rng(seed).permutation(len(found.score))
    unique = found._replace(score=found.score + np.arange(len(order)) * 1e-6)
    shuffled = type(found)(*(column[order] for column in unique))
    assert (confusion(truth, shuffled, classes) == confusion(truth, unique, classes)).all()


def test_curves_have_the_area_that_is_the_ap():
    truth, found, images, classes = scene(1)
    coco = coco_ap(truth, found, images, classes)
    assert coco.class_curve50.shape == (classes, 101)
    np.testing.assert_allclose(coco.class_curve50.mean(1), coco.class_ap50)
    known = coco.class_curve50[~np.isnan(coco.class_ap50)]
    assert (np.diff(known, axis=1) <= 0).all()


def test_metrics_hold_curves_and_confusion():
    metrics = evaluate_detections(SPLIT, found_at(OBJECTS))
    assert set(metrics["pr_curves"]) == {"person", "fall"}  # no object of class `unseen`
    assert metrics["pr_curves"]["fall"] == [1.0] * 101
    assert metrics["confusion"]["classes"] == list(CLASSES)
    assert metrics["confusion"]["counts"] == [
        [2, 0, 0, 0],
        [0, 2, 0, 0],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
    ]
