"""Any batch: whatever shape a batch has, its images are found, explained and shown with their labels."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.utils.data import DataLoader, Dataset, IterableDataset

from egcam_lightning.data.batch import IMAGE_KEYS, LABEL_KEYS
from tests.support.fits import PooledNet as Net
from tests.support.fits import fit, make_callback

CLASSES = 3
COUNT = 8  # images of the validation data, of which every second is explained
CHOSEN = [0, 2, 4, 6]


class Data(Dataset):
    """Noise, a label that an image's brightness gives away, and whatever else a sample may hold."""

    def __init__(self, count: int = COUNT, shape: tuple[int, ...] = (3, 16, 20), seed: int = 0, kind: str = "float32"):
        generator = torch.Generator().manual_seed(seed)
        self.y = torch.arange(count) % CLASSES
        images = torch.rand(count, *shape, generator=generator) + self.y.view(-1, *[1] * len(shape))
        self.x = (images * 80).to(torch.uint8) if kind == "uint8" else images.to(getattr(torch, kind))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


class Stream(IterableDataset):
    def __init__(self, data: Dataset) -> None:
        self.data = data

    def __iter__(self):
        return iter([self.data[i] for i in range(len(self.data))])


def run(tmp_path, net, form=None, train=None, val=None, trainer=None, **arguments):
    """One epoch of two batches whose form is ``form(images, labels)``, with the callback, which must not fail."""

    def collate(samples):
        images, labels = zip(*samples, strict=True)
        return (form or (lambda x, y: (x, y)))(torch.stack(images), torch.stack(labels))

    callback = make_callback(**arguments)
    loaders = [
        data if isinstance(data, DataLoader) else DataLoader(data, 4, collate_fn=collate)
        for data in (Data(seed=1) if train is None else train, Data() if val is None else val)
    ]
    fit(
        tmp_path, callback, net=net, train=loaders[0], val=loaders[1], logger=False,
        **{"max_epochs": 1, "num_sanity_val_steps": 0, **(trainer or {})},
    )  # fmt: skip
    return callback


def assert_explained(callback, net, data, chosen=CHOSEN, labels=True, kinds=("start", "epoch"), gap=1e-3):
    """The images of ``data`` are explained, for their own labels, by what the model says of them now."""
    probe, shown, last = callback.probe, callback.history.probe, callback.history[-1]
    kept = data.x[chosen]
    kept = kept.half() if kept.is_floating_point() else kept
    assert torch.equal(probe.images, kept)
    assert probe.dtype == data.x.dtype
    assert len(shown.images) == len(chosen)
    assert shown.images.shape[1:] == (*data.x.shape[2:], 3)
    if labels:
        assert shown.labels.tolist() == last.target.tolist() == data.y[chosen].tolist()
    else:
        assert shown.labels is None
    assert [snapshot.when for snapshot in callback.history] == list(kinds)
    for snapshot in callback.history:
        assert snapshot.attribution.isfinite().all()
        assert snapshot.attribution.abs().flatten(1).amax(1).gt(0).all()
    net.eval()
    with torch.no_grad():
        logits = net(kept.to(data.x.dtype)).float()
    torch.testing.assert_close(last.score, logits.gather(1, last.target[:, None])[:, 0], rtol=1e-3, atol=1e-4)
    assert torch.equal(last.prediction, logits.argmax(1))
    assert last.metrics["completeness_gap"] < gap


@dataclass
class Sample:
    picture: Tensor
    y: Tensor


Pair = namedtuple("Pair", ["image", "label"])


def feature(x, y):
    from transformers import BatchFeature

    return BatchFeature({"pixel_values": x, "labels": y})


def encoding(x, y):
    from transformers import BatchEncoding

    return BatchEncoding({"input_ids": torch.zeros(len(x), 7).long(), "pixel_values": x, "labels": y})


FORMS = {
    "tuple": lambda x, y: (x, y),
    "list": lambda x, y: [x, y],
    "labels first": lambda x, y: (y, x),
    **{f"a dict with {key!r}": (lambda x, y, key=key: {key: x, "label": y}) for key in IMAGE_KEYS},
    **{f"a dict with {key!r}": (lambda x, y, key=key: {"image": x, key: y}) for key in LABEL_KEYS if key != "label"},
    "an ordered dict": lambda x, y: OrderedDict(y=y, x=x),
    "nested dicts": lambda x, y: {"inputs": {"rgb": x}, "annotations": {"label": y, "box": torch.zeros(len(x), 4)}},
    "a tuple of dicts": lambda x, y: ({"image": x}, {"label": y}),
    "nested tuples": lambda x, y: ((x, x * 0), (y, torch.zeros(len(x)))),
    "a dataclass": lambda x, y: Sample(x, y),
    "a dataclass in a dict": lambda x, y: {"sample": Sample(x, y)},
    "a named tuple": lambda x, y: Pair(x, y),
    "BatchFeature": feature,
    "BatchEncoding": encoding,
    "labels of one column": lambda x, y: (x, y[:, None]),
    "labels of bytes": lambda x, y: (x, y.to(torch.uint8)),
    "a dict with a list of views": lambda x, y: {"depth": x * 0, "images": [x, x * 0], "label": y},
    "a dict with a list of images": lambda x, y: {"images": list(x), "label": y},
    "strings, None and other tensors": lambda x, y: {
        "path": [f"{i}.png" for i in range(len(x))],
        "caption": None,
        "weight": torch.ones(len(x)),
        "index": torch.arange(len(x)) + 100,
        "embedding": torch.rand(len(x), 5),
        "scale": torch.tensor(2.0),
        "split": "val",
        "depth": x[:, :1] * 0,
        "image": x,
        "label": y,
    },
    "a tuple with names and None": lambda x, y: (x, y, [f"{i}.png" for i in range(len(x))], None, 3),
}


def trains_on_noise(_batch):
    """What a training uses that finds its images in its own way: the callback alone has to find those of the batch."""
    return torch.rand(4, 3, 16, 20), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_images_and_labels_are_found_in_every_form_of_batch(tmp_path, form):
    net = Net(find=trains_on_noise)
    callback = run(tmp_path, net, form)
    assert_explained(callback, net, Data())


@pytest.mark.parametrize(
    ("form", "key"),
    [
        (lambda x, y: (x * 0, x, y), 1),
        (lambda x, y: {"image": x * 0, "views": {"left": x * 0, "right": x}, "label": y}, "views.right"),
        (lambda x, y: {"image": x * 0, "views": [x * 0, x], "label": y}, "views.1"),
        (lambda x, y: (tuple(x), y), 0),
    ],
    ids=["a position", "a path", "a path with a position", "a tuple of images"],
)
def test_a_key_says_which_images_where_there_are_several(tmp_path, form, key):
    net = Net(find=trains_on_noise)
    callback = run(tmp_path, net, form, input_key=key)
    assert_explained(callback, net, Data())


@pytest.mark.parametrize(
    "form",
    [
        lambda x, y: x,
        lambda x, y: (x,),
        lambda x, y: {"image": x, "index": y},
        lambda x, y: {"image": x, "label": y + 0.5},
    ],
    ids=["a bare tensor", "a tuple of one", "a dict without labels", "labels that are no classes"],
)
def test_without_labels_the_predicted_class_is_explained(tmp_path, form):
    net = Net(find=trains_on_noise)
    callback = run(tmp_path, net, form)
    assert_explained(callback, net, Data(), labels=False)
    assert torch.equal(callback.history[-1].target, callback.history[-1].prediction)


def test_a_float_multi_label_batch_trains_and_is_explained(tmp_path):
    def multi_hot(x, y):
        return x, torch.stack([y == 0, y > 0, y == 2], 1).float()

    net = Net(loss=binary_cross_entropy_with_logits)
    callback = run(tmp_path, net, multi_hot, target="predicted")
    assert_explained(callback, net, Data(), labels=False)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("size", [(16, 16), (13, 19)], ids=["square", "neither equal sides nor divisible ones"])
def test_images_have_any_channels_and_sides(tmp_path, channels, size):
    shape = (channels, *size)
    net = Net(channels)
    callback = run(tmp_path, net, train=Data(shape=shape, seed=1), val=Data(shape=shape))
    assert_explained(callback, net, Data(shape=shape))
    assert callback.history[-1].attribution.shape == (4, *(-(-side // 2) for side in size))


def test_bytes_that_the_model_normalises_stay_bytes(tmp_path):
    net = Net(prepare=lambda x: x.float() / 255)
    metrics = ("insertion_auc", "max_sensitivity")
    callback = run(tmp_path, net, train=Data(seed=1, kind="uint8"), val=Data(kind="uint8"), metrics=metrics)
    assert_explained(callback, net, Data(kind="uint8"))
    probe = callback.history.probe
    assert probe.restored  # their colours need no mean and no std
    assert torch.equal(probe.images, Data(kind="uint8").x[CHOSEN].permute(0, 2, 3, 1))
    assert 0 < callback.history[-1].metrics["insertion_auc"] < 1
    assert callback.history[-1].metrics["max_sensitivity"] > 0, "a change of less than a level is none"


@pytest.mark.parametrize("kind", ["float16", "float64"])
def test_images_of_another_precision_reach_a_model_that_converts_them(tmp_path, kind):
    seen = set()

    def prepare(images):
        seen.add(str(images.dtype))
        return images.float()

    net = Net(prepare=prepare)
    callback = run(tmp_path, net, train=Data(seed=1, kind=kind), val=Data(kind=kind))
    assert_explained(callback, net, Data(kind=kind))
    assert seen == {f"torch.{kind}"}


@pytest.mark.parametrize(
    ("kind", "precision"), [("float64", "64-true"), ("float16", "16-true"), ("float16", "32-true")]
)
def test_images_and_model_share_a_precision(tmp_path, kind, precision):
    """With 32-true Lightning leaves half images as they are: the module brings them to its own precision."""

    class Converting(Net):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            return [part.to(self.dtype) if part.is_floating_point() else part for part in batch]

    net = (Converting if precision == "32-true" else Net)()
    data = Data(kind=kind)
    callback = run(tmp_path, net, train=Data(seed=1, kind=kind), val=data, trainer={"precision": precision})
    if precision == "32-true":
        data.x = data.x.float()
    assert_explained(callback, net, data, gap=1e-3 if kind == "float64" else 0.05)


def test_channels_last_memory_is_explained_as_any_other(tmp_path):
    net = Net().to(memory_format=torch.channels_last)
    callback = run(tmp_path, net, lambda x, y: (x.contiguous(memory_format=torch.channels_last), y))
    assert_explained(callback, net, Data())


def stream(data):
    return DataLoader(Stream(data), 4)


@pytest.mark.parametrize("train", [None, stream(Data(seed=1))], ids=["training data by index", "training data as well"])
def test_validation_data_without_an_index_give_their_first_batch(tmp_path, train):
    net = Net()
    callback = run(tmp_path, net, train=train, val=stream(Data()))
    assert_explained(callback, net, Data(), chosen=[0, 1, 2, 3], kinds=["epoch"])


def test_training_data_without_an_index_give_baselines_once_they_have_passed(tmp_path):
    net = Net()
    with pytest.warns(UserWarning, match=r"no training images to serve as baselines yet; no snapshot is taken"):
        callback = run(tmp_path, net, train=stream(Data(seed=1)))
    assert_explained(callback, net, Data(), kinds=["epoch"])


@pytest.mark.parametrize(
    ("form", "find", "warning"),
    [
        (lambda x, y: (y + 5, x, y), lambda batch: batch[1:], r"integers at '2' .* those at '0' would do as well"),
        (lambda x, y: (x, y, y * 0), lambda batch: batch[:2], r"integers at '1' .* those at '2' would do as well"),
    ],
    ids=["an index first", "coarse and fine"],
)
def test_of_several_integers_the_first_behind_the_images_are_the_labels_and_that_is_said(tmp_path, form, find, warning):
    net = Net(find=find)
    with pytest.warns(UserWarning, match=rf"{warning}. Pass `label_key`"):
        callback = run(tmp_path, net, form)
    assert_explained(callback, net, Data())


def test_labels_lie_where_the_key_says(tmp_path, recwarn):
    net = Net(find=lambda batch: batch[:2])
    callback = run(tmp_path, net, lambda x, y: (x, y * 0, y), label_key=2)
    assert_explained(callback, net, Data())
    assert not [warning for warning in recwarn if "would do as well" in str(warning.message)]


class Sized(Dataset):
    """Images of a size of their own, which a loader groups into batches."""

    def __init__(self, sizes):
        self.parts = [Data(count=4, shape=(3, *size), seed=i) for i, size in enumerate(sizes)]

    def __len__(self):
        return 4 * len(self.parts)

    def __getitem__(self, index):
        return self.parts[index // 4][index % 4]


def test_baselines_are_brought_to_the_size_of_the_probe_and_said_so(tmp_path):
    net = Net()
    with pytest.warns(UserWarning, match=r"Training images are \(24, 16\) and validation images \(16, 20\).*resized"):
        callback = run(tmp_path, net, train=Data(shape=(3, 24, 16), seed=1))
    assert_explained(callback, net, Data())
    assert callback.history[-1].baselines == 1
    assert callback.baselines.shape == (4, 3, 24, 16)


def test_training_images_of_another_size_in_every_batch_give_baselines_of_one_size(tmp_path, caplog):
    net = Net()
    train = DataLoader(Sized([(16, 20), (24, 12), (20, 28)]), 4)
    with caplog.at_level("INFO"), pytest.warns(UserWarning, match=r"size \(24, 12\) .* first one's, \(16, 20\)"):
        callback = run(tmp_path, net, train=train, num_baselines=8)
    assert "cannot be put into one batch" in caplog.text
    assert "Baselines are sampled from the training batches instead" in caplog.text
    assert_explained(callback, net, Data(), kinds=["epoch"])
    assert callback.history[-1].baselines == 1
    assert callback.baselines.shape == (8, 3, 16, 20)


def test_validation_images_of_another_size_in_every_batch_give_those_of_the_first(tmp_path):
    net = Net()
    val = Sized([(16, 20), (24, 12)])
    with pytest.warns(
        UserWarning, match=r"samples \[0, 2, 4, 6\] of Sized cannot .*one size as `probe` to choose others"
    ):
        callback = run(tmp_path, net, val=DataLoader(val, 4))
    assert_explained(callback, net, val.parts[0], chosen=[0, 1, 2, 3], kinds=["epoch"])


def test_images_of_one_size_among_several_can_be_chosen_and_others_are_refused(tmp_path):
    val = Sized([(16, 20), (24, 12)])
    net = Net()
    with pytest.warns(UserWarning, match=r"validation images \(24, 12\)"):
        callback = run(tmp_path, net, val=DataLoader(val, 4), probe=[5, 7])
    assert_explained(callback, net, val.parts[1], chosen=[1, 3])
    with pytest.raises(ValueError, match=r"samples \[3, 4\] of Sized .* Pass indices of images of one size as `probe`"):
        run(tmp_path, Net(), val=DataLoader(val, 4), probe=[3, 4])


class WholeBatch(Net):
    """A module whose forward takes the batch, as many do."""

    def forward(self, batch):
        return super().forward(batch["image"])

    def training_step(self, batch, _):
        return cross_entropy(self(batch), batch["label"])

    def validation_step(self, batch, _):
        self(batch)


def test_a_module_that_takes_the_whole_batch_is_called_through_forward_fn(tmp_path):
    net = WholeBatch()
    callback = run(
        tmp_path, net, lambda x, y: {"image": x, "label": y}, forward_fn=lambda module, x: module({"image": x})
    )
    net.forward = lambda x: WholeBatch.forward(net, {"image": x})
    assert_explained(callback, net, Data())


def test_a_module_that_takes_a_list_of_images_is_called_through_forward_fn(tmp_path):
    class TakesList(Net):
        def forward(self, images):
            return super().forward(torch.stack(images))

    net = TakesList(find=lambda batch: (batch["images"], torch.stack(batch["labels"])))
    callback = run(
        tmp_path, net, lambda x, y: {"images": list(x), "labels": list(y)},
        forward_fn=lambda module, x: module(list(x)), target="predicted",
    )  # fmt: skip
    net.forward = lambda x: TakesList.forward(net, list(x))
    assert_explained(callback, net, Data(), labels=False)


def test_a_hugging_face_classifier_is_explained_from_pixel_values_and_labels(tmp_path):
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=(16, 20),
        patch_size=4, num_channels=3, num_labels=CLASSES, id2label={0: "cat", 1: "dog", 2: "owl"},
    )  # fmt: skip

    class Classifier(Net):
        def __init__(self):
            super().__init__()
            self.model = ViTForImageClassification(config)

        def forward(self, pixel_values):
            return self.model(pixel_values=pixel_values)

        def training_step(self, batch, _):
            return self.model(**batch).loss

        def validation_step(self, batch, _):
            self.log("val_loss", self.model(**batch).loss)

    net = Classifier()
    callback = run(tmp_path, net, feature, num_samples=16)
    assert callback.history[-1].attribution.shape == (4, 4, 5)
    assert callback.history.probe.class_names == ("cat", "dog", "owl")
    model = net.model
    net.forward = lambda x: model(pixel_values=x).logits
    assert_explained(callback, net, Data(), gap=0.3)
