"""Augmentation: boxes follow pixels, both ways of computing agree, draws follow the recipe."""

from dataclasses import replace

import cv2
import numpy as np
import plain_tensors
import pytest
import torch
from counted import Counted
from tiny_splits import COLOURLESS, YOLOX, build_split, smooth_split

from fsd.data.augment.opencv import apply, apply_many
from fsd.data.augment.placement import place, targets
from fsd.data.augment.recipe import draw, order, stack
from fsd.data.augment.tensors import apply_batch


def draws(recipe, split, count=16, *, of=None):
    """As many different draws, over as many epochs as it takes."""
    of = len(split) if of is None else of
    return [
        draw(recipe, seed=0, epoch=number // of, index=number % of, count=of)
        for number in range(count)
    ]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- the numbers ----------------------------------------------------------------------------------


def test_draw_is_a_function_of_seed_epoch_and_index():
    def numbers(**changes):
        arguments = {"seed": 3, "epoch": 5, "index": 7, "count": 100} | changes
        return np.concatenate([np.ravel(field) for field in draw(YOLOX, **arguments)])

    np.testing.assert_array_equal(numbers(), numbers())
    for change in ({"seed": 4}, {"epoch": 6}, {"index": 8}, {"seed": 5, "epoch": 3}):
        assert (numbers() != numbers(**change)).sum() > 10


def test_draws_have_the_moments_of_the_recipe():
    recipe = replace(
        YOLOX,
        mosaic=0.7,
        mixup=0.4,
        degrees=8.0,
        translate=0.2,
        shear=3.0,
        flip=0.2,
        hsv=(5, 30, 40),
    )
    count = 4000
    drawn = stack([draw(recipe, seed=1, epoch=2, index=index, count=50) for index in range(count)])

    def uniform(values, low, high):
        values = np.asarray(values, float)
        assert values.min() >= low and values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < 5 * (high - low) / np.sqrt(12 * count)
        assert abs(values.std() / ((high - low) / np.sqrt(12)) - 1) < 0.04

    uniform(drawn.angle, -8, 8)
    uniform(drawn.scale, 0.1, 2)
    uniform(drawn.mixup_scale, 0.5, 1.5)
    uniform(drawn.partner, 0, 1)
    for axis in range(2):
        uniform(drawn.centre[:, axis], 0.5, 1.5)
        uniform(drawn.shear[:, axis], -3, 3)
        uniform(drawn.translate[:, axis], -0.2, 0.2)
        uniform(drawn.mixup_offset[:, axis], 0, 1)
    for other in range(1, 4):
        uniform(drawn.sources[:, other] + 0.5, 0.5, 49.5)
    np.testing.assert_array_equal(drawn.sources[:, 0], np.arange(count))

    def share(values, expected):
        assert abs(values.mean() - expected) < 5 * np.sqrt(expected * (1 - expected) / count)

    share(drawn.mosaic, 0.7)
    share(drawn.mixup, 0.7 * 0.4)
    assert not (drawn.mixup & ~drawn.mosaic).any()
    share(drawn.flip, 0.2)
    share(drawn.mixup_flip, 0.5)
    for channel, gain in enumerate(recipe.hsv):
        shift = drawn.hsv[:, channel]
        assert -gain < shift.min() < 0 < shift.max() < gain
        share(shift == 0, 0.5 + 0.5 / gain)  # off, or cut to 0
        assert abs(shift.mean()) < gain / 25

    # Nothing is drawn from a number that something else was drawn from.
    fields = np.column_stack([np.asarray(f, float).reshape(count, -1) for f in drawn[2:]])
    correlation = np.corrcoef(fields.T) - np.eye(fields.shape[1])
    assert np.abs(np.nan_to_num(correlation)).max() < 0.1


def test_no_two_images_share_numbers():
    recipe = replace(YOLOX, mosaic_centre=(0.0, 1.0))  # so that centres are the numbers themselves
    drawn = stack(
        [
            draw(recipe, seed=seed, epoch=epoch, index=index, count=50)
            for seed in range(3)
            for epoch in range(3)
            for index in range(50)
        ]
    )
    numbers = np.concatenate((drawn.partner, *drawn.centre.T, *drawn.mixup_offset.T))
    assert len(np.unique(numbers)) == len(numbers) == 5 * 450


def test_order_is_a_permutation_from_seed_and_epoch():
    first = order(100, seed=1, epoch=0)
    assert sorted(first) == list(range(100))
    np.testing.assert_array_equal(first, order(100, seed=1, epoch=0))
    assert (first != order(100, seed=1, epoch=1)).mean() > 0.9
    assert (first != order(100, seed=2, epoch=0)).mean() > 0.9


@pytest.mark.parametrize(
    "change",
    [
        {"mosaic": 1.5},
        {"flip": -0.1},
        {"scale": (2.0, 0.1)},
        {"scale": (0.0, 1.0)},
        {"mosaic_centre": (0.5, 2.5)},
        {"hsv": (5, 30)},
        {"shear": 60.0},
        {"max_boxes": 0},
    ],
)
def test_recipe_refuses(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(YOLOX, **change)


def test_recipe_from_lists_equals_one_from_tuples():
    lists = replace(YOLOX, scale=[0.1, 2.0], hsv=[5, 30, 30])
    assert lists == YOLOX and hash(lists) == hash(YOLOX)
    assert YOLOX.plain() == replace(YOLOX, mosaic=0.0, mixup=0.0)


# --- boxes follow pixels --------------------------------------------------------------------------

COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 0, 255]])


def marked_split(size=96):
    """One box per image, its four corners marked from within, in the image's own colour."""
    rng = np.random.default_rng(5)
    images = np.zeros((len(COLOURS), size, size, 3), np.uint8)
    sizes = rng.integers(size * 2 // 3, size + 1, (len(COLOURS), 2))
    sizes[np.arange(len(COLOURS)), rng.integers(0, 2, len(COLOURS))] = size
    boxes = []
    for image, (height, width), colour in zip(images, sizes, COLOURS, strict=True):
        image[height:], image[:, width:] = 114, 114
        x1, y1 = rng.integers(2, size // 3, 2)
        x2, y2 = np.add((x1, y1), rng.integers(16, size // 3 - 2, 2))
        for x in (x1, x2 - 6):
            for y in (y1, y2 - 6):
                image[y : y + 6, x : x + 6] = colour
        boxes.append((x1, y1, x2, y2))
    labels = np.arange(len(COLOURS)) % 3
    counts = np.ones(len(COLOURS), int)
    return build_split(images, np.array(boxes, np.float32), labels, counts, sizes=sizes)


def extent(mask):
    rows, columns = np.nonzero(mask)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


def whole_boxes(drawn, split, size=None):
    """(box, image) of those boxes that neither the mosaic nor the output's edge cuts."""
    placement = place([drawn], split, size)
    boxes, _, _ = targets(placement, split, 120)
    source_boxes = split.boxes[placement.images[0]]
    seen = placement.seen[0]
    inside = (source_boxes[:, :2] >= seen[:, :2]) & (source_boxes[:, 2:] <= seen[:, 2:])
    for part, image in enumerate(placement.images[0]):
        if image < 0 or not inside[part].all():
            continue
        affine = placement.affine[0, part]
        x1, y1, x2, y2 = split.boxes[image]
        corners = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]]) @ affine[:, :2].T
        corners = corners + affine[:, 2]
        box = np.concatenate((corners.min(0), corners.max(0)))
        if (box > 1).all() and (box < placement.size - 1).all():
            distance = np.abs(boxes - box).max(1)
            assert distance.min() < 1e-3  # it is among the targets
            yield boxes[distance.argmin()], image


@pytest.mark.parametrize("size", [96, 64, 160])
def test_corners_are_found_where_the_boxes_say(size):
    split = marked_split()
    recipe = replace(COLOURLESS, mixup=0.0, scale=(0.6, 1.5))
    found = 0
    for index, drawn in enumerate(draws(recipe, split, 120)):
        drawn = drawn._replace(sources=np.roll(np.arange(5), index)[:4])  # four different ones
        image, _, _ = apply(drawn, recipe, split, size)
        for box, index in whole_boxes(drawn, split, size):
            near = np.abs(image.astype(int) - COLOURS[index]).max(-1) < 128
            np.testing.assert_allclose(box, extent(near), atol=1.0)
            found += 1
    assert found > 40


def test_corners_of_the_mixup_image_are_found_too():
    size = 96
    split = marked_split(size)
    last = len(split) - 1
    split.images[:last] = 0  # black mosaics with boxes; the marks come from the fifth image only
    found, cropped = 0, 0
    ds = draws(COLOURLESS, split, 60, of=last)
    outputs, padded = apply_many(ds, COLOURLESS, split, partners=np.array([last]))
    placement = place(ds, split, partners=np.array([last]))
    for row in range(len(ds)):
        affine = placement.affine[row, 4]
        assert affine[0, 1] == affine[1, 0] == 0
        a, b = split.boxes[last].reshape(2, 2) @ affine[:, :2].T + affine[:, 2]
        box = np.concatenate((np.minimum(a, b), np.maximum(a, b)))
        box = np.clip(box, 0, size)
        if (box[2:] - box[:2] <= 1).any():
            continue
        assert np.abs(padded.boxes[row].numpy() - box).max(1).min() < 1e-3
        if (box > 0).all() and (box < size).all():
            levels = outputs[row].astype(int)  # marks raise blue and red by 255 / 2, never green
            near = levels[..., 0] - levels[..., 1] > 64
            np.testing.assert_allclose(box, extent(near), atol=1.0)
            found += 1
        else:
            cropped += 1
    assert found > 10 and cropped > 3


def test_flip_mirrors_image_and_boxes():
    split = smooth_split()
    width = split.input_px
    for recipe in (COLOURLESS, COLOURLESS.plain()):
        for drawn in draws(replace(recipe, flip=0.0), split, 8):
            image, boxes, labels = apply(drawn, recipe, split)
            mirrored, mirrored_boxes, same = apply(drawn._replace(flip=True), recipe, split)
            apart = np.abs(image[:, ::-1].astype(int) - mirrored)
            assert (apart > 1).mean() < 0.02  # seams
            boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
            np.testing.assert_allclose(boxes, mirrored_boxes, atol=1e-4)
            np.testing.assert_array_equal(labels, same)


def test_plain_images_are_those_stored():
    split = smooth_split()
    recipe = replace(COLOURLESS.plain(), flip=0.0)
    images, padded = apply_many(draws(recipe, split, 8), recipe, split)
    np.testing.assert_array_equal(images, split.images)
    for index in range(8):
        rows = split.rows(index)
        count = rows.stop - rows.start
        np.testing.assert_array_equal(padded.boxes[index, :count], split.boxes[rows])
        np.testing.assert_array_equal(padded.labels[index, :count], split.labels[rows])
        assert (padded.labels[index, count:] == -1).all()
        assert (padded.boxes[index, count:] == 0).all()


# --- what YOLOX does ------------------------------------------------------------------------------


def plain_yolox(drawn, split):
    """The same image the long way: a canvas of two sides, warped, then mixup; boxes by corners."""
    side = split.input_px
    canvas = np.full((2 * side, 2 * side, 3), 114, np.uint8)
    xc, yc = (int(c * side) for c in drawn.centre)
    boxes, labels = [], []
    for part, index in enumerate(drawn.sources):
        height, width = (int(n * split.scales[index]) for n in split.sizes[index])
        x0 = xc - width if part in (0, 2) else xc
        y0 = yc - height if part in (0, 1) else yc
        x1, y1, x2, y2 = (
            max(x0, 0),
            max(y0, 0),
            min(x0 + width, 2 * side),
            min(y0 + height, 2 * side),
        )
        canvas[y1:y2, x1:x2] = split.images[index][y1 - y0 : y2 - y0, x1 - x0 : x2 - x0]
        rows = split.rows(index)
        boxes.append(np.clip(split.boxes[rows] + [x0, y0, x0, y0], 0, 2 * side))
        labels.append(split.labels[rows])
    boxes, labels = np.concatenate(boxes), np.concatenate(labels)
    kept = ((boxes[:, 2:] - boxes[:, :2]) > 1).all(1)
    boxes, labels = boxes[kept], labels[kept]

    matrix = cv2.getRotationMatrix2D((0, 0), drawn.angle, drawn.scale)
    shear = np.tan(np.radians(drawn.shear))
    matrix[:, :2] = [
        matrix[0, :2] + shear[1] * matrix[1, :2],
        matrix[1, :2] + shear[0] * matrix[0, :2],
    ]
    matrix[:, 2] = drawn.translate * side
    corners = boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]] @ matrix[:, :2].T + matrix[:, 2]
    boxes = np.concatenate((corners.min(1), corners.max(1)), 1).clip(0, side)
    matrix[:, 2] += matrix[:, :2] @ [0.5, 0.5] - 0.5  # OpenCV counts in pixel centres
    image = cv2.warpAffine(canvas, matrix, (side, side), borderValue=(114, 114, 114)).astype(float)

    if drawn.mixup:
        partners = np.flatnonzero(np.diff(split.offsets))
        index = partners[int(drawn.partner * len(partners))]
        scaled = int(drawn.mixup_scale * side)
        other = cv2.resize(split.images[index], (scaled, scaled)).astype(float)
        more = split.boxes[split.rows(index)] * scaled / side
        if drawn.mixup_flip:
            other = other[:, ::-1]
            more[:, [0, 2]] = scaled - more[:, [2, 0]]
        padded = np.zeros((max(side, scaled),) * 2 + (3,))
        padded[:scaled, :scaled] = other
        x, y = (int(u * (len(padded) - side)) for u in drawn.mixup_offset)
        image = (image + padded[y : y + side, x : x + side]) / 2
        boxes = np.concatenate((boxes, np.clip(more - [x, y, x, y], 0, side)))
        labels = np.concatenate((labels, split.labels[split.rows(index)]))
    kept = ((boxes[:, 2:] - boxes[:, :2]) > 1).all(1)
    return image, boxes[kept], labels[kept]


def test_images_and_boxes_are_those_of_yolox():
    split = smooth_split(size=96)
    recipe = replace(COLOURLESS, flip=0.0, scale=(0.3, 2.0))
    for drawn in draws(recipe, split, 24):
        image, boxes, labels = apply(drawn, recipe, split)
        expected, expected_boxes, expected_labels = plain_yolox(drawn, split)
        np.testing.assert_allclose(boxes, expected_boxes, atol=1e-3)
        np.testing.assert_array_equal(labels, expected_labels)
        apart = np.abs(image - expected)
        assert np.median(apart) <= 1
        assert (apart > 3).mean() < 0.05  # along the seams


def test_no_mixup_into_a_mosaic_without_boxes():
    split = smooth_split()
    drawn = draw(COLOURLESS, seed=0, epoch=0, index=1, count=len(split))
    empty = drawn._replace(sources=np.array([1, 1, 1, 1]))
    boxed = drawn._replace(sources=np.array([1, 1, 0, 1]))
    placement = place([empty, boxed], split)
    assert placement.images[0, 4] == -1 and placement.images[1, 4] >= 0
    assert 1 not in {place([d], split).images[0, 4] for d in draws(COLOURLESS, split, 200)}


@pytest.mark.parametrize("hsv", [(4, 25, 20), (-4, -25, -20), (3, 0, 0), (-2, 10, 0), (0, -29, 29)])
def test_colours_shift_as_in_yolox(hsv):
    split = smooth_split(4)
    drawn = draw(YOLOX.plain(), seed=0, epoch=0, index=0, count=4)._replace(
        hsv=np.array(hsv), flip=False
    )
    image, _, _ = apply(drawn, YOLOX.plain(), split)
    expected = cv2.cvtColor(split.images[0], cv2.COLOR_BGR2HSV).astype(np.int16)
    expected[..., 0] = (expected[..., 0] + hsv[0]) % 180
    expected[..., 1:] = np.clip(expected[..., 1:] + hsv[1:], 0, 255)
    expected = cv2.cvtColor(expected.astype(np.uint8), cv2.COLOR_HSV2BGR).astype(int)
    assert (np.abs(image - split.images[0].astype(int))).mean() > 1
    np.testing.assert_array_equal(image, expected)


# --- both ways of computing -----------------------------------------------------------------------


def agree(recipe, split, size=None, *, most, share):
    drawn = draws(recipe, split, 20)
    images, padded = apply_many(drawn, recipe, split, size)
    tensors, same = apply_batch(drawn, recipe, torch.from_numpy(split.images), split, size)
    assert tensors.dtype == torch.float32 and tensors.is_contiguous(
        memory_format=torch.channels_last
    )
    assert tensors.shape == (20, 3, size or split.input_px, size or split.input_px)
    for a, b in zip(padded, same, strict=True):
        assert torch.equal(a, b)
    tensors = tensors.permute(0, 2, 3, 1).numpy()
    assert (tensors == np.round(tensors)).all() and tensors.min() >= 0 and tensors.max() <= 255
    assert (np.abs(tensors - images) > most).mean() <= share


@pytest.mark.parametrize("size", [None, 64, 128])
def test_tensors_agree_with_opencv(size):
    split = smooth_split(size=96)
    still = replace(COLOURLESS, mixup=0.0, degrees=0.0, shear=0.0, scale=(1.0, 1.0))
    agree(COLOURLESS.plain(), split, size=size, most=1, share=0)
    if size is None:  # nothing is resampled
        agree(YOLOX.plain(), split, most=1, share=0)
        agree(still, split, most=1, share=0)
    agree(YOLOX.plain(), split, size=size, most=3, share=0.005)
    agree(COLOURLESS, split, size=size, most=2, share=0.02)  # seams
    agree(YOLOX, split, size=size, most=3, share=0.02)
    agree(replace(YOLOX, mosaic=0.5, mixup=0.5), split, size=size, most=3, share=0.02)


STILL = replace(YOLOX, degrees=0.0, shear=0.0, scale=(1.0, 1.0))


@pytest.mark.parametrize("size", [None, 64, 128])
@pytest.mark.parametrize(
    "recipe",
    [
        YOLOX,
        COLOURLESS,
        YOLOX.plain(),
        COLOURLESS.plain(),
        STILL,
        replace(YOLOX, mixup=0.0),
        replace(YOLOX, mosaic=0.5, mixup=0.5),
        replace(YOLOX, hsv=(90, 90, 90), mosaic_centre=(0.0, 2.0)),
        replace(YOLOX, hsv=(0, 0, 90), flip=1.0, degrees=80.0, scale=(0.01, 3.0), shear=40.0),
    ],
)
def test_tensors_are_to_the_last_bit_what_the_plain_form_gives(recipe, size):
    split = smooth_split(size=96)
    drawn = draws(recipe, split, 20)
    images = torch.from_numpy(split.images)
    before = images.clone()
    made, _ = apply_batch(drawn, recipe, images, split, size)
    assert torch.equal(made, plain_tensors.batch(place(drawn, split, size), images))
    assert torch.equal(images, before)


def test_noise_at_the_edges_is_sampled_to_the_last_bit():
    """Images full to their last pixel, each value unlike its neighbours', also in the last image."""
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    split = build_split(images, np.array([[2, 2, 30, 30]] * 3), np.zeros(3), np.ones(3, int))
    halved = replace(STILL, scale=(0.5, 0.5), translate=0.0)  # positions fall on pixels' edges
    for recipe in (YOLOX, STILL, YOLOX.plain(), halved):
        for size in (None, 24, 33, 64):
            drawn = draws(recipe, split, 30)
            made, _ = apply_batch(drawn, recipe, torch.from_numpy(images), split, size)
            expected = plain_tensors.batch(place(drawn, split, size), torch.from_numpy(images))
            assert torch.equal(made, expected)


@pytest.mark.parametrize("hsv", [(5, 30, 30), (-90, -90, -90), (90, 90, 90), (-2, 10, 0)])
def test_every_kind_of_colour_is_shifted_to_the_last_bit(hsv):
    levels = np.arange(0, 256, 5, dtype=np.uint8)  # with 0 and 255
    cube = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 3)
    side = int(np.ceil(np.sqrt(len(cube))))
    images = np.resize(cube, (1, side, side, 3))
    split = build_split(images, np.zeros((0, 4)), np.zeros(0), np.zeros(1, int))
    recipe = YOLOX.plain()
    drawn = [draws(recipe, split, 1)[0]._replace(hsv=np.array(hsv))]
    made, _ = apply_batch(drawn, recipe, torch.from_numpy(images), split)
    assert torch.equal(made, plain_tensors.batch(place(drawn, split), torch.from_numpy(images)))


def test_tensors_take_less_than_half_of_the_plain_form():
    split = smooth_split(16, 128)
    images = torch.from_numpy(split.images)
    for recipe in (YOLOX, YOLOX.plain()):
        drawn = draws(recipe, split, 16)
        placement = place(drawn, split)
        with Counted() as ours:
            apply_batch(drawn, recipe, images, split)
        with Counted() as plain:
            plain_tensors.batch(placement, images)
        assert ours.operations < plain.operations / 2
        assert ours.bytes < plain.bytes / 2


def test_image_does_not_depend_on_its_batch():
    split = smooth_split()
    recipe = replace(YOLOX, mosaic=0.7)
    drawn = draws(recipe, split, 6)
    images, padded = apply_many(drawn, recipe, split)
    for row, one in enumerate(drawn):
        image, boxes, labels = apply(one, recipe, split)
        np.testing.assert_array_equal(image, images[row])
        np.testing.assert_array_equal(boxes, padded.boxes[row, : len(boxes)])
        np.testing.assert_array_equal(labels, padded.labels[row, : len(boxes)])
        assert (padded.labels[row, len(boxes) :] == -1).all()


def test_what_stands_upright_is_sampled_in_place(monkeypatch):
    """Without rotation, and the mixup image always: no copy of the pixels in between."""
    split = smooth_split()
    given, warp = [], cv2.warpAffine

    def noted(*arguments, **named):
        given.append(named.get("dst"))
        made = warp(*arguments, **named)
        assert given[-1] is None or np.shares_memory(made, given[-1])
        return made

    monkeypatch.setattr(cv2, "warpAffine", noted)
    apply_many(draws(STILL, split), STILL, split)
    assert given and not any(dst is None for dst in given)
    given.clear()
    apply_many(draws(YOLOX, split), YOLOX, split)
    assert 0 < sum(dst is not None for dst in given) <= 16 < len(given)


def test_split_is_left_alone():
    split = smooth_split()
    before = split.images.copy(), split.boxes.copy()
    split.images.flags.writeable = split.boxes.flags.writeable = False  # as a memory map
    for recipe in (YOLOX, YOLOX.plain(), COLOURLESS.plain()):
        apply_many(draws(recipe, split), recipe, split)
    np.testing.assert_array_equal(split.images, before[0])
    np.testing.assert_array_equal(split.boxes, before[1])


# --- targets --------------------------------------------------------------------------------------


def test_boxes_lie_in_the_image_and_have_a_size():
    split = smooth_split(12, most_boxes=6)
    for drawn in draws(YOLOX, split, 100):
        boxes, labels, _ = targets(place([drawn], split), split, 120)
        assert boxes.dtype == np.float32 and labels.dtype == np.int64
        assert (boxes >= 0).all() and (boxes <= split.input_px).all()
        assert (boxes[:, 2:] - boxes[:, :2] > 1).all()


def test_no_more_boxes_than_the_recipe_allows():
    split = smooth_split(12, most_boxes=6)
    few = replace(YOLOX, max_boxes=2)
    drawn = draws(YOLOX, split)
    _, padded = apply_many(drawn, few, split)
    _, all_of_them = apply_many(drawn, YOLOX, split)
    assert padded.boxes.shape[1] == 2 < all_of_them.boxes.shape[1]
    assert torch.equal(padded.boxes, all_of_them.boxes[:, :2])


def test_split_without_boxes_gives_one_padded_row():
    images = smooth_split().images
    split = build_split(images, np.zeros((0, 4)), np.zeros(0), np.zeros(len(images), int))
    for recipe in (YOLOX, YOLOX.plain()):
        _, padded = apply_many(draws(recipe, split), recipe, split)
        assert padded.boxes.shape == (16, 1, 4) and (padded.labels == -1).all()
