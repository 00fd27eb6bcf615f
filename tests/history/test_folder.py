from __future__ import annotations

import contextlib
import io
import json
import struct
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from egcam_lightning.history.codec import pack_maps, round_maps, snapshot_from_state, snapshot_to_state, unpack_maps
from egcam_lightning.history.folder import RunFolder
from egcam_lightning.history.history import History
from egcam_lightning.history.packed import PackedSnapshots
from egcam_lightning.history.records import ProbeImages, Snapshot
from tests.support.snapshots import make_probe, random_snapshot

N, GRID = 4, (7, 5)
FIELDS = [
    "attribution",
    "target",
    "prediction",
    "score",
    "baseline_score",
    "completeness_gap",
    "off_grid",
    "drift_previous",
    "drift_reference",
    "noise_floor",
]


def a_probe(n: int = N) -> ProbeImages:
    generator = torch.Generator().manual_seed(0)
    return make_probe(
        n, 12, 9, labels=torch.arange(n), class_names=("cat", "dög", "<script>", "line\nbreak"), fingerprint="abc",
        masks=torch.rand(n, 12, 9, generator=generator) > 0.5,
    )  # fmt: skip


def a_snapshot(epoch: int = 0, step: int = 9, drift: bool = True, n: int = N, **changes: object) -> Snapshot:
    own = {
        "layer": "layer4.1",
        "prediction": torch.full((n,), -1),
        "metrics": {"drift/previous": 0.1, "complexity": 2.0},
    }
    return random_snapshot(epoch, step, n, GRID, drift, **{**own, **changes})


def assert_same(a: Snapshot, b: Snapshot) -> None:
    assert (a.key, a.when, a.layer, a.baselines) == (b.key, b.when, b.layer, b.baselines)
    assert dict(a.metrics) == dict(b.metrics)
    for name in FIELDS:
        x, y = getattr(a, name), getattr(b, name)
        if x is None:
            assert y is None, name
        else:
            assert x.dtype == y.dtype, name
            torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True, msg=name)


def opened(path, snapshots=()) -> RunFolder:
    folder = RunFolder(path)
    folder.open(a_probe(), "mine")
    for snapshot in snapshots:
        folder.append(snapshot)
    return folder


# ---------------------------------------------------------------------------------------------------- rounding


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(
        st.one_of(
            st.floats(-(2.0**120), 2.0**120, width=32),
            st.floats(-1, 1, width=32),
            st.floats(0.99951171875, 1.00048828125, width=32),
        ),
        min_size=6,
        max_size=6,
    )
)
def test_rounding_twice_changes_no_bit(values):
    half, scale = pack_maps(torch.tensor(values).view(2, 1, 3))
    again = pack_maps(unpack_maps(half, scale))
    assert torch.equal(half, again[0])
    assert torch.equal(scale, again[1])


def test_rounding_keeps_eleven_bits_whatever_the_magnitude():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(6, 8, 8, generator=generator) * torch.tensor([1e-30, 1e-8, 1e-3, 1.0, 1e8, 1e30]).view(-1, 1, 1)
    error = (round_maps(maps) - maps).abs() / maps.abs()
    assert error.max() <= 2**-11


def test_scales_are_powers_of_two_and_an_image_does_not_touch_another():
    maps = torch.tensor([[[1e-6, -3e-6]], [[5e5, 1.0]], [[0.0, 0.0]]])
    half, scale = pack_maps(maps)
    assert torch.equal(torch.frexp(scale)[0], torch.full((3,), 0.5))
    assert torch.equal(round_maps(maps[:1]), round_maps(maps)[:1])
    assert torch.equal(round_maps(maps)[2], torch.zeros(1, 2))
    assert half.dtype == torch.float16


def test_not_a_number_stays_not_a_number_and_spoils_no_other_cell():
    rounded = round_maps(torch.tensor([[[float("nan"), 1.5, float("inf")]]]))
    assert rounded[0, 0, 0].isnan()
    assert rounded[0, 0, 1:].tolist() == [1.5, float("inf")]


# ---------------------------------------------------------------------------------------------------- checkpoint


@pytest.mark.parametrize("drift", [True, False])
def test_checkpoint_state_gives_the_snapshot_back_and_loads_with_weights_only(drift):
    snapshot = a_snapshot(drift=drift, score=torch.tensor([1.0, float("nan"), 3.0, 4.0]))
    buffer = io.BytesIO()
    torch.save(snapshot_to_state(snapshot), buffer)
    buffer.seek(0)
    assert_same(snapshot_from_state(torch.load(buffer, weights_only=True)), snapshot)


def test_checkpoint_state_of_sixteen_images_is_below_four_kilobytes_a_snapshot():
    metrics = {f"metric/{i}": i / 3 for i in range(20)}

    def size(count: int) -> int:
        buffer = io.BytesIO()
        attribution = torch.rand(16, 7, 7, generator=torch.Generator().manual_seed(0))
        states = [
            snapshot_to_state(a_snapshot(i, i, n=16, attribution=attribution, metrics=metrics)) for i in range(count)
        ]
        torch.save(states, buffer)
        return buffer.tell()

    assert (size(51) - size(1)) / 50 < 4000


def test_foreign_state_is_refused():
    with pytest.raises(ValueError, match="not the state of a snapshot"):
        snapshot_from_state({"epoch": 0})


# ---------------------------------------------------------------------------------------------------- run folder


def test_what_was_written_is_read(tmp_path):
    snapshots = [
        a_snapshot(0, 0, drift=False, when="start"),
        a_snapshot(
            0, 9, baseline_score=torch.full((N,), torch.nan), completeness_gap=torch.tensor([0.1, torch.inf, 0, 1e-30])
        ),
        a_snapshot(12345, 9_999_999),
    ]
    opened(tmp_path / "run", snapshots)
    history = History.load(tmp_path / "run")
    assert history.prefix == "mine"
    assert len(history) == 3
    for a, b in zip(history.snapshots, snapshots, strict=True):
        assert_same(a, b)
    probe = a_probe()
    for name in ("images", "labels", "masks"):
        assert torch.equal(getattr(history.probe, name), getattr(probe, name))
    assert history.probe.class_names == probe.class_names
    assert (history.probe.fingerprint, history.probe.restored) == ("abc", True)


def test_volumes_and_their_maps_are_read_over_all_axes(tmp_path):
    generator = torch.Generator().manual_seed(0)
    probe = ProbeImages(
        images=torch.randint(0, 256, (N, 6, 12, 9, 3), generator=generator).to(torch.uint8),
        masks=torch.rand(N, 6, 12, 9, generator=generator) > 0.5,
    )
    maps = round_maps(torch.randn(N, 3, *GRID, generator=generator))
    snapshots = [a_snapshot(0, 9, attribution=maps), a_snapshot(1, 19, attribution=-maps)]
    assert_same(snapshot_from_state(snapshot_to_state(snapshots[0])), snapshots[0])
    assert_same(PackedSnapshots(snapshots)[1], snapshots[1])
    RunFolder(tmp_path).open(probe, "mine", snapshots)
    history = History.load(tmp_path)
    for a, b in zip(history.snapshots, snapshots, strict=True):
        assert_same(a, b)
    assert torch.equal(history.probe.images, probe.images)
    assert torch.equal(history.probe.masks, probe.masks)
    assert history.probe.depth == 6
    header, line, _ = map(json.loads, (tmp_path / "history.jsonl").read_text().splitlines())
    assert (header["version"], header["size"], line["grid"]) == (2, [6, 12, 9], [3, *GRID])
    rewrite(tmp_path, 1, grid=list(GRID))
    with pytest.raises(ValueError, match=r"line 2 .* no size along 3 axes"):
        History.load(tmp_path)
    rewrite(tmp_path, 0, version=1)
    with pytest.raises(ValueError, match="no size along 2 axes"):
        History.load(tmp_path)


def test_a_history_of_images_is_written_as_version_1_always_was(tmp_path):
    opened(tmp_path, [a_snapshot()])
    header, line = map(json.loads, (tmp_path / "history.jsonl").read_text().splitlines())
    assert header.keys() == {
        *("format", "version", "package", "prefix", "fingerprint", "class_names", "restored", "images", "size"),
        "run",  # came later; readers of before pass over it, and histories of before are read without it
    }
    assert (header["version"], header["images"], header["size"]) == (1, N, [12, 9])
    assert line["grid"] == list(GRID)
    with np.load(tmp_path / line["maps"]) as maps:
        assert {name: (array.shape, array.dtype.str) for name, array in maps.items()} == {
            "half": ((N, *GRID), "<f2"),
            "scale": ((N,), "<f4"),
        }


def test_a_probe_without_labels_and_masks_is_read(tmp_path):
    folder = RunFolder(tmp_path)
    folder.open(ProbeImages(images=torch.zeros(2, 3, 4, 3, dtype=torch.uint8)))
    probe = History.load(tmp_path).probe
    assert probe.labels is None
    assert probe.masks is None
    assert probe.class_names is None
    assert probe.restored is False


def test_every_line_is_json_that_any_reader_takes(tmp_path):
    opened(tmp_path, [a_snapshot(baseline_score=torch.full((N,), torch.nan), metrics={"a": float("nan"), "b": 1.0})])

    def refuse(constant):
        raise AssertionError(constant)

    lines = [json.loads(x, parse_constant=refuse) for x in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert lines[0]["format"] == "egcam_lightning.history"
    assert lines[0]["version"] == 1
    assert lines[1]["values"]["baseline_score"] == [None] * N
    assert lines[1]["metrics"] == {"b": 1.0}


def test_the_same_epoch_and_step_is_written_once(tmp_path):
    folder = opened(tmp_path, [a_snapshot(0, 9)])
    assert folder.append(a_snapshot(0, 10)) is True
    assert folder.append(a_snapshot(0, 9)) is False
    assert [s.key for s in History.load(tmp_path).snapshots] == [(0, 9, "epoch"), (0, 10, "epoch")]


@pytest.mark.parametrize("torn", [b'{"epoch": 5, "st', b"\xff\xfe", b"{}"])
def test_a_torn_last_line_is_ignored(tmp_path, torn):
    opened(tmp_path, [a_snapshot()])
    with open(tmp_path / "history.jsonl", "ab") as file:
        file.write(torn)
    assert len(History.load(tmp_path)) == 1


def test_every_prefix_of_a_history_is_a_history(tmp_path):
    opened(tmp_path, [a_snapshot(0, 1), a_snapshot(0, 2)])
    content = (tmp_path / "history.jsonl").read_bytes()
    header = content.index(b"\n") + 1
    lengths = set()
    for end in range(header, len(content) + 1, 7):
        (tmp_path / "history.jsonl").write_bytes(content[:end])
        lengths.add(len(History.load(tmp_path)))
    assert lengths == {0, 1}


def test_opening_with_a_checkpoints_snapshots_cuts_what_is_past_it(tmp_path):
    past = [a_snapshot(0, 9), a_snapshot(1, 19), a_snapshot(2, 29)]
    opened(tmp_path, past)
    (tmp_path / "maps" / "note.txt").write_text("somebody's own")
    folder = RunFolder(tmp_path)
    folder.open(a_probe(), "mine", past[:2])
    assert [s.key for s in History.load(tmp_path).snapshots] == [(0, 9, "epoch"), (1, 19, "epoch")]
    assert sorted(p.name for p in (tmp_path / "maps").iterdir()) == [
        "epoch=0000-step=000009.npz",
        "epoch=0001-step=000019.npz",
        "note.txt",
    ]
    assert folder.append(past[1]) is False
    assert folder.append(past[2]) is True
    assert_same(History.load(tmp_path)[2], past[2])


def test_a_resumed_run_in_another_folder_takes_its_past_along(tmp_path):
    past = [a_snapshot(0, 9), a_snapshot(1, 19)]
    states = [snapshot_to_state(snapshot) for snapshot in past]
    RunFolder(tmp_path / "new").open(a_probe(), "mine", map(snapshot_from_state, states))
    for a, b in zip(History.load(tmp_path / "new").snapshots, past, strict=True):
        assert_same(a, b)


def test_a_failed_write_leaves_the_history_as_it_was(tmp_path, monkeypatch):
    folder = opened(tmp_path, [a_snapshot(0, 9)])
    before = (tmp_path / "history.jsonl").read_bytes()

    class Full(io.FileIO):
        def write(self, data):
            return super().write(bytes(data)[:10])

    monkeypatch.setattr("builtins.open", lambda path, mode, buffering: Full(path, mode))
    with pytest.raises(OSError, match="No space left"):
        folder.append(a_snapshot(1, 19))
    monkeypatch.undo()
    assert (tmp_path / "history.jsonl").read_bytes() == before
    assert folder.append(a_snapshot(1, 19)) is True
    assert len(History.load(tmp_path)) == 2


def test_nothing_temporary_is_left(tmp_path):
    opened(tmp_path, [a_snapshot(0, 9), a_snapshot(1, 19)])
    assert not list(tmp_path.rglob("*.tmp"))


# ---------------------------------------------------------------------------------------------------- from elsewhere


def rewrite(tmp_path, number: int, **changes: object) -> None:
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    lines[number] = json.dumps({**json.loads(lines[number]), **changes})
    (tmp_path / "history.jsonl").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("number", "changes", "message"),
    [
        (0, {"format": "other"}, "format"),
        (0, {"version": 3}, "upgrade"),
        (0, {"version": 2}, "no size along 3 axes"),
        (0, {"version": [1]}, "upgrade"),
        (0, {"size": 12}, "no size along 2 axes"),
        (1, {"grid": [2, 7, 5]}, "no size along 2 axes"),
        (0, {"images": 10**9}, "no whole number"),
        (0, {"images": True}, "no whole number"),
        (0, {"images": 3}, "probe.npz"),
        (0, {"images": 16_000, "size": [2**20, 2**20]}, "more than a probe holds"),
        (0, {"size": [12, 10]}, "expected |u1"),
        (0, {"class_names": "cat"}, "class_names"),
        (0, {"prefix": 3}, "no text"),
        (1, {"epoch": 1.5}, "no whole number"),
        (1, {"epoch": 2**70}, "no whole number"),
        (1, {"maps": "../../secret.npz"}, "no file of maps"),
        (1, {"maps": "maps/epoch=0000-step=000077.npz"}, "not there"),
        (1, {"grid": [2**20, 2**20]}, "all maps together"),
        (1, {"grid": [7, 6]}, "maps/epoch"),
        (1, {"grid": [0, 5]}, "no whole number"),
        (1, {"values": {}}, "'target' is missing"),
        (1, {"metrics": {"a": "x"}}, "no number"),
        (1, {"metrics": {str(i): 0 for i in range(1001)}}, "at most 1000"),
    ],
)
def test_foreign_content_is_refused_with_a_sentence(tmp_path, number, changes, message):
    opened(tmp_path, [a_snapshot()])
    rewrite(tmp_path, number, **changes)
    with pytest.raises(ValueError, match=r"is damaged, or no history of this package") as caught:
        History.load(tmp_path)
    assert message in str(caught.value)
    assert ("line 2" in str(caught.value)) == (number == 1)


@pytest.mark.parametrize(
    ("name", "values"),
    [("score", [1.0]), ("score", 3), ("target", [0.5] * N), ("target", [2**64] * N), ("score", ["nan"] * N)],
)
def test_values_of_another_kind_are_refused(tmp_path, name, values):
    opened(tmp_path, [a_snapshot()])
    line = json.loads((tmp_path / "history.jsonl").read_text().splitlines()[1])
    rewrite(tmp_path, 1, values={**line["values"], name: values})
    with pytest.raises(ValueError, match="is damaged"):
        History.load(tmp_path)


@pytest.mark.parametrize("line", [b"[1]", b"[" * 100_000, b"{", b"\xff\xff", b'{"epoch": NaN}', b"9" * 5000])
def test_a_damaged_line_before_the_last_is_refused(tmp_path, line):
    opened(tmp_path, [a_snapshot()])
    with open(tmp_path / "history.jsonl", "ab") as file:
        file.write(line + b"\n")
    with pytest.raises(ValueError, match="line 3 is damaged"):
        History.load(tmp_path)


def test_a_line_without_end_is_not_read_to_its_end(tmp_path):
    opened(tmp_path)
    with open(tmp_path / "history.jsonl", "ab") as file:
        file.write(b" " * (2**22 + 2))
    with pytest.raises(ValueError, match="longer than 4 MiB"):
        History.load(tmp_path)


def test_a_file_without_end_is_not_read_at_all(tmp_path):
    opened(tmp_path)
    with open(tmp_path / "history.jsonl", "ab") as file:
        file.truncate(2**27 + 1)
    with pytest.raises(ValueError, match="larger than 128 MiB"):
        History.load(tmp_path)


def test_a_folder_without_a_history_names_the_one_below(tmp_path):
    opened(tmp_path / "version_0" / "egcam")
    with pytest.raises(ValueError, match=r"did you mean .*version_0.egcam\?"):
        History.load(tmp_path / "version_0")
    with pytest.raises(ValueError, match="holds no history"):
        History.load(tmp_path)


def maps_file(tmp_path):
    opened(tmp_path, [a_snapshot()])
    return tmp_path / "maps" / "epoch=0000-step=000009.npz"


def npy(array: np.ndarray, **header: object) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=(1, 0))
    content = buffer.getvalue()
    if header:
        text = repr({"descr": "<f2", "fortran_order": False, "shape": (N, *GRID), **header}).encode() + b"\n"
        content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + array.tobytes()
    return content


def write_members(path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


HALF, SCALE = np.zeros((N, *GRID), np.float16), np.ones(N, np.float32)


def test_a_pickle_in_the_maps_is_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    path = maps_file(tmp_path)
    objects = np.array([Bomb()], dtype=object)
    buffer = io.BytesIO()
    np.save(buffer, objects, allow_pickle=True)
    write_members(path, half=buffer.getvalue(), scale=npy(SCALE))
    with pytest.raises(ValueError, match=r"'half' is \|O"):
        History.load(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "members",
    [
        {"half": npy(HALF[:, :-1]), "scale": npy(SCALE)},
        {"half": npy(HALF.astype(np.float64)), "scale": npy(SCALE)},
        {"half": npy(np.asfortranarray(HALF)), "scale": npy(SCALE)},
        {"half": npy(HALF)[:-2], "scale": npy(SCALE)},
        {"half": npy(HALF) + b"more", "scale": npy(SCALE)},
        {"half": npy(HALF, shape=(2**40, 2**40)), "scale": npy(SCALE)},
        {"half": npy(HALF, descr="__import__('os')"), "scale": npy(SCALE)},
        {"half": b"", "scale": npy(SCALE)},
        {"half": b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "scale": npy(SCALE)},
        {"half": npy(HALF)},
        {"half": npy(HALF), "scale": npy(SCALE), "more": npy(SCALE)},
    ],
)
def test_foreign_maps_are_refused(tmp_path, members):
    write_members(maps_file(tmp_path), **members)
    with pytest.raises(ValueError, match="line 2 is damaged"):
        History.load(tmp_path)


def test_maps_that_unpack_to_far_more_than_announced_are_not_unpacked(tmp_path):
    path = maps_file(tmp_path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("half.npy", "w") as member:
            member.write(npy(HALF))
            member.write(bytes(2_000_000))
        archive.writestr("scale.npy", npy(SCALE))
    assert path.stat().st_size < 4096
    with pytest.raises(ValueError, match="longer than it says"):
        History.load(tmp_path)


def test_a_file_of_maps_larger_than_its_content_is_refused_unread(tmp_path):
    path = maps_file(tmp_path)
    path.write_bytes(path.read_bytes() + bytes(10_000))
    with pytest.raises(ValueError, match="larger than what it should hold"):
        History.load(tmp_path)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_a_flipped_byte_anywhere_is_read_or_refused_but_never_crashes(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("run")
    maps_file(folder)
    path = data.draw(st.sampled_from(sorted(p for p in folder.rglob("*") if p.is_file())))
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with contextlib.suppress(ValueError):
        History.load(folder)
