"""At the end of a fit the model is audited: what patches do is kept, logged and shown; untested is never all clear."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from egcam_lightning import ExpectedGradCAMCallback, Finding, History
from egcam_lightning.findings.records import AuditRecord
from egcam_lightning.report.summary import summarise
from egcam_lightning.training.auditor import audit_size
from tests.findings.scenes import ByHand, images_of
from tests.support.fits import fit, make_callback
from tests.support.parallel import fit_in_two, fit_sharded

NAMES = ("horse", "deer", "frog", "cat")


class Fixed(LightningModule):
    """A network made by hand, which training leaves as it is."""

    def __init__(self, on_tag):
        super().__init__()
        self.network = ByHand(on_tag)

    def forward(self, x):
        return self.network(x)

    def training_step(self, batch, _):
        return self(batch[0]).sum()

    def validation_step(self, batch, _):
        self(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)

    def on_fit_start(self):
        self.network.norm.momentum = 0.0


def run(tmp_path, on_tag=400.0, tagged=1.0, count=12, labels=None, callbacks=(), **kwargs):
    images, known = images_of(count, tagged=tagged)
    data = TensorDataset(images, known if labels is None else labels(known))
    arguments = {"metrics": (), "num_images": 4, "num_samples": 8, "class_names": NAMES, "max_overhead": None}
    callback = ExpectedGradCAMCallback(**{**arguments, "strict": True, **kwargs})
    trainer = Trainer(
        max_epochs=2,
        callbacks=[callback, *callbacks],
        logger=CSVLogger(tmp_path),
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Fixed(on_tag), DataLoader(data, 16), DataLoader(data, 16))
    return callback, trainer


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return run(tmp_path_factory.mktemp("planted"))


def test_a_patch_that_calls_a_class_is_a_finding_of_the_callback(planted):
    callback, _ = planted
    finding = callback.findings[0]
    assert isinstance(finding, Finding)
    assert (finding.class_name, finding.kind) == ("horse", "capture")
    assert finding.effect > 0.9 > 0.3 > finding.control
    assert finding.patches[0].pixels.dtype == torch.uint8  # as people see them


def test_it_is_logged_written_and_in_the_checkpoint(planted):
    callback, trainer = planted
    logged = [row for row in trainer.logger.experiment.metrics if "egcam/capture/excess" in row]
    trainer.logger.save()
    text = (callback.run_dir.parent / "metrics.csv").read_text()
    assert "egcam/capture/excess" in text or logged
    read = History.load(callback.run_dir).audit
    assert read.rows() == callback.history.audit.rows()
    assert torch.equal(read.findings[0].patches[0].pixels, callback.findings[0].patches[0].pixels)
    again = ExpectedGradCAMCallback()
    again.load_state_dict(callback.state_dict())
    assert [f.sentence for f in again.findings] == [f.sentence for f in callback.findings]


def test_the_page_says_it_first_and_shows_the_patches(planted):
    callback, _ = planted
    said = summarise(callback.history)
    assert said.state == "alarm"
    assert said.lead == callback.history.audit.sentence
    page = (callback.run_dir / "report.html").read_text(encoding="utf-8")
    assert 'class="audit found"' in page
    assert page.count("patch of horse") >= 3


def test_a_clean_network_has_no_finding_and_is_clear_only_where_enough_was_tested(tmp_path):
    callback, _ = run(tmp_path, on_tag=0.0, tagged=0.0)
    audit = callback.history.audit
    assert callback.findings == ()
    assert summarise(callback.history).state == ("clear" if audit.clear else "open")
    blind = replace(audit, sees=0.5)
    assert summarise(replace(callback.history, audit=blind)).state == "open"
    assert summarise(replace(callback.history, audit=None)).state == "open"
    assert any("Not tested for shortcuts" in line for line in summarise(replace(callback.history, audit=None)).details)


def test_several_labels_an_image_are_not_audited_and_the_page_says_why(tmp_path):
    callback, _ = run(tmp_path, labels=lambda known: torch.eye(4)[known].int() | torch.eye(4)[(known + 1) % 4].int())
    assert callback.findings == ()
    assert "Not tested for shortcuts" in callback.history.audit.sentence
    assert "several for each image" in callback.history.audit.sentence
    assert math.isinf(callback.history.audit.sees)
    assert summarise(callback.history).state == "open"


def test_none_is_made_where_none_is_asked_for(tmp_path):
    callback, _ = run(tmp_path, audit_images=0)
    assert callback.history.audit is None
    assert not (callback.run_dir / "audit.json").exists()
    with pytest.raises(ValueError, match=r"`audit_images` to be the number of images"):
        ExpectedGradCAMCallback(audit_images=-1)


def test_every_snapshot_can_be_audited_and_monitored(tmp_path):
    stop = EarlyStopping("egcam/capture/excess", patience=5)
    callback, trainer = run(tmp_path, audit_every=1, callbacks=[stop])
    values = [snapshot.metrics.get("capture/excess") for snapshot in callback.history]
    assert values[0] is None  # before training
    assert all(value > 0.5 for value in values[1:])
    assert float(trainer.callback_metrics["egcam/capture/excess"]) == pytest.approx(values[-1])
    with pytest.raises(MisconfigurationException, match=r"at the end of the fit alone. Write audit_every=1"):
        run(tmp_path, callbacks=[EarlyStopping("egcam/capture/excess")])


def test_a_budget_makes_the_sample_smaller_and_never_none():
    assert audit_size(256, 8.0, 16, left=None) == 256
    assert audit_size(256, 8.0, 16, left=16.0) == 128
    assert audit_size(256, 8.0, 16, left=0.0) == 64
    assert audit_size(40, 8.0, 16, left=0.0) == 40
    assert audit_size(256, 8.0, 16, left=None, numbers=96**3) == 151, "as many volumes as 512 MB hold"
    assert audit_size(256, 8.0, 16, left=None, numbers=3 * 1024**2) == 64


def test_a_damaged_file_is_told_of(planted, tmp_path):
    callback, _ = planted
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("history.jsonl", "probe.npz"):
        (copy / name).write_bytes((callback.run_dir / name).read_bytes())
    (copy / "maps").symlink_to(callback.run_dir / "maps")
    (copy / "audit.json").write_text('{"findings": 3}')
    with pytest.raises(ValueError, match=r"audit.json is damaged"):
        History.load(copy)


@pytest.mark.parametrize("kind", ["none", "iterable"])
def test_validation_data_that_cannot_be_chosen_from_are_told_of(tmp_path, kind):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(zip(*images_of(4), strict=True))

    images, labels = images_of(12, tagged=1.0)
    data = TensorDataset(images, labels)
    loaders = {"none": None, "iterable": DataLoader(Stream(), 8)}
    callback = ExpectedGradCAMCallback(metrics=(), num_images=4, num_samples=4, max_overhead=None, strict=True)
    trainer = Trainer(
        max_epochs=1,
        callbacks=[callback],
        logger=CSVLogger(tmp_path),
        accelerator="cpu",
        enable_progress_bar=False,
    )
    trainer.fit(Fixed(1.0), DataLoader(data, 16), loaders[kind])
    assert callback.history.audit.sentence.startswith("Not tested for shortcuts: the validation data have no index")
    assert summarise(callback.history).state == "open"


SEEN: list[int] = []  # not the module's own, which an audit leaves as it was


class Counting(Fixed):
    """Counts the images that it sees; its weights are sharded where there is something to shard them over."""

    def configure_model(self):
        if self._device_mesh is not None:
            for unit in (self.network.features, self):
                fully_shard(unit, mesh=self.device_mesh["data_parallel"])

    def forward(self, x):
        SEEN.append(len(x))
        return super().forward(x)

    def on_fit_start(self):
        super().on_fit_start()
        SEEN.clear()

    def on_fit_end(self):
        torch.save(sum(SEEN), f"{self.trainer.default_root_dir}/seen_{self.trainer.global_rank}.pt")


@pytest.mark.timeout(90)
@pytest.mark.cpu("two processes and gloo")
@pytest.mark.parametrize("fit_in_processes", [fit_in_two, fit_sharded], ids=["ddp", "fsdp2"])
def test_two_processes_share_an_audit_and_find_what_one_does(tmp_path, fit_in_processes):
    images, labels = images_of(13, tagged=0.5)
    data = TensorDataset(images, labels)
    seen, audits = [], []
    for folder, work in ((tmp_path / "one", fit), (tmp_path / "two", fit_in_processes)):
        callback = make_callback(num_samples=4, num_images=3, class_names=NAMES)
        loaders = {"train": DataLoader(data, 13), "val": DataLoader(data, 13)}
        folder.mkdir()
        ranks = work(folder, callback, net=Counting(400.0), max_epochs=1, **loaders)
        audits += [callback.history.audit.to_state()] if work is fit else [rank.audit for rank in ranks]
        seen.append([torch.load(path) for path in sorted(folder.glob("seen_*.pt"))])
    one, *two = map(AuditRecord.from_state, audits)
    for each in two:
        assert each.findings[0].class_name == "horse"
        assert each.rows() == one.rows()
        assert [f.sentence for f in each] == [f.sentence for f in one]
        assert each.passes == one.passes
        for a, b in zip(each.classes, one.classes, strict=True):
            assert torch.allclose(a.mean_map, b.mean_map, atol=1e-5)
            assert all(torch.equal(p.pixels, q.pixels) for p, q in zip(a.patches, b.patches, strict=True))
    assert max(seen[1]) < 0.7 * seen[0][0]


@pytest.mark.timeout(90)
@pytest.mark.cpu("two processes and gloo")
def test_an_audit_that_fails_in_one_process_stops_neither(tmp_path):
    class Breaks(Fixed):
        def forward(self, x):
            if self.trainer.global_rank == 1 and len(x) > 20:  # more than any other batch here
                raise RuntimeError("out of luck")
            return super().forward(x)

    data = TensorDataset(*images_of(25))
    callback = make_callback(num_samples=2, num_images=3, strict=False)
    loaders = {"train": DataLoader(data, 10), "val": DataLoader(data, 10)}
    ranks = fit_in_two(tmp_path, callback, net=Breaks(1.0), max_epochs=1, **loaders)
    assert [rank.epoch for rank in ranks] == [1, 1]
    assert [rank.audit for rank in ranks] == [None, None]
    assert any("the audit failed" in message and "out of luck" in message for message in ranks[0].messages)
