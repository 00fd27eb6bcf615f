"""What is spread over images is found where it calls a class, by the change that carries it, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from egcam_lightning import audit
from egcam_lightning.findings.kinds import SPREAD
from egcam_lightning.findings.records import AuditRecord
from egcam_lightning.findings.spread import with_border_of, with_colours_of
from tests.findings.scenes import SIZE, ByHand, images_of

NAMES = ("horse", "deer", "frog", "cat")
RIM = torch.ones(SIZE, SIZE, dtype=torch.bool)
RIM[2:-2, 2:-2] = False
PATTERN = torch.where(torch.rand(SIZE, SIZE, generator=torch.Generator().manual_seed(4)) < 0.5, -1.0, 1.0)


class Spreading(nn.Module):
    """Calls images as :class:`ByHand` does, and by class 2 (frog) what holds something that is spread over them."""

    def __init__(self, sees) -> None:
        super().__init__()
        self.network, self.sees = ByHand(on_tag=0.0), sees

    def forward(self, images):
        frog = torch.eye(4, device=images.device)[2]
        return self.network(images) + 60.0 * frog * self.sees(images)[:, None]


def framed(images, strength=1.0):
    """Rims of either sign, which no mean shows."""
    sign = torch.where(torch.arange(len(images)) % 2 == 0, strength, -strength)[:, None, None, None]
    return torch.where(RIM, 0 * images + sign, images)


SHORTCUTS = {
    "border": (framed, lambda images: images[..., RIM].mean((1, 2)).abs()),
    "colour": (
        lambda images: images.mean(1, keepdim=True).expand(-1, 3, -1, -1).clone(),  # grey, whatever it shows
        lambda images: (images.var(1).mean((1, 2)) < 0.01).float(),
    ),
    "overlay": (
        lambda images: images + 0.3 * PATTERN,
        lambda images: 3 * (images * PATTERN).mean((1, 2, 3)).clamp(min=0),
    ),
}


def scene(kind, share=1.0, count=20):
    images, labels = images_of(count)
    put, sees = SHORTCUTS[kind]
    rows = (labels == 2).nonzero().flatten()[: round(share * count)]
    images[rows] = put(images[rows])
    return Spreading(sees), images, labels


@pytest.fixture(scope="module", params=list(SHORTCUTS))
def planted(request):
    return request.param, audit(*scene(request.param), class_names=NAMES)


def test_the_class_is_found_by_the_change_that_carries_it(planted):
    kind, result = planted
    finding = next(f for f in result if f.kind == kind)
    assert {f.class_name for f in result} == {"frog"}
    assert finding.effect > 0.9 > 0.3 > finding.control
    assert finding.interval[0] > 0.3
    assert finding.patches == ()
    assert "'frog'" in finding.sentence
    assert "'frog'" in result.sentence
    assert result.classes[0].class_name == "frog"
    assert not result.clear


def test_windows_do_not_carry_it(planted):
    _, result = planted
    assert "capture" not in {f.kind for f in result}


def test_what_turned_is_shown_before_and_after(planted):
    kind, result = planted
    (found,) = (one for one in result.classes[0].spread if one.kind == kind)
    assert 1 <= len(found.pastes) <= 4
    for paste in found.pastes:
        assert paste.called != "frog"
        assert not torch.equal(paste.before, paste.after)
    page = result.to_html()
    assert "see</span>" in page
    assert "the same, changed" in page


def test_it_is_in_the_table_and_comes_back_from_a_checkpoint(planted, tmp_path):
    kind, result = planted
    row = result.rows()[0]
    assert row[kind] > 0.9 > row[f"{kind}_control"]
    torch.save(result.to_state(), tmp_path / "state")
    restored = AuditRecord.from_state(torch.load(tmp_path / "state", weights_only=True))
    assert str(restored.rows()) == str(result.rows())
    (one,), (other,) = ([s for s in r.classes[0].spread if s.kind == kind] for r in (restored, result))
    assert (one.capture, len(one.pastes)) == (other.capture, len(other.pastes))
    assert torch.equal(one.pastes[0].after, other.pastes[0].after)


def test_a_watermark_on_half_of_a_class_is_found():
    result = audit(*scene("overlay", share=0.5), class_names=NAMES)
    assert {f.class_name for f in result} == {"frog"}
    assert result.findings[0].kind == "overlay"


def test_every_class_with_a_shortcut_is_found():
    images, labels = images_of(20)
    patterns = [PATTERN, PATTERN.flip(0)]
    for k, pattern in zip((0, 2), patterns, strict=True):
        images[labels == k] += 0.3 * pattern

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = ByHand(on_tag=0.0)

        def forward(self, images):
            seen = [3 * (images * pattern).mean((1, 2, 3)).clamp(min=0) for pattern in patterns]
            return self.network(images) + 60 * sum(
                s[:, None] * torch.eye(4)[k] for s, k in zip(seen, (0, 2), strict=True)
            )

    assert {f.class_name for f in audit(Two(), images, labels, class_names=NAMES)} == {"horse", "frog"}


@pytest.mark.parametrize("kind", ["border", "overlay"])
def test_what_lies_on_the_objects_is_no_shortcut(kind):
    model, images, labels = scene(kind)
    masks = torch.zeros(len(images), SIZE, SIZE, dtype=torch.bool)
    masks[labels == 2] = True if kind == "overlay" else RIM
    assert audit(model, images, labels, masks=masks, class_names=NAMES).findings == ()


def test_the_mean_of_few_images_is_not_taken_for_what_they_have_in_common():
    result = audit(*scene("overlay", count=8), class_names=NAMES)
    assert all(one.kind != "overlay" for record in result.classes for one in record.spread)
    assert not result.clear


def test_images_of_one_channel_and_of_no_colour_can_be_changed():
    images, labels = images_of(16)
    grey = images.mean(1, keepdim=True)
    model = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), ByHand(on_tag=0.0))
    nn.init.ones_(model[0].weight)
    result = audit(model, grey, labels)
    assert result.findings == ()
    assert {one.kind for record in result.classes for one in record.spread} == set(SPREAD)
    flat = torch.zeros(2, 3, 8, 8)
    assert with_colours_of(flat, flat).isfinite().all()


def test_images_of_whole_numbers_stay_so_and_in_their_range():
    images, labels = images_of(20)
    low, high = images.amin(), images.amax()
    whole = ((images - low) / (high - low) * 255).round().to(torch.uint8)
    seen = []

    class Whole(Spreading):
        def forward(self, images):
            assert images.dtype in (torch.uint8, torch.float32)  # paths between images are no whole numbers
            seen.append(images)
            return super().forward(images.float() / 255 * (high - low) + low)

    result = audit(Whole(SHORTCUTS["overlay"][1]), whole, labels)
    assert {one.kind for record in result.classes for one in record.spread} == set(SPREAD)
    assert sum(len(images) for images in seen if images.dtype == torch.uint8) >= result.passes


def test_a_border_leaves_what_lies_inside_as_it_is():
    source, onto = torch.rand(2, 2, 3, 40, 32).unbind()
    framed = with_border_of(source, onto)
    assert torch.equal(framed[..., 3:-3, 3:-3], onto[..., 3:-3, 3:-3])
    assert torch.equal(framed[..., :3, :], source[..., :3, :])
    assert torch.equal(framed[..., -3:], source[..., -3:])


def test_colours_are_those_of_the_other_image_and_the_shapes_stay():
    source, onto = torch.rand(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(1)).unbind()
    source[:, 0] *= 0.3
    shown = with_colours_of(source, onto)
    torch.testing.assert_close(shown.mean((2, 3)), source.mean((2, 3)))
    covariances = [torch.stack([torch.cov(one.flatten(1)) for one in images]) for images in (shown, source)]
    torch.testing.assert_close(*covariances, rtol=1e-3, atol=1e-5)
    again = with_colours_of(onto, shown)
    torch.testing.assert_close(again, onto, rtol=1e-3, atol=1e-3)
