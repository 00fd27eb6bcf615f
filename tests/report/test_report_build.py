"""The page as a file: what goes into it, what it says first, and how it gets onto the disk."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

from egcam_lightning.history.folder import RunFolder
from egcam_lightning.history.history import History
from egcam_lightning.history.records import Snapshot
from egcam_lightning.report import build_report
from egcam_lightning.report.__main__ import main, run_names
from egcam_lightning.report.payload import MAX_GRID, alignment_keys, build_payload, encode_image, encode_maps
from egcam_lightning.report.summary import place, summarise
from tests.support.snapshots import make_history


def change_last(history: History, **metrics: float | None) -> History:
    """The same history with other metrics in its last snapshot; ``None`` takes one away."""
    last = history.snapshots[-1]
    merged = {k: v for k, v in {**last.metrics, **metrics}.items() if v is not None}
    return replace(history, snapshots=(*history.snapshots[:-1], replace(last, metrics=merged)))


def test_maps_survive_storage_to_half_a_step():
    maps = torch.randn(5, 7, 9, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 6, 5)[:, None, None]
    data, scale, grid = encode_maps(maps)
    cells = torch.from_numpy(np.frombuffer(data, np.int8).copy()).reshape(5, *grid)
    assert grid == (7, 9)
    error = (cells * scale[:, None, None] / 127 - maps).abs().amax((1, 2))
    assert (error <= 0.501 * scale / 127).all()


def test_maps_without_anything_finite_are_empty_and_fine_grids_are_averaged_down():
    data, scale, _ = encode_maps(torch.full((1, 2, 2), float("nan")))
    assert data == bytes(4)
    assert scale.tolist() == [0.0]
    hot = torch.zeros(1, 2 * MAX_GRID, 8)
    hot[:, :MAX_GRID] = 1.0
    data, _, grid = encode_maps(hot)
    assert grid == (MAX_GRID, 8)
    assert np.frombuffer(data, np.int8).reshape(grid)[:, 0].tolist() == [127] * (MAX_GRID // 2) + [0] * (MAX_GRID // 2)


def test_small_pictures_are_stored_exactly():
    from io import BytesIO

    from PIL import Image

    image = torch.randint(0, 256, (32, 20, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    kind, data = encode_image(image).split(",")
    assert kind == "data:image/png;base64"
    assert (np.asarray(Image.open(BytesIO(base64.b64decode(data)))) == image.numpy()).all()


def test_colour_tables_are_matplotlibs():
    tables = build_payload([make_history(2, 2)], ["run"])["colormaps"]
    for entry in (*tables["positive"], *tables["signed"]):
        rgb = np.frombuffer(base64.b64decode(entry["table"]), np.uint8).reshape(256, 3)
        assert (rgb == (matplotlib.colormaps[entry["name"]](np.arange(256), bytes=True)[:, :3])).all()


def test_significance_is_judged_by_the_larger_floor_of_the_two_snapshots():
    history = make_history(3, 4)
    drift, low, high = torch.tensor([0.1, 0.3, 0.5]), torch.full((3,), 0.2), torch.full((3,), 0.4)
    first, second = (replace(history[i], noise_floor=f, drift_previous=drift) for i, f in ((2, high), (3, low)))
    rows = build_payload([replace(history, snapshots=(first, second))], ["run"])["runs"][0]["snapshots"]
    assert rows[1]["moved"] == [0, 0, 1]
    assert rows[1]["floor"] == pytest.approx([0.4] * 3)
    elsewhere = replace(first, baselines=99)
    rows = build_payload([replace(history, snapshots=(elsewhere, second))], ["run"])["runs"][0]["snapshots"]
    assert rows[1]["moved"] == [0, 1, 1]


def test_runs_are_aligned_by_the_last_snapshot_of_an_epoch():
    snapshot = make_history(2, 2)[1]

    def taken(*moments: tuple[str, int]) -> tuple[Snapshot, ...]:
        return tuple(replace(snapshot, when=when, epoch=epoch) for when, epoch in moments)

    often = taken(("start", 0), ("step", 0), ("epoch", 0), ("step", 1), ("epoch", 1))
    seldom = taken(("epoch", 0), ("epoch", 1), ("epoch", 3))
    assert alignment_keys(often) == [(-1, -1), (0, -2), (0, -1), (1, -2), (1, -1)]
    probe = make_history(2, 2).probe
    payload = build_payload([History(probe, often), History(probe, seldom)], ["a", "b"])
    assert payload["positions"] == ["start", "0.1", "0", "1.1", "1", "3"]
    assert payload["runs"][0]["at"] == [0, 1, 2, 3, 4, 4]
    assert payload["runs"][1]["at"] == [-1, -1, 0, 0, 1, 2]


def test_a_planted_shortcut_is_said_first():
    said = summarise(make_history(shortcut=True))
    assert said.alarm
    assert said.lead == "The model looks at the same place in every picture, whatever it shows: the top left corner."
    assert "Consensus is 0.98" in said.details[0]
    assert "watermark" in said.details[0]


def test_a_clean_run_raises_no_alarm_and_numbers_in_words_are_the_histories():
    history = change_last(make_history(), **{"completeness_gap": 0.031, "drift/significant": 0.25})
    said = summarise(history)
    text = " ".join(said.details)
    assert not said.alarm
    assert "shortcut of one class, or one that moves, does not show" in text
    assert said.state == "open"
    assert "Not tested for shortcuts" in text
    assert "but for 3 % (completeness gap)" in text
    assert "still changing: since the previous snapshot 25 % of the maps" in text
    wrong = int((history[-1].prediction != history.probe.labels).sum())
    assert f"{wrong or 'None'} of the 8 pictures" in text


@pytest.mark.parametrize(("floor", "settled"), [(0.2, True), (0.7, False)])
def test_nothing_is_called_settled_where_two_estimates_of_a_map_hardly_agree(floor, settled):
    history = change_last(make_history(), **{"drift/noise_floor": floor, "drift/significant": 0.0})
    text = " ".join(summarise(history).details)
    assert ("has settled" in text) is settled
    assert (f"differ by {floor:.2f} (noise floor" in text) is not settled
    assert ("cannot be told from noise" in text) is not settled


def test_objects_that_are_always_in_the_same_place_are_no_alarm_where_masks_say_so():
    history = change_last(make_history(shortcut=True), relevance_mass=0.9)
    assert not summarise(history).alarm
    assert "need not be a shortcut" in summarise(history).details[0]


def test_what_is_not_known_is_not_said():
    history = change_last(make_history(masks=False), **dict.fromkeys(make_history(masks=False)[-1].metrics))
    said = summarise(replace(history, probe=replace(history.probe, labels=None)))
    assert said.details[0].endswith("is not known: it needs maps of two classes.")
    assert len(said.details) == 2
    assert "Not tested for shortcuts" in said.details[1]
    assert not summarise(make_history(snapshots=1, shortcut=True)).alarm
    assert "before training" in summarise(make_history(snapshots=1)).lead


def test_empty_maps_of_a_trained_model_are_an_alarm_and_nothing_else_is_read_off_them():
    history = change_last(make_history(), degenerate=1.0, completeness_gap=1.0, consensus=None)
    said = summarise(history)
    assert said.alarm
    assert "every map is empty" in said.lead
    assert not [sentence for sentence in said.details if "settled" in sentence or "completeness" in sentence]
    assert "every map is empty" not in summarise(change_last(make_history(snapshots=1), degenerate=1.0)).lead


@pytest.mark.parametrize(
    ("row", "column", "words"), [(0, 0, "the top left corner"), (3, 3, "the centre"), (6, 3, "the bottom edge")]
)
def test_places_have_names(row, column, words):
    heat = torch.zeros(7, 7)
    heat[row, column] = 1
    assert place(heat) == words
    assert place(torch.ones(7, 7)) is None
    assert place(torch.zeros(7, 7)) is None


def test_text_of_the_user_cannot_leave_its_place():
    import tempfile

    name = "</script><script>alert(1)</script><!--"
    history = make_history(3, 3)
    history = replace(history, probe=replace(history.probe, class_names=(name,) * 5))
    with tempfile.TemporaryDirectory() as folder:
        text = build_report(history, Path(folder) / "page.html", names=[name]).read_text(encoding="utf-8")
    assert text.count("</script") == 2
    assert "<script>alert" not in text
    data = text.split('id="data">')[1].split("</script>")[0]
    assert json.loads(data)["runs"][0]["name"] == name


def test_a_page_grows_with_snapshots_by_the_same_bytes_each(tmp_path):
    history = make_history(8, 80)
    sizes = []
    for count in (20, 40, 80):
        page = build_report(replace(history, snapshots=history.snapshots[:count]), tmp_path / "page.html")
        sizes.append(page.stat().st_size)
    assert (sizes[2] - sizes[1]) / 40 == pytest.approx((sizes[1] - sizes[0]) / 20, rel=0.05)


def test_a_page_is_replaced_whole_or_not_at_all(tmp_path):
    history = make_history(3, 3)
    page = build_report(history, tmp_path / "folder" / "page.html")
    before = page.read_bytes()
    broken = replace(history[-1], attribution=torch.zeros(2, 7, 7))
    with pytest.raises(ValueError, match="one map per image"):
        build_report(replace(history, snapshots=(broken,)), page)
    assert page.read_bytes() == before
    assert [p.name for p in page.parent.iterdir()] == ["page.html"]


def test_bad_input_is_refused_with_what_to_write(tmp_path):
    history = make_history(2, 2)
    with pytest.raises(ValueError, match="one run or two"):
        build_report([history] * 3, tmp_path / "page.html")
    with pytest.raises(ValueError, match="one name a run"):
        build_report(history, tmp_path / "page.html", names=["a", "b"])
    floats = replace(history, probe=replace(history.probe, images=torch.zeros(2, 3, 8, 8)))
    with pytest.raises(ValueError, match=r"\(N, H, W, 3\) of torch.uint8"):
        build_report(floats, tmp_path / "page.html")


def test_command_line_builds_one_run_and_two(tmp_path, capsys):
    for index in range(2):
        history = make_history(3, 3, seed=index)
        RunFolder(tmp_path / f"version_{index}" / "egcam").open(history.probe, "egcam", history.snapshots)
    one, two = (str(tmp_path / f"version_{index}" / "egcam") for index in range(2))
    main([one])
    assert Path(capsys.readouterr().out.strip()) == tmp_path / "version_0" / "egcam" / "report.html"
    assert "version_0/egcam" in (tmp_path / "version_0" / "egcam" / "report.html").read_text(encoding="utf-8")
    main([one, two, "-o", str(tmp_path / "both.html")])
    assert "version_0 and version_1" in (tmp_path / "both.html").read_text(encoding="utf-8")
    main([one, two])
    assert (tmp_path / "version_0" / "egcam" / "compare.html").exists()


def test_command_line_says_what_is_wrong(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path)])
    assert stop.value.code == 2
    assert "Traceback" not in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["a", "b", "c"])
    assert "one run or two" in capsys.readouterr().err


def test_runs_are_named_by_what_tells_them_apart():
    assert run_names([Path("/x/a/egcam"), Path("/x/b/egcam")]) == ["a", "b"]
    assert run_names([Path("/x/egcam"), Path("/x/y/egcam")]) == ["egcam", "y"]
    assert run_names([Path("/x/egcam"), Path("/x/egcam")]) == ["x/egcam", "x/egcam"]
