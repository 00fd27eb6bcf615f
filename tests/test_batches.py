"""Images, labels and masks are found wherever people put them."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch

from egcam_lightning.batches import find_images, find_labels, find_masks, get, put, take

IMAGES = torch.rand(4, 3, 8, 8)
LABELS = torch.tensor([0, 1, 2, 3])
Pair = namedtuple("Pair", ["image", "label"])


@dataclass
class Sample:
    pixels: torch.Tensor
    y: torch.Tensor


BATCHES = {
    "bare tensor": (IMAGES, (), None),
    "tuple": ((IMAGES, LABELS), (0,), (1,)),
    "list": ([IMAGES, LABELS], (0,), (1,)),
    "labels first": ((LABELS, IMAGES), (1,), (0,)),
    "named tuple": (Pair(IMAGES, LABELS), (0,), (1,)),
    "dict": ({"image": IMAGES, "label": LABELS}, ("image",), ("label",)),
    "dict of Hugging Face": ({"pixel_values": IMAGES, "labels": LABELS}, ("pixel_values",), ("labels",)),
    "ordered dict": (OrderedDict(x=IMAGES, y=LABELS), ("x",), ("y",)),
    "nested": ({"data": {"image": IMAGES}, "meta": {"target": LABELS}}, ("data", "image"), ("meta", "target")),
    "tuple of dicts": (({"img": IMAGES}, {"y": LABELS}), (0, "img"), (1, "y")),
    "dataclass": (Sample(IMAGES, LABELS), ("pixels",), ("y",)),
    "several images": ({"other": IMAGES + 1, "image": IMAGES, "label": LABELS}, ("image",), ("label",)),
    "an index is no label": ({"image": IMAGES, "index": LABELS}, ("image",), None),
    "multi-hot labels are no classes": ((IMAGES, torch.rand(4, 5)), (0,), None),
}


@pytest.mark.parametrize(("batch", "images", "labels"), BATCHES.values(), ids=BATCHES.keys())
def test_images_and_labels_are_found(batch, images, labels):
    found = find_images(batch)
    assert found == images
    assert torch.equal(get(batch, found), IMAGES)
    assert find_labels(batch, found) == labels


@pytest.mark.parametrize(("batch", "images", "_labels"), BATCHES.values(), ids=BATCHES.keys())
def test_put_changes_only_the_images_of_a_copy(batch, images, _labels):
    other = torch.zeros(2, 3, 8, 8)
    changed = put(batch, images, other)
    assert type(changed) is type(batch)
    assert get(changed, images) is other
    assert torch.equal(get(batch, images), IMAGES)


@pytest.mark.parametrize(("batch", "images", "labels"), BATCHES.values(), ids=BATCHES.keys())
def test_take_cuts_every_sample_alike(batch, images, labels):
    part = take(batch, 2, 4)
    assert torch.equal(get(part, images), IMAGES[:2])
    if labels is not None:
        assert torch.equal(get(part, labels), LABELS[:2])


def test_a_key_leads_where_it_says():
    batch = {"views": [IMAGES, IMAGES + 1], "label": LABELS}
    assert torch.equal(get(batch, find_images(batch, "views.1")), IMAGES + 1)
    assert find_images((LABELS, IMAGES), 1) == (1,)


def test_masks_have_the_size_of_their_images():
    batch = {"image": IMAGES, "mask": torch.ones(4, 1, 8, 8), "small": torch.ones(4, 4, 4)}
    assert find_masks(batch, ("image",), "mask") == ("mask",)
    with pytest.raises(ValueError, match=r"Expected masks of shape \(4, 8, 8\) under `masks_key='small'`.*\(4, 4, 4\)"):
        find_masks(batch, ("image",), "small")


def test_a_batch_without_images_says_what_it_holds_and_what_to_pass():
    with pytest.raises(ValueError, match=r"no tensor of shape .* ids: torch.int64 \(4,\).*Pass `input_key`"):
        find_images({"ids": LABELS})
    with pytest.raises(ValueError, match=r"`input_key='label'`, but found torch.int64 \(4,\)"):
        find_images({"image": IMAGES, "label": LABELS}, "label")
