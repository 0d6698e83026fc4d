"""Export a trained generator: weights, configuration, a model card and, on request, an ONNX file."""

from importlib.util import find_spec
from pathlib import Path

import torch

from gan.inference.card import check_license, model_card
from gan.inference.generator import WEIGHT_FILES, TrainedGenerator, scores_folder
from gan.inference.images import encode, grid
from gan.models.norms import shared_spectral_weights
from gan.runs import checkpoints, scores
from gan.utils.errors import UserError
from gan.utils.files import new_folder, write_synced
from gan.utils.setting_fields import walk
from gan.utils.settings import set_value, to_yaml

ONNX_FILE = "generator.onnx"
FILES = (*(f"{name}.safetensors" for name in WEIGHT_FILES.values()), ONNX_FILE)  # those that not every export has


def export(
    generator: TrainedGenerator,
    out: Path,
    *,
    seed: int = 0,
    onnx: bool = False,
    license: str | None = None,
    hub_name: str | None = None,
) -> None:
    """Write a folder that ``load_generator`` reads: weights as safetensors, configuration, and a model card with a grid.

    ``onnx`` adds generator.onnx, see ``to_onnx``. ``license`` is an identifier for the card, such as mit. With ``hub_name``,
    OWNER/NAME, the card loads the generator from the hub, and the configuration names no folder of this machine. A kill leaves
    the whole folder or none.

    Raises UserError when ``out`` exists and is not empty, for a ``license`` that is no identifier, and as ``to_onnx``.
    """
    check_license(license)
    try:
        config = (generator.folder / "config.yaml").read_text("utf-8") if hub_name is None else _without_folders(generator)
    except FileNotFoundError:
        raise UserError(f"{generator.folder}: its run has removed it meanwhile. Export a newer checkpoint.") from None
    converted = to_onnx(generator) if onnx else b""
    address = "FOLDER" if hub_name is None else f"hf://{hub_name}"
    with new_folder(out) as folder:
        weights = {WEIGHT_FILES[generator.weights]: generator.network.state_dict()}
        checkpoints.write_weights(folder, generator.step, weights, config)
        write_synced(folder / "grid.png", encode(grid(generator.sample(64, seed))))
        card = model_card(generator, _own_scores(generator), address=address, seed=seed, license=license, onnx=onnx)
        write_synced(folder / "README.md", card.encode())
        if onnx:
            write_synced(folder / ONNX_FILE, converted)


def to_onnx(generator: TrainedGenerator) -> bytes:
    """Return the generator as an ONNX model: z (N, latent_dim) float32 to images (N, C, S, S) float32 in [-1, 1], for any N.

    The norms are constants in it. Raises UserError where the extra "onnx" is not installed.
    """
    if find_spec("onnxscript") is None:
        raise UserError("--onnx: onnxscript is not installed. pip install 'msngan[onnx]', or leave --onnx out.")
    network = generator.network
    z = torch.zeros(2, generator.config.model.latent_dim, device=next(network.parameters()).device)  # 1 would be a constant
    with shared_spectral_weights(network):
        program = torch.onnx.export(
            network,
            (z,),
            dynamo=True,
            dynamic_shapes={"z": {0: "batch"}},
            input_names=["z"],
            output_names=["images"],
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # stack traces, with the paths of this machine's files
    return bytes(model.SerializeToString())


def _without_folders(generator: TrainedGenerator) -> str:
    """Return the configuration as YAML, in which the last part of each path stands for it."""
    config = set_value(generator.config, "run.dir", "runs")
    for key, about, value in walk(config):
        if about.path and value:
            config = set_value(config, key, Path(value).name)
    return to_yaml(config)


def _own_scores(generator: TrainedGenerator) -> list[scores.Record]:
    """Return the newest score of each kind that was made of exactly these weights."""
    checksum = checkpoints.checksum(WEIGHT_FILES[generator.weights], generator.network.state_dict())
    own = (r for r in scores.read(scores_folder(generator)) if r["provenance"]["generated"].get("generator_sha256") == checksum)
    return list({record["series"]: record for record in own}.values())
