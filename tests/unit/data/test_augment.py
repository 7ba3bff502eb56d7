import numpy as np
import pytest
import torch

from gkt_mpi.data.augment import Augmentation, ImagePipeline, augmentation_for
from gkt_mpi.data.sources import DATA_SOURCES
from gkt_mpi.seeding import torch_generator

MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.3])


def pipeline(**policy):
    return ImagePipeline(MEAN, STD, Augmentation(**policy))


def augmented(policy, image, generator):
    return policy.varied(image, policy.draw(image, generator))


def images(num=64, size=12, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(1, 256, (num, size, size, 3), dtype=np.uint8))


def normalised(image):
    """By hand, in float64: (pixel / 255 - mean) / std."""
    return (image.double() / 255 - MEAN.double()) / STD.double()


def test_plain_images_are_normalised_and_channels_last():
    image = images()
    found = pipeline(crop_padding=4, flip=True, cutout=6).plain(image)
    assert found.shape == (64, 3, 12, 12)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.double(), normalised(image).permute(0, 3, 1, 2), rtol=1e-5, atol=1e-5)


def every_crop_and_flip(image, padding):
    padded = torch.nn.functional.pad(image, (0, 0, padding, padding, padding, padding))
    size = image.shape[0]
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[top : top + size, left : left + size]
            yield (top, left, False), crop
            yield (top, left, True), crop.flip(1)


def test_an_augmented_image_is_one_of_the_possible_crops_and_flips_and_all_occur():
    image = images(1)[0]
    batch = image.expand(600, -1, -1, -1)
    found = augmented(pipeline(crop_padding=2, flip=True), batch, torch_generator(0, "t")).permute(0, 2, 3, 1)
    possible = {key: normalised(crop).float() for key, crop in every_crop_and_flip(image, 2)}
    seen = set()
    for view in found:
        matches = [key for key, crop in possible.items() if torch.allclose(view, crop, atol=1e-5)]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) == len(possible) == 50


def test_cutout_sets_one_square_to_the_mean_colour():
    found = augmented(pipeline(cutout=4), images(400), torch_generator(0, "t"))
    sides = set()
    for hole in (found == 0).all(dim=1):
        rows, columns = hole.any(1).nonzero().flatten(), hole.any(0).nonzero().flatten()
        assert hole.sum() == len(rows) * len(columns)  # a rectangle: the square, cut off at the edges
        assert len(rows) in (2, 3, 4) and len(columns) in (2, 3, 4)
        sides.add((len(rows), len(columns)))
    assert (4, 4) in sides and len(sides) > 1


def test_the_generator_decides_and_samples_differ():
    image = images(8)
    policy = pipeline(crop_padding=4, flip=True, cutout=6)
    first, again = (augmented(policy, image, torch_generator(3, "t")) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, augmented(policy, image, torch_generator(4, "t")))


def test_a_part_of_a_batch_is_varied_like_the_whole():
    image, policy = images(20), pipeline(crop_padding=3, flip=True, cutout=6)
    variation = policy.draw(image, torch_generator(0, "t"))
    whole = policy.varied(image, variation)
    assert torch.equal(policy.varied(image[7:12], variation[7:12]), whole[7:12])


def test_without_a_policy_training_images_are_the_plain_ones():
    image = images()
    assert torch.equal(augmented(pipeline(), image, torch_generator(0, "t")), pipeline().plain(image))


@pytest.mark.parametrize(
    ("name", "size", "augment", "expected"),
    [
        ("cifar10", 32, "auto", Augmentation(4, True, 16)),
        ("cifar10", 32, "paper", Augmentation(4, True, 16)),
        ("cifar10", 32, "crop_flip", Augmentation(4, True, 0)),
        ("synthetic", 16, "auto", Augmentation(2, True, 8)),
        ("digits", 8, "auto", Augmentation(1, False, 0)),
        ("digits", 8, "paper", Augmentation(1, True, 4)),
        ("cifar10", 32, "none", Augmentation()),
    ],
)
def test_each_data_set_has_its_augmentation(name, size, augment, expected):
    assert augmentation_for(DATA_SOURCES[name].augmentation, size, augment) == expected
