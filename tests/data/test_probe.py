"""Which images are explained, chosen through a real Trainer."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, SubsetRandomSampler, TensorDataset
from torchvision.transforms import v2

from egcam_lightning import ExpectedGradCAMCallback
from egcam_lightning.data.baselines import Baselines
from tests.support.fits import Net, make_callback, make_trainer

MEAN, STD = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
NORMALIZE = v2.Normalize(MEAN, STD)


class Data(Dataset):
    """Every image has its own brightness, by which it is known again; three classes, of very different sizes."""

    def __init__(self, size=48, keep=True, transform=NORMALIZE):
        self.pixels = torch.linspace(0, 1, size)
        classes = torch.tensor([0] * (size - 8) + [1] * 6 + [2] * 2)
        if keep:
            self.targets = classes
        self.hidden = classes
        self.transform = transform

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        image = self.pixels[index].expand(3, 16, 16).clone()
        image[:, :8] = 0.5
        return image if self.transform is None else self.transform(image), int(self.hidden[index])


def fit(tmp_path, train=None, val=None, datamodule=None, **arguments):
    """One batch of training, with a callback that may warn; ``arguments`` are its own."""
    callback = make_callback(**{"num_images": 16, "num_baselines": 2, "strict": False, **arguments})
    trainer = make_trainer(
        tmp_path, callback, max_epochs=1, limit_train_batches=1, limit_val_batches=1, logger=False,
        num_sanity_val_steps=0,
    )  # fmt: skip
    loaders = [DataLoader(Data(), 8) if loader is None else loader for loader in (train, val)]
    trainer.fit(Net(), *([] if datamodule else loaders), datamodule=datamodule)
    return callback


def explained(callback):
    """The indices of the images, known by the brightness of their lower half."""
    probe = callback.probe
    values = probe.images[:, 0, -1, -1].float() * STD[0] + MEAN[0]
    return (values * 47).round().int().tolist()


@pytest.mark.parametrize("probe", [[3, 17, 42], (42, 3), range(5, 9)])
def test_images_are_taken_by_index_in_the_order_given(tmp_path, probe):
    callback = fit(tmp_path, probe=probe)
    assert explained(callback) == list(probe)
    assert callback.history.probe.labels.tolist() == Data().hidden[list(probe)].tolist()
    assert len(callback.history[-1].attribution) == len(probe)


def test_indices_are_those_of_the_first_validation_set(tmp_path):
    subset = Subset(Data(), list(range(40, 48)))
    callback = fit(tmp_path, val=[DataLoader(subset, 4), DataLoader(Data(), 4)], probe=[1, 7])
    assert explained(callback) == [41, 47]


@pytest.mark.parametrize("keep", [True, False], ids=["targets", "labels in the samples"])
def test_balanced_images_have_every_class_as_often(tmp_path, keep):
    callback = fit(tmp_path, val=DataLoader(Data(keep=keep), 8), probe="balanced", num_images=8)
    assert callback.history.probe.labels.bincount().tolist() == [3, 3, 2]
    assert explained(callback) == [0, 13, 26, 40, 42, 44, 46, 47]


def test_without_a_choice_images_are_evenly_spaced(tmp_path):
    assert explained(fit(tmp_path, num_images=6)) == [0, 8, 16, 24, 32, 40]


@pytest.mark.parametrize("probe", [None, "balanced"])
def test_one_data_set_split_by_samplers_gives_validation_images_and_training_baselines(tmp_path, probe, monkeypatch):
    collected = []
    prepare = Baselines.prepare
    monkeypatch.setattr(
        Baselines, "prepare", lambda *given, **rest: collected.append(given[-1]) or prepare(*given, **rest)
    )
    data, part = Data(), torch.randperm(48, generator=torch.Generator().manual_seed(0)).tolist()
    loaders = [DataLoader(data, 8, sampler=SubsetRandomSampler(indices)) for indices in (part[12:], part[:12])]
    callback = fit(tmp_path, train=loaders[0], val=loaders[1], probe=probe, num_images=8)
    assert len(set(explained(callback))) == 8
    assert set(explained(callback)) <= set(part[:12])
    (baselines,) = collected
    assert {round(47 * float(b[0, -1, -1] * STD[0] + MEAN[0])) for b in baselines} == {part[12], part[30]}


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        ("balance", r"`probe` to be 'balanced', indices .*, or a batch, but got 'balance'"),
        ([], r"`probe` to hold indices .*, 0 and above, but got \[\]"),
        ([2, -1], r"0 and above, but got \[2, -1\]"),
    ],
)
def test_a_choice_that_no_data_can_meet_is_refused_at_once(probe, message):
    with pytest.raises(ValueError, match=message):
        ExpectedGradCAMCallback(probe=probe)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(Data())


class Unlabelled(Data):
    def __init__(self):
        super().__init__(keep=False)

    def __getitem__(self, index):
        return (super().__getitem__(index)[0],)


@pytest.mark.parametrize(
    ("probe", "data", "message"),
    [
        ([3, 48], Data(), r"`probe` to hold indices between 0 and 47, but got 48"),
        ([3], Stream(), r"choose the images of `probe=\[3\]` from, but Stream has none.*Pass a batch"),
        ("balanced", Stream(), r"`probe='balanced'` from, but Stream has none"),
        (
            "balanced",
            Unlabelled(),
            r"labels .* to balance.*hold 0: torch.float32 \(1, 3, 16, 16\).*probe=\[3, 17, 42\]",
        ),
        ("balanced", TensorDataset(torch.rand(4, 3, 8, 8)), r"no `targets` or `labels`"),
    ],
    ids=["out of range", "no index", "no index to balance", "no labels", "no labels in tensors"],
)
def test_a_choice_that_these_data_cannot_meet_is_refused_before_the_first_step(tmp_path, probe, data, message):
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, val=DataLoader(data, 2), probe=probe)


def test_names_and_colours_come_from_a_data_module(tmp_path):
    class Module(LightningDataModule):
        def __init__(self):
            super().__init__()
            self.class_to_idx = {"owl": 2, "cat": 0, "dog": 1}
            self.val_preprocess = v2.Compose([v2.Identity(), v2.Normalize(MEAN, STD)])

        def train_dataloader(self):
            return DataLoader(Data(transform=None), 8, collate_fn=self.collate)

        val_dataloader = train_dataloader

        def collate(self, samples):
            images, labels = zip(*samples, strict=True)
            return self.val_preprocess(torch.stack(images)), torch.tensor(labels)

    callback = fit(tmp_path, datamodule=Module(), probe=[0, 47])
    probe = callback.history.probe
    assert probe.class_names == ("cat", "dog", "owl")
    assert probe.restored
    assert probe.images[:, -1, -1].tolist() == [[0, 0, 0], [255, 255, 255]]
    assert probe.images[:, 0, 0].sub(128).abs().max() <= 1
