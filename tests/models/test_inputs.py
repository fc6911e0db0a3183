"""From pixels to network input, and from a weights file back to a detector."""

import pytest
import torch
from micro import micro, run

from fsd.experiment import runs
from fsd.models.build import build_network, build_normalise, load_detector


def test_the_two_recipes_feed_what_their_programs_feed():
    loaded = micro()
    images = torch.rand(2, 3, 32, 32) * 255
    official = build_normalise(loaded.recipes["yolox"].model_dump())
    assert official(images) is images
    recipe = loaded.recipes["fsd_release"].model_dump()
    released = build_normalise(recipe)(images)
    red = (images[:, 2] - 123.675) / 58.395  # the third of BGR is the first of RGB
    torch.testing.assert_close(released[:, 0], red)
    blue = (images[:, 0] - 103.53) / 57.375
    torch.testing.assert_close(released[:, 2], blue)


def test_the_two_recipes_differ_where_their_programs_do():
    loaded = micro()
    official, released = loaded.recipes["yolox"], loaded.recipes["fsd_release"]
    assert (official.simota_radius, released.simota_radius) == (1.5, 2.5)
    assert (official.simota_candidates, released.simota_candidates) == ("centre", "box_or_centre")
    assert (official.schedule_offset, released.schedule_offset) == (0, 1)
    assert official.augment.mixup_scale == [0.5, 1.5]
    assert released.augment.mixup_scale == [0.8, 1.6]
    assert (official.voc_plus_one, official.voc_strict) == (True, True)


def test_a_weights_file_brings_its_detector_back(tmp_path):
    plan = runs.resolve(micro(), run("baseline"))
    network = build_network(plan["network"], 2).eval()
    meta = {key: plan[key] for key in ("run", "data", "network", "recipe")}
    path = tmp_path / "weights.pt"
    torch.save({"model": network.state_dict(), "meta": meta}, path)
    torch.backends.cudnn.allow_tf32 = True  # as torch starts
    model, described = load_detector(path)
    assert torch.backends.cudnn.conv.fp32_precision == "ieee"
    assert described["data"]["classes"] == ["fall", "no_fall"]
    images = torch.rand(1, 3, 64, 64) * 255
    with torch.no_grad():
        torch.testing.assert_close(model(images).boxes, network(images).boxes)


@pytest.mark.parametrize("content", [b"", b"not a file of weights", None])
def test_a_damaged_weights_file_is_one_sentence(tmp_path, content):
    path = tmp_path / "weights.pt"
    if content is None:
        torch.save({"model": {}}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"weights\.pt") as caught:
        load_detector(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError):
        load_detector(tmp_path / "absent.pt")
