"""What cannot be audited is said, with why; what cannot be tested is no all-clear."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from egcam_lightning import audit
from tests.findings.scenes import ByHand, images_of


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (torch.zeros(16, 4), "several for each image"),
        (torch.zeros(16, 32, 32), "of a segmentation"),
        (torch.rand(16), "as of a regression"),
        (torch.full((16,), 9), "has 4 classes"),
        (torch.zeros(3).long(), "a label for each of 16 images"),
        ([0, 1], "torch.tensor"),
    ],
)
def test_labels_of_no_classes_are_refused_with_why(labels, says):
    with pytest.raises(ValueError, match=f"No audit.*{says}"):
        audit(ByHand(0.0), images_of(4)[0], labels)


def test_images_of_several_sizes_are_refused_with_what_to_do():
    with pytest.raises(ValueError, match="resize them"):
        audit(ByHand(0.0), [torch.zeros(3, 8, 8), torch.zeros(3, 8, 9)], torch.tensor([0, 1]))


def test_the_output_of_a_segmentation_is_refused_with_why():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    images, labels = images_of(4)
    with pytest.raises(ValueError, match=r"No audit.*of a segmentation"):
        audit(model, images, labels)


def test_without_labels_the_classes_are_those_predicted_and_it_says_so():
    result = audit(ByHand(160.0), images_of(8, tagged=1.0)[0])
    assert result.findings[0].target == 0
    assert any("no labels" in note for note in result.notes)


def test_two_classes_are_enough():
    images, labels = images_of(8, tagged=1.0)
    two = labels < 2
    result = audit(ByHand(160.0), images[two], labels[two])
    assert [f.target for f in result if f.kind == "capture"] == [0]


def test_a_single_logit_is_two_classes():
    class One(ByHand):
        def forward(self, images):
            logits = super().forward(images)
            return logits[:, 0] - logits[:, 1]

    images, labels = images_of(8, tagged=1.0)
    two = labels < 2
    result = audit(One(160.0), images[two], 1 - labels[two], class_names=["deer", "horse"])
    assert [f.class_name for f in result if f.kind == "capture"] == ["horse"]


def test_one_class_is_not_tested_and_no_all_clear():
    images, labels = images_of(8)
    result = audit(ByHand(0.0), images[labels == 1], labels[labels == 1])
    assert result.findings == ()
    assert not result.tested.enough
    assert result.sentence.startswith("Not tested")
    assert "other classes" in result.classes[0].why_not
    assert "Not tested" in result.to_html()


def test_a_class_of_few_images_is_left_out_by_name():
    images, labels = images_of(8, tagged=1.0)
    keep = (labels != 2) | (torch.arange(len(labels)) < 12)
    result = audit(ByHand(160.0), images[keep], labels[keep], class_names=["horse", "deer", "frog", "cat"])
    assert any("'frog' was left out: it has 3 images" in note for note in result.notes)
    assert result.tested.left_out == ("frog",)
    assert result.findings[0].class_name == "horse"


def test_a_model_that_calls_everything_the_same_is_not_tested():
    model = ByHand(0.0)
    with torch.no_grad():
        model.features.bias[1] = 1e3
    result = audit(model, *images_of(8))
    assert not result.findings
    assert not result.clear
    assert result.sentence.startswith("Not tested")
    assert any("the model calls 0 of its 8 images by it" in note for note in result.notes)


@pytest.mark.parametrize("size", [(17, 40), (8, 8)])
def test_images_of_any_size_and_of_one_channel(size):
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )
    result = audit(model, torch.rand(24, 1, *size, generator=generator))
    assert len(result.classes) >= 1
