"""Small files of images, made for the tests."""

import pickle

import h5py
import numpy as np
from PIL import Image


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


def arrays(channels=(3,), **changes):
    rng = np.random.default_rng(0)
    made = {
        "train_images": rng.integers(0, 256, (12, 8, 16, *channels), dtype=np.uint8),
        "train_labels": np.arange(12) % 3,
        "test_images": rng.integers(0, 256, (5, 8, 16, *channels), dtype=np.uint8),
        "test_labels": np.arange(5) % 3,
    }
    made |= changes
    return {name: array for name, array in made.items() if array is not None}


def write_arrays(path, made):
    if path.suffix == ".npz":
        np.savez(path, **made)
        return
    with h5py.File(path, "w") as file:
        for name, array in made.items():
            is_text = array.dtype.kind == "U"
            file.create_dataset(name, data=array.tolist() if is_text else array)


def write_folder(root, size=(12, 8), suffix="png", mode="RGB", count=3, seed=0):
    """Write random pictures of two classes for training and testing; return their pixels by path."""
    rng, pixels = np.random.default_rng(seed), {}
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for k in range(count):
                shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
                image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
                image.save(path := folder / f"{k}.{suffix}")
                with Image.open(path) as saved:
                    pixels[split, name, k] = np.asarray(saved)
    return pixels
