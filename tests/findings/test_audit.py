"""An audit finds the class that a patch calls, and none where there is no such patch; the model is left as it was."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch

from egcam_lightning import Finding, audit
from egcam_lightning.findings.records import AuditRecord
from tests.findings.scenes import CLASSES, ByHand, images_of, tag

NAMES = ("horse", "deer", "frog", "cat")


@pytest.fixture(scope="module")
def planted():
    return audit(ByHand(on_tag=160.0), *images_of(12, tagged=1.0), class_names=NAMES)


@pytest.fixture(scope="module")
def clean():
    return audit(ByHand(on_tag=0.0), *images_of(20), class_names=NAMES)


def test_the_class_that_a_patch_calls_comes_first(planted):
    finding = planted.findings[0]
    assert isinstance(finding, Finding)
    assert (finding.target, finding.class_name, finding.kind) == (0, "horse", "capture")
    assert finding.effect > 0.9 > 0.3 > finding.control
    assert finding.interval[0] > 0.3
    assert {f.class_name for f in planted} == {"horse"}
    assert planted.classes[0].class_name == "horse"
    assert len(planted) == len(planted.findings)
    assert not planted.clear
    assert "horse" in planted.sentence
    assert "horse" in finding.sentence


def test_the_patches_of_a_finding_hold_the_tag(planted):
    for patch in planted.findings[0].patches:
        rows, columns = range(patch.top, patch.top + patch.size[0]), range(patch.left, patch.left + patch.size[1])
        assert {26, 29} <= set(rows)
        assert {2, 5} <= set(columns)
        assert patch.share > 0.9


def test_a_patch_on_a_fifth_of_a_class_is_found():
    result = audit(ByHand(on_tag=160.0), *images_of(25, tagged=0.2))
    assert next((f.target, f.kind) for f in result) == (0, "capture")


def test_a_network_without_a_shortcut_has_no_finding(clean):
    assert clean.findings == ()
    assert len(clean.classes) == CLASSES
    assert all(record.tested for record in clean.classes)


def test_an_all_clear_takes_enough_images(clean):
    assert clean.tested.sees <= 0.2
    assert clean.clear
    assert "a texture, blur or noise was not" in clean.sentence  # an all-clear says what it is not of
    few = audit(ByHand(on_tag=0.0), *images_of(4))
    assert few.findings == ()
    assert few.tested.pastes < clean.tested.pastes
    assert not few.tested.enough
    assert not few.clear
    assert few.sentence.startswith("Not tested well enough")


def test_the_model_and_all_random_states_are_as_they_were():
    torch.manual_seed(3)
    model = ByHand(on_tag=160.0).train()
    model.norm.eval()
    before = copy.deepcopy(model.state_dict())
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    audit(model, *images_of(6, tagged=1.0))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert (states[2] == np.random.get_state()[1]).all()  # noqa: NPY002


def test_a_seed_gives_one_audit():
    first, second = (audit(ByHand(on_tag=160.0), *images_of(6, tagged=0.5), seed=7) for _ in range(2))
    assert str(first.rows()) == str(second.rows())


@pytest.mark.parametrize(("on_tag", "passes"), [(0.0, 12.5), (160.0, 14.5)])
def test_passes_are_about_twelve_an_image_and_two_more_for_a_finding(on_tag, passes):
    images, labels = images_of(25, tagged=0.5)
    assert audit(ByHand(on_tag=on_tag), images, labels).passes <= passes * len(images)


def test_findings_and_classes_come_back_from_a_checkpoint(planted, tmp_path):
    torch.save(planted.to_state(), tmp_path / "state")
    restored = AuditRecord.from_state(torch.load(tmp_path / "state", weights_only=True))
    assert str(restored.rows()) == str(planted.rows())
    assert restored.tested == planted.tested
    assert restored.sentence == planted.sentence
    for one, other in zip(restored.findings, planted.findings, strict=True):
        assert (one.target, one.interval, one.sentence) == (other.target, other.interval, other.sentence)
        assert torch.equal(one.patches[0].pixels, other.patches[0].pixels)
    for one, other in zip(restored.classes, planted.classes, strict=True):
        assert one.parts == other.parts
        assert [(p.patch, p.called) for p in one.pastes] == [(p.patch, p.called) for p in other.pastes]
        assert all(torch.equal(a.after, b.after) for a, b in zip(one.pastes, other.pastes, strict=True))


def test_rows_make_a_table(planted):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(planted.rows())
    assert table["class_name"][0] == "horse"
    assert table["finding"].tolist() == [True, False, False, False]
    weights = [record.weight for record in planted.classes]
    assert weights == sorted(weights, reverse=True)


def test_baselines_are_what_patches_are_pasted_into():
    images, labels = images_of(8, tagged=1.0)
    others, _ = images_of(8, seed=5)
    result = audit(ByHand(on_tag=160.0), images[labels == 0], labels[labels == 0], others)
    assert [c.class_name for c in result.classes] == ["0"]
    assert result.findings[0].target == 0


def test_the_page_is_one_file_that_says_no_more_than_was_tested(planted, clean, tmp_path):
    page = planted.to_html(tmp_path / "audit.html")
    assert (tmp_path / "audit.html").read_text(encoding="utf-8") == page
    assert '<header class="alarm">' in page
    assert "horse" in page
    assert "http://" not in page
    assert "https://" not in page
    assert "<script" not in page
    assert page.count("data:image/png") >= CLASSES
    assert '<header class="clear">' in clean.to_html()
    few = audit(ByHand(on_tag=0.0), *images_of(4), class_names=["<b>", "b", "c", "d"])
    assert '<header class="open">' in few.to_html()
    assert "<b>" not in few.to_html()


def test_windows_are_taken_beside_the_objects_where_masks_say_where_they_are():
    images, labels = images_of(12, tagged=1.0)
    masks = torch.zeros(len(images), 32, 32, dtype=torch.bool)
    masks[:, 24:32, 0:8] = True  # the tag is the object
    result = audit(ByHand(on_tag=160.0), images, labels, masks=masks, class_names=NAMES)
    assert result.findings == ()
    assert any("beside the marked objects" in note for note in result.notes)


def test_how_small_a_part_does_it_is_said_of_classes_with_a_finding():
    images, labels = images_of(25, tagged=1.0)
    result = audit(ByHand(on_tag=160.0), images, labels, class_names=NAMES)
    horse = result.classes[0]
    part = horse.smallest_part
    assert {part.height, part.width} == {4, 6}  # half of 8x12, and it still holds the tag of 4x4
    assert part.capture.effect > 0.9 > 0.3 > part.capture.control
    assert all(not one.parts for one in result.classes[1:])
    assert f"A part of {part.height}x{part.width} pixels still turns" in result.findings[0].sentence
    assert result.rows()[0]["part_height"] == part.height
    assert result.rows()[1]["part_height"] is None


def test_where_a_part_does_less_the_finding_says_that_it_takes_more():
    images, labels = images_of(25)
    wide = tag().repeat(1, 2, 2)[:, :6]  # 6x8, of which a part holds less than all
    images[labels == 0, :, 24:30, 2:10] = wide
    model = ByHand(on_tag=160.0, looks_for=wide, bias=-0.8)
    result = audit(model, images, labels, class_names=NAMES)
    assert result.findings[0].class_name == "horse"
    assert result.classes[0].smallest_part is None
    assert "It takes more than a part of" in result.findings[0].sentence


def test_pastes_that_turned_are_kept_as_examples(planted):
    horse = planted.classes[0]
    assert len(horse.pastes) == 4
    assert {paste.patch for paste in horse.pastes} == set(range(len(horse.patches)))
    for paste in horse.pastes:
        patch = horse.patches[paste.patch]
        rows, columns = slice(patch.top, patch.top + patch.size[0]), slice(patch.left, patch.left + patch.size[1])
        assert paste.called in NAMES[1:]
        assert torch.equal(paste.after[:, rows, columns], patch.pixels)
