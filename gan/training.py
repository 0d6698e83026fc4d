"""Training a GAN: what its run does at each step, and what it shows of it."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from accelerate import Accelerator
from torch import nn

from gan import checkpoints, sampling, scores
from gan.checkpoints import Checkpoint
from gan.config import Config
from gan.data import BatchStream, Images, Share, load_images
from gan.files import write_atomically
from gan.job import Metrics
from gan.loop import conduct, due
from gan.scores import Score
from gan.settings import to_yaml
from gan.tracking import Tracker
from gan.updates import GanJob, Players, build_players, restore, snapshot, train_step

# Scores a generator after a step. Called by all processes together; the main one gets the score.
Evaluate: TypeAlias = Callable[[nn.Module, int], Score | None]
OpenEvaluation: TypeAlias = Callable[[Config, Images, Accelerator], Evaluate]


def train(config: Config, accelerator: Accelerator, open_evaluation: OpenEvaluation | None = None) -> int:
    """Trains until ``config.training.steps``, going on from the newest checkpoint of the run in ``config.folder``.

    ``open_evaluation`` gets ready what ``config.evaluation`` asks for; handed in, since nothing here imports eval.

    Returns and raises as ``gan.loop.conduct``.
    """

    def begin(config: Config, images: Images, accelerator: Accelerator) -> GanWork:
        evaluate = None
        work = GanWork(config, images, accelerator)
        if config.evaluation.every:
            assert open_evaluation is not None
            evaluate = open_evaluation(config, images, accelerator)
        work.evaluate = evaluate
        return work

    return conduct(config, accelerator, lambda: load_images(config.data), lambda config, _: config.training.steps, begin)


class GanWork:
    """The two players at work; see ``gan.loop.Work``."""

    def __init__(self, config: Config, images: Images, accelerator: Accelerator) -> None:
        share = Share.of(config, rank=accelerator.process_index, processes=accelerator.num_processes)
        self.config = config
        self.job = GanJob(config, accelerator, share)
        self.stream = BatchStream(images, self.job.in_memory(images), config=config, share=share, device=self.job.device)
        self.players = build_players(self.job)
        self.evaluate: Evaluate | None = None
        self.total = config.training.steps  # counts G updates: the one that a step ends with
        self.images_per_step = config.training.batch_size * config.training.d_steps

    def restore(self, checkpoint: Checkpoint) -> None:
        restore(self.players, checkpoint)

    def snapshot(self, step: int) -> Checkpoint:
        return snapshot(self.players, step, self.config, self.stream.images.fingerprint)

    def step(self, number: int) -> Metrics:
        return train_step(self.players, self.stream, number, self.job)

    def learning_rates(self) -> dict[str, float]:
        players = self.players
        return {"d_lr": players.d_optimizer.param_groups[0]["lr"], "g_lr": players.g_optimizer.param_groups[0]["lr"]}

    def headline(self, values: dict[str, float]) -> str:
        return f"D {values['d_loss']:.3f}  G {values['g_loss']:.3f}"

    def looks(self, step: int) -> bool:
        return any(due(step, every, self.total) for every in (self.config.samples.every, self.config.evaluation.every))

    def look(self, step: int, tracker: Tracker | None) -> None:
        if due(step, self.config.samples.every, self.total) and tracker is not None:
            save_samples(self.players, step, self.config, tracker)
        if due(step, self.config.evaluation.every, self.total) and self.evaluate is not None:
            save_score(self.players, step, self.config, tracker, self.evaluate)

    def close(self) -> None:
        self.stream.close()


def save_samples(players: Players, step: int, config: Config, tracker: Tracker) -> None:
    """The grid of the run's fixed noise as samples/step-*.png: of the averaged generator where there is one."""
    pieces = sampling.generate(
        players.average or players.generator,
        seed=config.samples.seed,
        count=config.samples.count,
        latent_dim=config.model.latent_dim,
    )
    pixels = sampling.grid(torch.cat(list(pieces)))
    folder = config.folder / "samples"
    folder.mkdir(exist_ok=True)
    write_atomically(folder / f"step-{step:08d}.png", sampling.encode(pixels))
    tracker.image(step, "samples", pixels)


def save_score(players: Players, step: int, config: Config, tracker: Tracker | None, evaluate: Evaluate) -> None:
    """Scores the averaged generator where there is one, and keeps it as best/ if no score of its kind was better."""
    network = players.average or players.generator
    score = evaluate(network, step)
    if tracker is None or score is None:
        return
    best = scores.best_distance(config.folder, score.record["series"])
    if best is None or score.distance < best:
        name = "generator" if players.average is None else "ema"
        checkpoints.replace_weights(config.folder / "best", step, {name: network.state_dict()}, to_yaml(config))
    # Later than the weights: a kill between the two scores this step again, and replaces them by the same.
    scores.append(config.folder, score.record)
    tracker.log(step, score.curves)
