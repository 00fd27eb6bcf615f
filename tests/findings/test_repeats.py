"""What images of a class repeat is found wherever it lies, and does what the network makes of it."""

from __future__ import annotations

import itertools
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from egcam_lightning import audit
from egcam_lightning.findings import repeats
from egcam_lightning.findings.interventions import Pool
from egcam_lightning.findings.repeats import cut, repeated_pieces
from egcam_lightning.findings.spread import Changes
from egcam_lightning.findings.windows import Windows
from tests.findings.scenes import SIZE, ByHand, images_of, tag

NAMES = ("horse", "deer", "frog", "cat")
EVERYWHERE = torch.ones(6, 1, SIZE, SIZE)
RISE = torch.tensor([3.0, 3, 3, 1, 1, 1])


def noise(count, seed=0):
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def windows_at(places, height=8, width=12):
    top, left = torch.tensor(places).T
    sides = torch.full_like(top, height), torch.full_like(top, width)
    return Windows(torch.arange(len(places)), top, left, *sides)


@pytest.fixture
def stamped():
    """Six images, of which the first three hold a piece of 5x9, at places that differ, and windows around these."""
    images, piece = noise(6), noise(1, seed=1)[0, :, :5, :9]
    places = [(2, 3), (20, 17), (11, 20)]
    for image, (top, left) in zip(images, places, strict=False):
        image[:, top : top + 5, left : left + 9] = piece
    windows = windows_at([(1, 2), (18, 15), (10, 18), (3, 3), (4, 4), (5, 5)])
    return images, piece, places, windows


def test_a_piece_that_three_images_hold_is_found_wherever_it_lies(stamped):
    images, piece, places, windows = stamped
    pieces, where = repeated_pieces(images, windows, RISE, torch.zeros(6).long(), 1, EVERYWHERE)
    (place,) = (p for p in places if where[0, 0, p[0] : p[0] + 5, p[1] : p[1] + 9].all())
    torch.testing.assert_close(pieces[0, :, place[0] : place[0] + 5, place[1] : place[1] + 9], piece)
    assert where.sum() < 45 + 3  # of pixels that have nothing to do with it hardly any are the same by chance


def test_each_class_has_its_own(stamped):
    images, _, _, windows = stamped
    both = torch.cat([images, images.flip(0)])
    twice = Windows(torch.arange(12), *(torch.cat([part, part.flip(0)]) for part in windows.parts[1:]))
    group = torch.arange(12) // 6
    pieces, where = repeated_pieces(
        both, twice, torch.cat([RISE, RISE.flip(0)]), group, 3, torch.cat([EVERYWHERE, EVERYWHERE])
    )
    assert where.flatten(1).any(1).tolist() == [True, True, False]
    assert (pieces[2] == 0).all()


@pytest.mark.parametrize("copies", [1, 2])
def test_what_fewer_than_three_images_hold_is_not_repeated(stamped, copies):
    images, _, places, windows = stamped
    images[copies:3] = noise(3, seed=7)[copies:]
    _, where = repeated_pieces(images, windows, RISE, torch.zeros(6).long(), 1, EVERYWHERE)
    assert all(not where[0, 0, t : t + 5, left : left + 9].all() for t, left in places)


def test_of_fewer_than_three_windows_there_is_nothing(stamped):
    images, _, _, windows = stamped
    _, where = repeated_pieces(images, windows[:2], RISE[:2], torch.zeros(2).long(), 1, EVERYWHERE)
    assert not where.any()


def test_a_plain_piece_is_like_any_other_and_none():
    images = 0.5 + 0.03 * noise(6)
    images[:, :, 0, 0] = torch.arange(6.0)[:, None] / 5  # pixels have a range
    windows = windows_at([(8, 8)] * 6)
    _, where = repeated_pieces(images, windows, RISE, torch.zeros(6).long(), 1, EVERYWHERE)
    assert not where.any()


def test_what_lies_on_the_objects_is_left_out(stamped):
    images, _, places, windows = stamped
    outside = EVERYWHERE.clone()
    top, left = places[1]
    outside[1, 0, top : top + 5, left : left + 9] = 0
    _, where = repeated_pieces(images, windows, RISE, torch.zeros(6).long(), 1, outside)
    assert all(not where[0, 0, t : t + 5, left : left + 9].any() for t, left in places)


def test_compression_does_not_hide_it_and_the_images_unit_does_not_matter(stamped):
    images, _, places, windows = stamped
    images = images + 0.02 * torch.randn(images.shape, generator=torch.Generator().manual_seed(5))
    group = torch.zeros(6).long()
    pieces, where = repeated_pieces(images, windows, RISE, group, 1, EVERYWHERE)
    shares = [float(where[0, 0, t : t + 5, left : left + 9].float().mean()) for t, left in places]
    assert max(shares) > 0.9
    other, there = repeated_pieces(images * 255 - 40, windows, RISE, group, 1, EVERYWHERE)
    assert torch.equal(there, where)
    torch.testing.assert_close(other, pieces * 255 - 40 * where.any(1, keepdim=True), atol=40.1, rtol=0.01)


@given(
    size=st.tuples(st.integers(6, 17), st.integers(6, 17)),
    side=st.tuples(st.integers(2, 5), st.integers(2, 5)),
    seed=st.integers(0, 1000),
    at_once=st.sampled_from([1, 2**22]),
)
@settings(max_examples=15, deadline=None)
def test_likeness_is_the_correlation_of_pixels_however_many_at_once(size, side, seed, at_once):
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.rand(3, 2, *size, generator=generator)
    top, left = torch.tensor([0, size[0] - side[0]]), torch.tensor([size[1] - side[1], 1])
    templates = cut(pictures, torch.tensor([0, 2]), top, left, side)
    with mock.patch.object(repeats, "_NUMBERS_AT_ONCE", at_once):
        likeness, place = repeats._most_alike(pictures, templates)
    for row, other in itertools.product(range(2), range(3)):
        pieces = pictures[other].unfold(1, side[0], 1).unfold(2, side[1], 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
        found = [np.corrcoef(templates[row].flatten(), piece.flatten())[0, 1] for piece in pieces]
        assert likeness[row, other] == pytest.approx(max(found), abs=1e-3)
        assert found[int(place[row, other])] == pytest.approx(max(found), abs=1e-3)


def test_it_is_compared_with_what_another_image_holds_at_that_place(stamped):
    """Whatever covers a part of an image may turn it, and the piece has to do more."""
    images, _, _, windows = stamped
    both = torch.cat([images, noise(6, seed=9)])
    twice = Windows(torch.arange(12), *(torch.cat([part, part]) for part in windows.parts[1:]))
    own = Pool(both, torch.zeros(12, 2), torch.arange(12) // 6)
    changes = Changes(own, twice, torch.cat([RISE, RISE]), own.label, 2, None)
    _, where = repeated_pieces(both, twice, torch.cat([RISE, RISE]), own.label, 2, torch.cat([EVERYWHERE, EVERYWHERE]))
    of, other, source, onto = torch.tensor([0]), torch.tensor([1]), torch.tensor([8]), noise(1, seed=11)
    made = changes.made("repeat", of, source, onto)
    control = changes.control_of("repeat", of, other, source, onto)
    inside = where[:1].expand_as(onto)
    assert torch.equal(control[inside], both[8:9][inside])
    assert not torch.equal(made[inside], control[inside])
    assert torch.equal(made[~inside], onto[~inside])
    assert torch.equal(control[~inside], onto[~inside])


def moving(count=20):
    """Images of which half of class 0 hold a tag, at places that differ."""
    images, labels = images_of(count)
    generator = torch.Generator().manual_seed(3)
    for row in (labels == 0).nonzero().flatten()[: count // 2].tolist():
        top, left = torch.randint(1, SIZE - 4, (2,), generator=generator).tolist()
        images[row, :, top : top + 4, left : left + 4] = tag()
    return images, labels


def test_a_piece_that_turns_a_third_of_images_is_found_where_the_class_repeats_it():
    result = audit(ByHand(on_tag=26.0), *moving(), class_names=NAMES)  # a class whose margin is small: a third of all
    finding = result.findings[0]
    assert (finding.class_name, finding.kind, len(result)) == ("horse", "repeat", 1)
    assert 0.1 <= finding.excess < 0.4  # less than what windows are believed for
    assert finding.interval[0] > 0
    assert result.classes[0].class_name == "horse"
    assert result.classes[0].weight >= 1 > result.classes[1].weight
    assert "a piece that its images repeat turns" in finding.sentence
    assert "A repeated piece alone makes other images 'horse'" in result.sentence
    assert not result.clear
    assert "A piece that its images repeat turns" in result.to_html()


@pytest.mark.parametrize("on_tag", [0.0, 14.0])
def test_a_piece_that_turns_nothing_is_none(on_tag):
    assert audit(ByHand(on_tag=on_tag), *moving(), class_names=NAMES).findings == ()


def test_where_windows_do_it_what_is_repeated_is_no_second_finding():
    result = audit(ByHand(on_tag=160.0), *moving(), class_names=NAMES)
    assert [(f.class_name, f.kind) for f in result if f.kind != "removal"] == [("horse", "capture")]
    assert "repeat" in dict(result.classes[0].captures)
