"""Images, labels and masks are found wherever people put them."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch

from egcam_lightning.data.batch import find_images, find_label_sets, find_labels, find_masks, get, rival_labels

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
    "an index comes first": ((LABELS * 7, IMAGES, LABELS), (1,), (2,)),
    "coarse and fine": ((IMAGES, LABELS, LABELS * 7), (0,), (1,)),
    "several images": ({"other": IMAGES + 1, "image": IMAGES, "label": LABELS}, ("image",), ("label",)),
    "an index is no label": ({"image": IMAGES, "index": LABELS}, ("image",), None),
    "multi-hot labels are no classes": ((IMAGES, torch.rand(4, 5)), (0,), None),
    "a list of views": ({"depth": IMAGES * 0, "images": [IMAGES, IMAGES + 1], "y": LABELS}, ("images", 0), ("y",)),
    "labels of a binary loss": ((IMAGES, (LABELS % 2).float()[:, None]), (0,), (1,)),
    "labels of a binary loss by name": ({"x": IMAGES, "y": (LABELS % 2).float()}, ("x",), ("y",)),
    "zeros and ones that come later are weights": ((IMAGES, torch.rand(4, 5), torch.ones(4)), (0,), None),
    "values are no classes": ({"x": IMAGES, "y": LABELS + 0.5}, ("x",), None),
}


@pytest.mark.parametrize(("batch", "images", "labels"), BATCHES.values(), ids=BATCHES.keys())
def test_images_and_labels_are_found(batch, images, labels):
    found = find_images(batch)
    assert found == images
    assert torch.equal(get(batch, found), IMAGES)
    assert find_labels(batch, found) == labels


@pytest.mark.parametrize(
    ("batch", "rivals"),
    [
        ((IMAGES, LABELS), []),
        ((LABELS * 7, IMAGES, LABELS), [(0,)]),
        ((IMAGES, LABELS, LABELS * 7), [(2,)]),
        ((IMAGES, LABELS, torch.ones(4), torch.rand(4)), []),
        ({"image": IMAGES, "label": LABELS, "index": LABELS}, []),
        ({"image": IMAGES, "classes": LABELS, "label": LABELS}, [("classes",)]),
        (({"image": IMAGES, "label": LABELS}, LABELS), []),
    ],
)
def test_what_would_do_as_well_as_the_labels_is_known(batch, rivals):
    images = find_images(batch)
    assert rival_labels(batch, images, find_labels(batch, images)) == rivals


def test_a_key_leads_to_labels_and_what_is_none_is_refused():
    batch = {"image": IMAGES, "class": LABELS, "coarse": LABELS, "set": LABELS[:, None] == LABELS, "name": ["a"] * 4}
    assert find_labels(batch, ("image",), key="coarse") == ("coarse",)
    assert find_labels(batch, ("image",), key="set") == ("set",)
    assert find_labels((LABELS, IMAGES, LABELS), (1,), key=0) == (0,)
    for key, found in {"name": "list", "nothing": "NoneType", "image": r"torch.float32 \(4, 3, 8, 8\)"}.items():
        with pytest.raises(ValueError, match=rf"labels of 4 images under `label_key='{key}'`, .* but found {found}\."):
            find_labels(batch, ("image",), key=key)


def test_sets_of_labels_are_second_in_a_tuple_or_named_and_no_input_of_the_model():
    sets = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 0]])
    assert find_label_sets((IMAGES, sets), (0,)) == (1,)
    assert find_label_sets((IMAGES, sets.float()), (0,)) == (1,)
    assert find_label_sets({"image": IMAGES, "attributes": sets, "labels": sets}, ("image",)) == ("labels",)
    assert find_label_sets({"image": IMAGES, "attributes": sets}, ("image",)) is None
    assert find_label_sets((IMAGES, LABELS, sets), (0,)) is None
    assert find_label_sets((IMAGES, sets), (0,), others=[(1,)]) is None
    assert find_label_sets((IMAGES, sets / 2), (0,)) is None


def test_a_key_leads_where_it_says():
    batch = {"views": [IMAGES, IMAGES + 1], "label": LABELS}
    assert torch.equal(get(batch, find_images(batch, "views.1")), IMAGES + 1)
    assert find_images((LABELS, IMAGES), 1) == (1,)
    assert find_images({"left.jpg": IMAGES, "right.jpg": IMAGES}, "right.jpg") == ("right.jpg",)


def test_masks_have_the_size_of_their_images():
    batch = {"image": IMAGES, "mask": torch.ones(4, 1, 8, 8), "small": torch.ones(4, 4, 4)}
    assert find_masks(batch, ("image",), "mask") == ("mask",)
    with pytest.raises(ValueError, match=r"Expected masks of shape \(4, 8, 8\) under `masks_key='small'`.*\(4, 4, 4\)"):
        find_masks(batch, ("image",), "small")


def test_a_list_of_images_is_one_tensor_where_it_has_a_name_or_is_led_to():
    named = {"label": LABELS, "image": list(IMAGES)}
    assert find_images(named) == ("image",)
    assert find_labels(named, ("image",)) == ("label",)
    assert torch.equal(get(named, ("image",)), IMAGES)
    pair = tuple(IMAGES), tuple(LABELS)  # what `tuple(zip(*samples))` makes
    assert torch.equal(get(pair, find_images(pair, 0)), IMAGES)
    # Two batches of grey images (B, H, W), one above the other, are no images of four channels.
    with pytest.raises(ValueError, match="Found no images"):
        find_images((IMAGES[:, 0], IMAGES[:, 1]))


@pytest.mark.parametrize(
    ("batch", "key", "message"),
    [
        ({"ids": LABELS}, None, r"no tensor of shape .* ids: torch.int64 \(4,\).*`collate_fn` make .*`probe=batch`"),
        ({"image": IMAGES, "label": LABELS}, "label", r"`input_key='label'`, but found torch.int64 \(4,\).*dots"),
        ({"views": [IMAGES]}, "views.1", r"`input_key='views.1'`, but found NoneType.*holds views.0: torch.float32"),
        ({"image": IMAGES.long()}, None, r"image: torch.int64 \(4, 3, 8, 8\). Images of other integers: write"),
        ((IMAGES[:, 0], LABELS), None, r"0: torch.float32 \(4, 8, 8\).* for their channels: write `image\[None\]`"),
        ({"image": [IMAGES[0], IMAGES[0, :, 1:]]}, None, r"A list of .* wants one size, and `torch.stack`"),
    ],
)
def test_a_batch_without_images_says_what_it_holds_and_what_to_write(batch, key, message):
    with pytest.raises(ValueError, match=message):
        find_images(batch, key)
