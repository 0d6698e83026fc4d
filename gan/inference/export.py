"""Export a trained generator: weights, configuration and a model card."""

from pathlib import Path

from gan.inference.generator import WEIGHT_FILES, TrainedGenerator
from gan.inference.images import encode, grid
from gan.runs import checkpoints
from gan.utils.files import new_folder, write_synced


def export(generator: TrainedGenerator, out: Path, *, seed: int = 0) -> None:
    """Write a folder that ``load_generator`` reads: weights as safetensors, configuration, and a model card with a grid.

    A kill leaves the whole folder or none.

    Raises UserError when ``out`` exists and is not empty.
    """
    with new_folder(out) as folder:
        checkpoints.write_weights(
            folder,
            generator.step,
            {WEIGHT_FILES[generator.weights]: generator.network.state_dict()},
            (generator.folder / "config.yaml").read_text(),
        )
        write_synced(folder / "grid.png", encode(grid(generator.sample(64, seed))))
        write_synced(folder / "README.md", _card(generator, seed).encode())


def _card(generator: TrainedGenerator, seed: int) -> str:
    config = generator.config
    data, model = config.data, config.model
    return f"""# {config.run.name}

![64 samples of seed {seed}, not selected](grid.png)

A DCGAN generator trained with msngan: {generator.step:,} generator updates,
{generator.weights} weights. The picture shows the first 64 samples of seed {seed}; none was chosen.

| | |
|---|---|
| images | {data.channels} x {data.image_size} x {data.image_size}, trained on {data.name} ({data.split}) |
| generator | {model.generator.channels} channels, norm {model.generator.describe_norms()}, z of {model.latent_dim} |
| discriminator | {model.discriminator.channels} channels, norm {model.discriminator.describe_norms()} |
| loss | {config.loss.name}, {config.training.d_steps} D updates per G update, batch {config.training.batch_size} |
| seed | {config.seed} |

    from gan import load_generator
    images = load_generator("FOLDER").sample(64, seed=0)  # uint8, (64, {data.channels}, {data.image_size}, {data.image_size})

All settings are in config.yaml. The weights are in safetensors and hold no code. This card was written by the program:
it states no score, no licence and no fitness for a use; the training images' own terms apply.
"""
