"""Small files of images, made for the tests."""

import pickle

import h5py
import numpy as np


def silent(done, total):
    pass


def write_cifar(root, name, counts=(3, 2), classes=10, seed=0):
    """Write a few random images in the layout of the official archive; return them as (N, 32, 32, 3) and labels."""
    rng = np.random.default_rng(seed)
    ten = name == "cifar10"
    folder = root / ("cifar-10-batches-py" if ten else "cifar-100-python")
    folder.mkdir(parents=True)
    files = {
        "train": [f"data_batch_{k}" for k in range(1, 6)] if ten else ["train"],
        "test": ["test_batch" if ten else "test"],
    }
    written = {}
    for split, count in zip(("train", "test"), counts, strict=True):
        images, labels = [], []
        for file in files[split]:
            data = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
            label = rng.integers(0, classes, count).tolist()
            entry = {"data": data, "labels" if ten else "fine_labels": label}
            (folder / file).write_bytes(pickle.dumps(entry))
            images.append(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            labels += label
        written[split] = np.concatenate(images), np.array(labels)
    meta = {"label_names" if ten else "fine_label_names": [f"name {k}" for k in range(classes)]}
    (folder / ("batches.meta" if ten else "meta")).write_bytes(pickle.dumps(meta))
    return written


def damage(path, change):
    with h5py.File(path, "r+") as file:
        change(file)
