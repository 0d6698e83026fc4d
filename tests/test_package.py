"""What others use: the names that ``gan`` exports, the programs, and the configurations that are found by name."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

import gan
import train
from gan.utils import cli


def test_every_exported_name_is_there_and_others_are_not() -> None:
    assert all(getattr(gan, name) is not None for name in gan.__all__)
    assert dir(gan) == sorted(gan.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = gan.nothing


def test_the_example_of_the_package_trains_a_network_whose_sigma_converges_to_the_singular_value() -> None:
    assert gan.__doc__ is not None
    example = textwrap.dedent(gan.__doc__.partition("::\n")[2].partition("\nA trained")[0])
    torch.manual_seed(0)
    names: dict[str, object] = {}
    exec(compile(example, "example", "exec"), names)
    network = names["network"]
    assert isinstance(network, nn.Sequential)
    for _ in range(400):  # from random weights, two close singular values can need hundreds of iterations
        gan.power_iterate(network)
    for module in network.modules():
        if isinstance(module, gan.SpectralNorm):
            singular = torch.linalg.matrix_norm(module.layer.weight.detach().flatten(1), 2)
            assert float(module.sigma().detach()) == pytest.approx(float(singular), rel=1e-5)


@pytest.mark.parametrize("name", ["cifar10_msngan", "digits_msngan", "study/mnist_cnn3", "configs/digits_msngan.yaml"])
def test_a_configuration_is_found_by_its_name_or_path(name: str) -> None:
    assert cli.find_config(name).is_file()


def test_a_configuration_that_is_not_there_is_reported_with_near_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(lambda: train.main(["--config", "cifar10_msngann", "--dry-run"])) == 2
    assert "cifar10_msngan" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("program", [["train.py"], ["-m", "gan"], ["-m", "eval"], ["-m", "study"]])
def test_each_program_tells_its_version(program: list[str]) -> None:
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, *program, "--version"], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == f"msngan {gan.__version__}\n"
