from __future__ import annotations

import numpy as np
import pytest
import torch

import egcam_lightning.pictures.pixels
from egcam_lightning.history.records import ProbeImages
from egcam_lightning.pictures.draw import LARGEST, color_table, draw
from egcam_lightning.pictures.pixels import to_display
from tests.support.snapshots import make_probe, make_snapshot

QUADRANTS = [(0, 0), (0, 1), (1, 0), (1, 1)]


def parts(panel: np.ndarray) -> list[np.ndarray]:
    """The three pictures of a panel, which has two gaps of four white pixels."""
    width = (panel.shape[1] - 8) // 3
    return [panel[:, k * (width + 4) : k * (width + 4) + width] for k in range(3)]


def blobs(height: int, width: int) -> torch.Tensor:
    """Four maps; the blob of map ``k`` fills one cell in the outer part of quadrant ``k``."""
    maps = torch.zeros(4, height, width)
    for k, (row, column) in enumerate(QUADRANTS):
        maps[
            k, (height - 1 - height // 8) if row else height // 8, (width - 1 - width // 8) if column else width // 8
        ] = 1
    return maps


def quadrant_means(values: np.ndarray) -> np.ndarray:
    height, width = values.shape
    return values.reshape(2, height // 2, 2, width // 2).mean((1, 3))


# ---------------------------------------------------------------------------------------------------- where it is


@pytest.mark.parametrize(("size", "grid"), [((32, 48), (4, 8)), ((224, 224), (8, 8)), ((16, 8), (8, 4))])
def test_a_blob_is_drawn_in_its_own_quadrant(size, grid):
    probe = make_probe(4, *size)
    pictures = draw(make_snapshot(blobs(*grid)), probe)
    for k, (row, column) in enumerate(QUADRANTS):
        picture, blended, signed = (part.astype(float) for part in parts(pictures.panels[k]))
        grey = picture @ [0.299, 0.587, 0.114]
        for drawn in (
            np.abs(blended - grey[..., None]).sum(2),
            signed[..., 2].max() - signed[..., 2],
            pictures.levels[k],
        ):
            means = quadrant_means(drawn)
            assert np.unravel_index(means.argmax(), (2, 2)) == (row, column)
            assert means.max() > 5 * np.sort(means.flat)[-2]


def test_for_is_red_and_against_is_blue():
    maps = torch.zeros(1, 4, 4)
    maps[0, 0, 0], maps[0, 3, 3] = 1, -1
    signed = parts(draw(make_snapshot(maps), make_probe(1, 32, 32)).panels[0])[2].astype(int)
    high, low = signed[4, 4], signed[-5, -5]
    assert high[0] > high[2] + 50
    assert low[2] > low[0] + 50
    assert signed[4, -5].min() > 240


def test_each_map_is_shown_by_its_own_maximum():
    maps = torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(0)) - 0.3
    probe = make_probe(1)
    images = ProbeImages(images=probe.images.repeat(3, 1, 1, 1))
    drawn = draw(make_snapshot(torch.cat([maps, maps * 2.0**20, maps * 2.0**-20])), images).panels
    assert np.array_equal(drawn[0], drawn[1])
    assert np.array_equal(drawn[0], drawn[2])


def test_levels_mark_quarters_of_the_heat_and_strong_evidence_against():
    maps = torch.tensor([[[1.0, 0.6, 0.3, 0.1, -0.1, -0.9]]]).repeat_interleave(40, 2)
    pictures = draw(make_snapshot(maps), make_probe(1, 8, 240))
    assert pictures.levels[0][4, 20::40].tolist() == [3, 2, 1, 0, 0, 4]


# ---------------------------------------------------------------------------------------------------- the picture


def test_small_images_are_enlarged_by_whole_pixels():
    probe = make_probe(2, 8, 6)
    pictures = draw(make_snapshot(torch.rand(2, 2, 2)), probe)
    for picture, panel, image in zip(pictures.pictures, pictures.panels, probe.images.numpy(), strict=True):
        assert np.array_equal(picture, image.repeat(16, 0).repeat(16, 1))
        assert np.array_equal(parts(panel)[0], picture)


def test_large_images_are_shrunk_in_proportion():
    pictures = draw(make_snapshot(torch.rand(1, 2, 2)), make_probe(1, 2 * LARGEST, LARGEST))
    assert pictures.pictures[0].shape == (LARGEST, LARGEST // 2, 3)


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (3, 200), (129, 128)])
def test_any_shape_gives_panels_and_a_sheet(size):
    pictures = draw(make_snapshot(torch.rand(2, 1, 1)), make_probe(2, *size))
    height, width = pictures.pictures[0].shape[:2]
    assert pictures.panels[0].shape == (height, 3 * width + 8, 3)
    assert pictures.levels[0].shape == (height, width)
    sheet = pictures.sheet()
    assert sheet.dtype == np.uint8
    assert sheet.shape[0] > height
    assert sheet.shape[1] > width


def test_the_picture_stays_visible_under_the_heat():
    probe = make_probe(1, 128, 128)
    maps = torch.full((1, 4, 4), -1.0)
    maps[0, 0, 0] = 1
    blended = draw(make_snapshot(maps), probe).blended[0].astype(float)
    grey = probe.images[0].double().numpy() @ [0.299, 0.587, 0.114]
    assert np.abs(blended[64:] - grey[64:, :, None]).max() <= 1
    hottest, under = blended[:12, :12].mean(2), grey[:12, :12]
    assert np.corrcoef(hottest.flat, under.flat)[0, 1] > 0.9


def test_no_opacity_is_the_picture_in_grey():
    probe = make_probe(1, 128, 128)
    blended = draw(make_snapshot(torch.rand(1, 4, 4)), probe, alpha=0).blended[0]
    grey = probe.images[0].double().numpy() @ [0.299, 0.587, 0.114]
    assert np.abs(blended - grey[..., None]).max() <= 0.51


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("-inf")])
def test_a_map_with_nothing_to_show_shows_the_picture_and_says_so(value):
    pictures = draw(make_snapshot(torch.full((1, 4, 4), value)), make_probe(1))
    assert not (pictures.levels[0] % 4).any()
    assert np.ptp(pictures.blended[0], 2).max() == 0
    assert ("not finite" if not np.isfinite(value) else "nothing positive") in pictures.captions[0]


def test_the_objects_masks_are_enlarged_with_the_picture():
    masks = torch.zeros(1, 8, 8, dtype=torch.bool)
    masks[0, 2, 5] = True
    pictures = draw(make_snapshot(torch.rand(1, 2, 2)), make_probe(1, 8, 8, masks=masks))
    assert np.array_equal(pictures.objects[0], masks[0].numpy().repeat(16, 0).repeat(16, 1))
    assert draw(make_snapshot(torch.rand(1, 2, 2)), make_probe(1)).objects is None


# ---------------------------------------------------------------------------------------------------- the words


def caption(probe: ProbeImages | None = None, **changes: object) -> str:
    return draw(make_snapshot(torch.ones(1, 2, 2), **changes), probe or make_probe(1)).captions[0]


def test_a_caption_says_what_is_known():
    probe = make_probe(1, labels=torch.tensor([0]), class_names=("cat", "dog"))
    assert caption(probe) == "#0 · ✓ predicted cat · explains cat · score 4.5 · gap 1.3 % · epoch 3, step 120"
    wrong = caption(probe, prediction=torch.tensor([1]), drift_previous=torch.tensor([0.25]))
    assert wrong == (
        "#0 · ✗ predicted dog, labelled cat · explains cat · score 4.5 · gap 1.3 % · drift 0.25 · epoch 3, step 120"
    )


def test_right_is_what_was_labelled_not_what_is_explained():
    probe = make_probe(1, labels=torch.tensor([0]), class_names=("cat", "dog"))
    one = torch.tensor([1])
    assert "✗ predicted dog, labelled cat · explains dog" in caption(probe, prediction=one, target=one)
    assert "✓ predicted cat · explains dog" in caption(probe, target=one)


def test_right_and_wrong_have_their_own_ink_on_the_sheet():
    probe = make_probe(1, 128, 128, labels=torch.tensor([0]))

    def ink(prediction: int) -> set[tuple[int, ...]]:
        sheet = draw(make_snapshot(torch.ones(1, 2, 2), prediction=torch.tensor([prediction])), probe).sheet()
        return {tuple(colour) for colour in sheet[58 + 128 : 58 + 128 + 24].reshape(-1, 3).tolist()}

    right, wrong = ink(0), ink(1)
    assert any(green > red + 60 for red, green, _ in right)
    assert not any(green > red + 60 for red, green, _ in wrong)
    assert any(red > green + 100 for red, green, _ in wrong)


def test_without_labels_nothing_is_called_right_or_wrong():
    text = caption(prediction=torch.tensor([7]))
    assert "predicted 7" in text
    assert "✓" not in text
    assert "✗" not in text


def test_a_caption_leaves_out_what_has_no_meaning():
    nan = torch.tensor([torch.nan])
    text = caption(completeness_gap=nan, drift_previous=nan, prediction=torch.tensor([-1]))
    assert text == "#0 · no class predicted · explains 0 · score 4.5 · epoch 3, step 120"
    assert "gap above 1000 %" in caption(completeness_gap=torch.tensor([1e9]))


def test_captions_say_before_training_and_stretched_colours():
    assert caption(when="start").endswith("epoch 3, step 120 (before training)")
    assert caption(make_probe(1, restored=False)).endswith(" · colours stretched")


def test_long_and_many_line_class_names_stay_on_one_short_line():
    text = caption(make_probe(1, class_names=("word\n\tword " * 100,)))
    assert "\n" not in text
    assert "…" in text
    assert len(text) < 200


@pytest.mark.parametrize("size", [(8, 8), (200, 4), (224, 224)])
def test_words_never_leave_their_cell(size):
    names = ("W" * 400, "words and words " * 30)
    probe = make_probe(6, *size, labels=torch.zeros(6, dtype=torch.int64), class_names=names, restored=False)
    snapshot = make_snapshot(
        torch.rand(6, 2, 2),
        prediction=torch.ones(6, dtype=torch.int64),
        layer="layer." * 100,
        target=torch.arange(6) % 2,
    )
    pictures = draw(snapshot, probe)
    sheet, cell = pictures.sheet(), max(pictures.panels[0].shape[1], 330) + 24
    assert sheet.shape[1] % cell == 0
    for left in range(0, sheet.shape[1], cell):
        for margin in (sheet[58:, left : left + 11], sheet[58:, left + cell - 11 : left + cell]):
            assert (margin == 255).all()
    assert (sheet[:, -11:] == 255).all()


def test_the_sheet_holds_every_panel_unchanged_and_is_drawn_once():
    pictures = draw(make_snapshot(torch.rand(5, 2, 2)), make_probe(5, 128, 128))
    sheet = pictures.sheet()
    assert pictures.sheet() is sheet
    high, wide = pictures.panels[0].shape[:2]
    columns = sheet.shape[1] // (wide + 24)
    for k, panel in enumerate(pictures.panels):
        y, x = 58 + k // columns * (high + 60), k % columns * (wide + 24) + 12
        assert np.array_equal(sheet[y : y + high, x : x + wide], panel)


# ---------------------------------------------------------------------------------------------------- colours


def lightness(table: np.ndarray) -> np.ndarray:
    """CIE L* of sRGB colours."""
    linear = np.where((c := table / 255) <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    y = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(y > (6 / 29) ** 3, 116 * np.cbrt(y) - 16, y * (29 / 3) ** 3)


def test_the_default_heat_gets_lighter_evenly_and_the_signed_one_darkens_both_ways():
    from inspect import signature

    defaults = {name: p.default for name, p in signature(draw).parameters.items()}
    steps = np.diff(lightness(color_table(defaults["colormap"]))[15::15])
    assert steps.min() > 0.5 * steps.mean()
    assert steps.max() < 1.5 * steps.mean()
    signed = lightness(color_table(defaults["signed_colormap"]))
    assert abs(int(signed.argmax()) - 127.5) < 3
    assert signed[0] == pytest.approx(signed[-1], abs=5)


def test_an_unknown_colour_map_names_the_closest():
    with pytest.raises(ValueError, match=r"unknown colour map 'virids': did you mean viridis"):
        draw(make_snapshot(torch.ones(1, 2, 2)), make_probe(1), colormap="virids")
    with pytest.raises(ValueError, match="unknown colour map"):
        color_table("§§§")


def test_other_misuse_says_what_was_seen():
    with pytest.raises(ValueError, match="from 0 to 1, got 2"):
        draw(make_snapshot(torch.ones(1, 2, 2)), make_probe(1), alpha=2)
    with pytest.raises(ValueError, match="2 maps and the probe 1 images"):
        draw(make_snapshot(torch.ones(2, 2, 2)), make_probe(1))


# ---------------------------------------------------------------------------------------------------- volumes


def test_a_volume_is_drawn_as_the_image_that_its_strongest_slice_is():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 5, 4, 6, generator=generator)
    strongest = maps.clamp(min=0).sum((2, 3)).argmax(1)
    volumes = torch.randint(0, 256, (3, 5, 32, 48, 3), generator=generator).to(torch.uint8)
    masks = torch.rand(3, 5, 32, 48, generator=generator) > 0.5
    there = torch.arange(3), strongest
    volume = draw(make_snapshot(maps), ProbeImages(volumes, masks=masks))
    image = draw(make_snapshot(maps[there]), ProbeImages(volumes[there], masks=masks[there]))
    for name in ("panels", "pictures", "blended", "levels", "objects"):
        for a, b in zip(getattr(volume, name), getattr(image, name), strict=True):
            assert np.array_equal(a, b), name
    assert len(set(strongest.tolist())) > 1
    assert volume.slices == (strongest + 1).tolist()
    assert image.slices is None


def test_the_caption_and_the_sheet_say_which_slice():
    maps = torch.zeros(1, 2, 2, 2)
    maps[0, 1] = 1
    pictures = draw(make_snapshot(maps), ProbeImages(torch.zeros(1, 16, 8, 8, 3, dtype=torch.uint8), restored=True))
    assert pictures.captions == [
        "#0 · predicted 0 · slice 13 of 16 · explains 0 · score 4.5 · gap 1.3 % · epoch 3, step 120"
    ]
    assert pictures.notes[0][1].startswith("slice 13 of 16 · ")
    assert "each slice by its own maximum" in pictures.title


def test_maps_of_volumes_are_not_drawn_over_images():
    with pytest.raises(ValueError, match=r"\(N, h, w\) for images, got \(1, 2, 2, 2\)"):
        draw(make_snapshot(torch.ones(1, 2, 2, 2)), make_probe(1))


def test_every_slice_of_a_volume_is_shown_as_an_image_would_be():
    volumes = torch.rand(2, 3, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    shown, restored = to_display(volumes, [0.5] * 3, [0.2, 0.3, 0.4])
    assert shown.shape == (2, 5, 4, 6, 3)
    assert restored is True
    for k in range(5):
        assert torch.equal(shown[:, k], to_display(volumes[:, :, k], [0.5] * 3, [0.2, 0.3, 0.4])[0])
    pixels = torch.randint(0, 256, (2, 1, 5, 4, 6)).to(torch.uint8)
    assert torch.equal(to_display(pixels)[0], pixels[:, 0, ..., None].expand(-1, -1, -1, -1, 3))


def test_a_volume_is_stretched_as_a_whole():
    volume = torch.tensor([[-1.0, 0.0], [1.0, 3.0]]).view(1, 1, 2, 1, 2)
    shown, restored = to_display(volume)
    assert restored is False
    assert shown[0, ..., 0].flatten().tolist() == [0, 64, 128, 255]


@pytest.mark.parametrize("dtype", [torch.float16, torch.uint8])
def test_volumes_too_large_to_be_shown_keep_their_slices_and_shrink_in_proportion(monkeypatch, dtype):
    monkeypatch.setattr(egcam_lightning.pictures.pixels, "MAX_VOLUME_BYTES", 3 * 2 * 5 * 4 * 6)
    volumes = torch.arange(5).view(1, 1, 5, 1, 1).expand(2, 1, 5, 16, 24).to(dtype)
    shown, _ = to_display(volumes)
    assert shown.shape == (2, 5, 4, 6, 3)
    assert torch.equal(shown, to_display(volumes[..., :4, :6])[0])


# ---------------------------------------------------------------------------------------------------- to_display


def test_mean_and_std_give_the_pixels_back():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 3, 5, 7), generator=generator)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    inputs = (pixels / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    shown, restored = to_display(inputs, mean, std)
    assert restored is True
    assert torch.equal(shown, pixels.permute(0, 2, 3, 1).to(torch.uint8))
    assert torch.equal(to_display(inputs[:, :1], mean[:1], std[:1])[0], shown[..., :1].expand(-1, -1, -1, 3))


def test_bytes_are_shown_as_they_are():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    shown, restored = to_display(pixels)
    assert restored is True
    assert torch.equal(shown[..., 0], pixels[0])


def test_without_mean_and_std_each_image_is_stretched_by_itself():
    image = torch.tensor([-2.0, 0.0, 2.0]).view(1, 1, 1, 3)
    shown, restored = to_display(torch.cat([image, 1000 + image / 10]))
    assert restored is False
    assert shown[:, 0, :, 0].tolist() == [[0, 128, 255]] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
def test_any_number_of_channels_is_shown(channels, dtype):
    images = torch.rand(2, channels, 4, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    shown, _ = to_display(images)
    assert shown.shape == (2, 4, 6, 3)
    if channels >= 3:
        assert torch.equal(shown, to_display(images[:, :3])[0])
    else:
        assert torch.equal(shown, to_display(images.float().mean(1, keepdim=True))[0])
        assert torch.equal(shown[..., 0], shown[..., 2])


def test_constant_and_broken_images_are_shown():
    nan, inf = torch.nan, torch.inf
    images = torch.tensor([[7.0, 7, 7], [nan, 1, 2], [nan, nan, nan], [inf, 1, 2], [-inf, nan, 3]]).view(5, 1, 1, 3)
    assert to_display(images)[0][:, 0, :, 0].tolist() == [[128] * 3, [0, 0, 255], [0] * 3, [0, 0, 255], [0, 0, 128]]
    assert to_display(images[1:2], [0.0], [0.5])[0][0, 0, :, 0].tolist() == [0, 128, 255]


def test_wrong_input_says_what_was_seen():
    with pytest.raises(ValueError, match=r"shape \(N, C, H, W\) or .*, got \(3, 4, 4\)"):
        to_display(torch.rand(3, 4, 4))
    with pytest.raises(ValueError, match="belong together"):
        to_display(torch.rand(1, 3, 4, 4), mean=[0.5])
    with pytest.raises(ValueError, match="mean has 3 numbers and std 3, the images have 2 channels"):
        to_display(torch.rand(1, 2, 4, 4), [0.5] * 3, [0.5] * 3)
