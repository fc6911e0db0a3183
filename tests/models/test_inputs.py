"""From pixels to network input, and from a weights file back to a detector."""

import numpy as np
import pytest
import torch
from micro import micro, run

from fsd.experiment import runs
from fsd.files import sha256
from fsd.models.build import build_network, build_normalise, load_detector
from fsd.models.weights import SEAL, fingerprint


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


def sealed_file(path):
    """A weights.pt as training writes it, of a very small detector."""
    plan = runs.resolve(micro(), run("baseline"))
    torch.manual_seed(0)
    network = build_network(plan["network"], 2).eval()
    meta = {key: plan[key] for key in ("run", "data", "network", "recipe")}
    state = network.state_dict()
    torch.save({"model": state, "meta": meta | {SEAL: fingerprint(state, meta)}}, path)
    return state


def damaged(data: bytes, rng) -> bytes:
    """A file with one thing wrong: a bit, a byte, a block of zeros, an end that is missing."""
    out, at = bytearray(data), int(rng.integers(len(data)))
    kind = rng.integers(5)
    if kind == 0:
        out[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        out[at] = int(rng.integers(256))
    elif kind == 2:
        out[at : at + 64] = bytes(len(out[at : at + 64]))
    elif kind == 3:
        del out[at:]
    else:
        del out[at : at + 7]
    return bytes(out)


@pytest.mark.filterwarnings("ignore")  # torch's own, about the odd files
def test_a_damaged_file_is_a_sentence_or_the_same_numbers(tmp_path):
    path = tmp_path / "weights.pt"
    state = sealed_file(path)
    whole, rng = path.read_bytes(), np.random.default_rng(20)
    head = len(whole) // 50  # where names and structure lie: most of the file is numbers
    refused = 0
    for trial in range(250):
        part = slice(0, head) if trial % 3 == 0 else slice(len(whole) - head, None)
        if trial % 3 == 2:
            part = slice(None)
        start, stop, _ = part.indices(len(whole))
        path.write_bytes(whole[:start] + damaged(whole[start:stop], rng) + whole[stop:])
        try:
            model, _ = load_detector(path)
        except ValueError as error:
            refused += 1
            assert "weights.pt" in str(error) and "\n" not in str(error)
            continue
        found = model[1].state_dict()
        assert all(torch.equal(found[name], value) for name, value in state.items()), trial
    assert refused > 100


@pytest.mark.parametrize(
    "change",
    [{"depth": 1e6}, {"width": -1}, {"width": "wide"}, {"size": "yolox_q"}, {"depth": None}],
)
def test_a_description_that_lies_is_refused(tmp_path, change):
    path = tmp_path / "weights.pt"
    sealed_file(path)
    content = torch.load(path, weights_only=True)
    del content["meta"][SEAL]
    content["meta"]["network"] |= change
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"weights\.pt is not a weights\.pt of a run"):
        load_detector(path)


def test_another_training_s_weights_are_not_taken_for_it(tmp_path):
    path = tmp_path / "weights.pt"
    sealed_file(path)
    with pytest.raises(ValueError, match="not the file that its record names"):
        load_detector(path, "0" * 64)
    load_detector(path, sha256(path))
