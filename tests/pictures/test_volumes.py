"""What is shown of maps over three axes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from egcam_lightning.explain.explanation import to_heatmap
from egcam_lightning.pictures.volumes import flatten_maps, strongest_slices, take_slices


def planes(*values: float) -> Tensor:
    """One volume's map ``(1, d, 1, 2)``, each plane of one value."""
    return torch.tensor(values).view(1, -1, 1, 1).expand(-1, -1, -1, 2)


def random_maps(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_the_strongest_slice_by_hand():
    # At six slices 0, 1, 3, 3.75, 3.25 and 3 a cell.
    assert strongest_slices(planes(0.0, 4.0, 3.0), 6).tolist() == [3]
    # What is negative takes nothing away: the sums of the planes are -7 and 1.
    maps = torch.tensor([[[[2.0, -9.0]], [[0.5, 0.5]]]])
    assert strongest_slices(maps, 2).tolist() == [0]


@pytest.mark.parametrize(
    ("values", "depth", "expected"),
    [
        ((5.0,), 16, 7),  # a layer without depth
        ((0.1,), 3, 1),
        ((3.0, 1.0), 16, 3),  # slices 0 to 3 lie before the first centre
        ((1.0, 3.0), 16, 12),
        ((-1.0, -2.0), 4, 1),  # nothing positive
        ((2.0, 0.0, 2.0), 3, 0),
        ((torch.nan, 1.0, torch.inf), 3, 1),
    ],
)
def test_of_slices_that_tie_the_one_nearest_to_the_middle_is_taken(values, depth, expected):
    assert strongest_slices(planes(*values), depth).tolist() == [expected]


def test_no_slice_of_the_heatmap_at_the_inputs_size_holds_more():
    maps = random_maps(20, 4, 3, 5)
    relevance = to_heatmap(maps, (14, 12, 15)).sum((2, 3))
    torch.testing.assert_close(take_slices(relevance, strongest_slices(maps, 14)), relevance.amax(1))


def test_what_is_shown_is_the_heatmap_there_and_the_map_there():
    maps = random_maps(20, 4, 3, 5)
    flat = flatten_maps(maps, 14)
    there = take_slices(to_heatmap(maps, (14, 12, 15)), flat.slices)
    torch.testing.assert_close(
        to_heatmap(flat.positive, (12, 15)), there / there.amax((1, 2), keepdim=True), rtol=1e-4, atol=1e-5
    )
    whole = torch.nn.functional.interpolate(maps[:, None], (14, 3, 5), mode="trilinear")[:, 0]
    torch.testing.assert_close(flat.signed, take_slices(whole, flat.slices))


def test_what_speaks_against_in_one_plane_hides_nothing_of_the_next():
    flat = flatten_maps(planes(-9.0, 1.0, -9.0), 6)
    assert flat.slices.tolist() == [2]
    assert flat.positive.flatten().tolist() == [0.75, 0.75]
    assert (flat.signed < 0).all()


def test_images_pass_through_as_they_are():
    maps = random_maps(3, 4, 5)
    flat = flatten_maps(maps, None)
    assert flat.slices is None
    assert torch.equal(flat.signed, maps)
    assert torch.equal(flat.positive, maps.clamp(min=0))
    assert take_slices(maps, None) is maps


def test_maps_of_another_kind_are_refused_with_what_was_seen():
    with pytest.raises(ValueError, match=r"\(N, d, h, w\) for volumes of 8 slices, got \(2, 3, 3\)"):
        flatten_maps(torch.zeros(2, 3, 3), 8)
    with pytest.raises(ValueError, match=r"\(N, h, w\) for images, got \(2, 3, 3, 3\)"):
        flatten_maps(torch.zeros(2, 3, 3, 3), None)
