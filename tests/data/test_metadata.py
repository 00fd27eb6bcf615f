"""Class names and normalisation are found where people keep them, and labels where data sets do."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import timm
import torch
import torchvision.transforms as v1
import torchvision.transforms.v2 as v2
import transformers
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset
from torchvision.datasets import FakeData, ImageFolder

from egcam_lightning.data.metadata import balanced_indices, class_names_of, known_labels, normalization_of

MEAN, STD = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)


class Animals(Dataset):
    classes = ("cat", "dog")

    def __init__(self, **fields):
        self.__dict__.update(fields)

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return torch.zeros(3, 4, 4), index % 2


class Wrapper(LightningModule):
    def __init__(self, model):
        super().__init__()
        self.model = model


def hugging_face(**config):
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    return transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, **config))


def normalized(count=4):
    pixels = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


# ---- class names


def test_names_of_an_image_folder_are_its_folders(tmp_path):
    from PIL import Image

    for name in ("dog", "cat"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "0.png")
    assert class_names_of(ImageFolder(tmp_path)) == ("cat", "dog")


@pytest.mark.parametrize(
    "source",
    [
        Animals(),
        Subset(Subset(Animals(), [0, 1]), [0]),
        ConcatDataset([Animals(), Animals()]),
        SimpleNamespace(class_to_idx={"dog": 1, "cat": 0}),
        SimpleNamespace(class_names=["cat", "dog"]),
        SimpleNamespace(features={"image": object(), "label": SimpleNamespace(names=["cat", "dog"])}),
        hugging_face(id2label={1: "dog", 0: "cat"}),
        Wrapper(hugging_face(id2label={0: "cat", 1: "dog"})),
    ],
    ids=["classes", "subset", "concat", "class_to_idx", "class_names", "ClassLabel", "id2label", "id2label inside"],
)
def test_names_are_found(source):
    assert class_names_of(None, source) == ("cat", "dog")


def test_names_that_are_none_are_not_taken():
    assert class_names_of(hugging_face(num_labels=3)) is None  # LABEL_0, LABEL_1, ...
    assert class_names_of(SimpleNamespace(classes=10), SimpleNamespace(class_names=None), nn.Linear(1, 1)) is None
    assert class_names_of(nn.ModuleDict({"features": nn.Linear(1, 1)})) is None


def test_the_first_source_wins():
    assert class_names_of(Animals(), hugging_face(id2label={0: "a", 1: "b"})) == ("cat", "dog")


# ---- normalisation


@pytest.mark.parametrize(
    "transform",
    [
        v1.Normalize(MEAN, STD),
        v1.Compose([v1.ToTensor(), v1.Compose([v1.Normalize(MEAN, STD)])]),
        v2.Compose([v2.ToImage(), v2.RandomApply([v2.Compose([v2.Normalize(MEAN, STD)])]), v2.Identity()]),
        nn.Sequential(v2.Normalize(MEAN, STD)),
        {"train": v1.Normalize((0.0,), (1.0,)), "val": v2.Normalize(MEAN, STD)},
        transformers.ViTImageProcessor(image_mean=MEAN, image_std=STD),
        timm.data.create_transform((3, 8, 8), mean=MEAN, std=STD),
    ],
    ids=["v1", "v1 nested", "v2 nested", "sequential", "mapping", "image processor", "timm transform"],
)
@pytest.mark.parametrize("name", ["transform", "preprocess"])
def test_normalization_is_found_in_the_transforms_of_a_data_set(transform, name):
    found = normalization_of(None, Subset(Animals(**{name: transform}), [0, 1]))
    assert found is not None
    assert found[0] == pytest.approx(MEAN)
    assert found[1] == pytest.approx(STD)


def test_normalization_is_found_in_torchvisions_own_data_sets():
    data = FakeData(4, (3, 8, 8), transform=v1.Compose([v1.ToTensor(), v1.Normalize(MEAN, STD)]))
    assert normalization_of(data) == (MEAN, STD)


def test_normalization_is_found_in_a_data_module_for_validation_first():
    class Data(LightningDataModule):
        def __init__(self):
            super().__init__()
            self.a_train_transform = v2.Normalize((0.0,), (1.0,))
            self.valid_tf = v2.Compose([v2.Normalize(MEAN, STD)])

    assert normalization_of(Data()) == (MEAN, STD)


def test_a_processor_that_does_not_normalize_says_nothing():
    processor = transformers.ViTImageProcessor(image_mean=MEAN, image_std=STD, do_normalize=False)
    assert normalization_of(Animals(processor=processor)) is None


@pytest.mark.parametrize("where", ["timm", "processor", "normalize"])
def test_a_module_is_believed_where_the_images_bear_it_out(where):
    model = nn.Sequential(nn.Linear(1, 1))
    if where == "timm":
        model = timm.create_model("test_resnet", pretrained=False, pretrained_cfg_overlay={"mean": MEAN, "std": STD})
        assert tuple(model.pretrained_cfg["mean"]) == MEAN
    elif where == "normalize":
        model.append(v2.Normalize(MEAN, STD))
    module = Wrapper(model)
    if where == "processor":
        module.processor = transformers.ViTImageProcessor(image_mean=MEAN, image_std=STD)
    images = normalized()
    found = normalization_of(module, images=images)
    assert found is not None
    assert found[0] == pytest.approx(MEAN)
    assert normalization_of(module, images=images.half()) is not None
    # Pixels in [0, 1] were not normalised at all, others were in another way, bytes are shown as they are.
    assert normalization_of(module, images=torch.rand(4, 3, 8, 8)) is None
    assert normalization_of(module, images=3 * images) is None
    assert normalization_of(module, images=images[:, :2]) is None
    assert normalization_of(module, images=torch.zeros(4, 3, 8, 8, dtype=torch.uint8)) is None


def test_what_is_no_number_is_no_normalization():
    class Normalize:
        mean = std = "imagenet"

        def __call__(self, x):
            return x

    assert normalization_of(Animals(transform=Normalize()), Animals(transform=None), Animals()) is None


# ---- labels, and a balanced choice


@pytest.mark.parametrize(
    "data",
    [
        Animals(targets=[0, 1, 0, 1, 2, 2]),
        Animals(labels=torch.tensor([0, 1, 0, 1, 2, 2])),
        TensorDataset(torch.rand(6, 3, 4, 4), torch.tensor([0, 1, 0, 1, 2, 2])),
        TensorDataset(torch.rand(6, 3, 4, 4), torch.tensor([[0], [1], [0], [1], [2], [2]])),
        Subset(Animals(targets=[2, 2, 1, 0, 1, 0]), [5, 4, 3, 2, 1, 0]),
    ],
    ids=["targets", "labels", "tensors", "column", "subset"],
)
def test_labels_are_known_where_the_data_set_keeps_them(data):
    assert known_labels(data) == [0, 1, 0, 1, 2, 2]


@pytest.mark.parametrize(
    "data",
    [
        Animals(),
        Animals(targets=["cat"] * 6),
        Animals(targets=[0, 1]),
        Animals(targets=torch.rand(6)),
        TensorDataset(torch.rand(6, 3, 4, 4)),
    ],
)
def test_what_are_no_labels_is_not_taken(data):
    assert known_labels(data) is None


@pytest.mark.parametrize("count", [1, 3, 7, 12, 40, 100])
def test_a_balanced_choice_is_as_even_as_the_data_allow(count):
    labels = [0] * 30 + [1] * 5 + [2] * 20 + [7] * 2
    chosen = balanced_indices(labels, count)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(count, len(labels))
    counts = {label: sum(labels[i] == label for i in chosen) for label in set(labels)}
    for label, number in counts.items():
        # A class has fewer than another only where it has no more.
        assert number == labels.count(label) or number >= max(counts.values()) - 1


def test_what_the_users_code_computes_is_not_asked_for():
    class Opens(Animals):
        opened = False

        @property
        def class_names(self):
            type(self).opened = True
            return ["cat", "dog"]

        classes = targets = class_to_idx = class_names

    assert class_names_of(Opens()) is None
    assert known_labels(Opens()) is None
    assert normalization_of(Opens()) is None
    assert not Opens.opened


@pytest.mark.parametrize("mapping", [{"cat": "a"}, {"a": [1]}, {None: "b"}])
def test_mappings_that_number_nothing_give_no_names(mapping):
    model = Wrapper(nn.Identity())
    model.model.config = SimpleNamespace(id2label=mapping)
    assert class_names_of(model, SimpleNamespace(class_to_idx=mapping)) is None
