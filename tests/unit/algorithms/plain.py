"""An independent implementation of training to compare with: one function, torch's own optimizers, no engine."""

import torch
from torch.nn import functional as F

from gkt_mpi.data.augment import ImagePipeline, augmentation_for
from gkt_mpi.data.datasets import prepare
from gkt_mpi.data.partition import partition
from gkt_mpi.data.shard import Shard
from gkt_mpi.data.sources import DATA_SOURCES
from gkt_mpi.models.networks import build_whole_model
from gkt_mpi.seeding import torch_generator

CPU = torch.device("cpu")


def shards_of(config):
    """Every client's images."""
    file = prepare(config.data, lambda done, total: None)
    policy = augmentation_for(DATA_SOURCES[config.data.name].augmentation, file.image_shape[0], config.data.augment)
    pipeline = ImagePipeline(torch.from_numpy(file.mean), torch.from_numpy(file.std), policy)
    parts = partition(file.labels("train"), config.clients, config.data, config.seed)
    return [Shard.load(file, "train", part, pipeline, CPU) for part in parts]


def new_model(config):
    """The large network with a run's initial weights."""
    return build_whole_model(config.server.model, (8, 8, 3), 10, torch_generator(config.seed, "whole model"), CPU)


def adam(model, lr):
    return torch.optim.Adam(model.parameters(), lr, weight_decay=1e-4, amsgrad=True, fused=True)


def train_epochs(model, optimizer, shard, config, client, round, epochs, batch_size, mu=0.0):
    """Train a whole model on a shard; return the sum of the losses over samples."""
    sent = [p.detach().clone() for p in model.parameters()]
    total = 0.0
    model.train()
    for epoch in range(epochs):
        generator = torch_generator(config.seed, "client epoch", client, round, epoch)
        for rows in torch.randperm(len(shard), generator=generator).split(batch_size):
            image = shard.image[rows]
            view = shard.pipeline.varied(image, shard.pipeline.draw(image, generator))
            loss = F.cross_entropy(model(view), shard.label[rows])
            if mu:
                pull = sum(((p - s) ** 2).sum() for p, s in zip(model.parameters(), sent, strict=True))
                loss = loss + mu / 2 * pull
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
    return total
