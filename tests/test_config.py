"""Settings: what is refused, what is warned about, what may change."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gan.config import GanConfig, GanTrainingConfig, OptimizerConfig, load_config
from gan.utils.errors import UserError
from gan.utils.setting_fields import describe_settings
from gan.utils.settings import check_processes, differences, flatten, keep_resolved, set_value, to_yaml
from study.config import StudyConfig

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


def test_the_ready_configurations_are_there() -> None:
    assert {path.stem for path in CONFIGS} == {
        "digits_msngan", "cifar10_sngan", "cifar10_msngan", "cifar10_wgan_gp_bn", "cifar10_wgan_gp", "cifar10_wgan_clip",
        "cifar10_hinge", "folder",
    }  # fmt: skip


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_ready_configurations_load_under_their_own_name_and_hold_only_differences(path: Path) -> None:
    config = load_config(path)
    assert config.run.name == path.stem
    given = load_lines(path)
    defaults = dict(flatten(GanConfig()))
    assert all(value != defaults[key] for key, value in flatten(config) if key in given), "a default is repeated"


def load_lines(path: Path) -> set[str]:
    import yaml

    def keys(section: dict, prefix: str = "") -> set[str]:
        nested = [keys(v, f"{prefix}{k}.") if isinstance(v, dict) else {f"{prefix}{k}"} for k, v in section.items()]
        return set().union(*nested)

    # The embedded default may name the generator's BatchNorm, which is what it shows.
    return keys(yaml.safe_load(path.read_text())) - {"model.generator.norm", "model.discriminator.norm"}


def test_known_hyperparameters() -> None:
    by_name = {path.stem: load_config(path) for path in CONFIGS}
    adam = OptimizerConfig(d_lr=1e-4, g_lr=1e-4, beta2=0.9)
    assert by_name["cifar10_wgan_gp"].optimizer == by_name["cifar10_wgan_gp_bn"].optimizer == adam
    assert by_name["cifar10_wgan_gp_bn"].training == GanTrainingConfig(d_steps=5)
    assert by_name["cifar10_wgan_gp_bn"].model.discriminator.norm == "batch"
    assert by_name["cifar10_sngan"].optimizer == OptimizerConfig(d_lr=2e-4, g_lr=2e-4, beta1=0.5, beta2=0.999)
    assert by_name["cifar10_wgan_clip"].loss.clip == 0.01
    assert by_name["cifar10_wgan_clip"].optimizer.name == "rmsprop"


def test_the_paper_row_is_warned_about() -> None:
    config = load_config(next(path for path in CONFIGS if path.stem == "cifar10_wgan_gp_bn"))
    assert any("section 4" in warning for warning in config.warnings())


@pytest.mark.slow
@given(
    st.sampled_from(["none", "batch", "spectral", "mean_spectral"]), st.integers(0, 2**62), st.floats(1e-6, 1),
    st.one_of(st.none(), st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(str.isprintable)),
)  # fmt: skip
def test_saved_settings_load_as_the_same(
    tmp_path_factory: pytest.TempPathFactory, norm: str, seed: int, rate: float, path: str
) -> None:
    config = set_value(GanConfig(seed=seed), "model.discriminator.norm", norm)
    config = set_value(set_value(config, "optimizer.d_lr", rate), "data.path", path)
    file = tmp_path_factory.mktemp("saved") / "config.yaml"
    file.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(file) == config


def test_changes_that_touch_no_weight_are_allowed_and_all_others_shown() -> None:
    config = GanConfig()
    for key, value in flatten(config):
        if isinstance(value, bool):
            other: object = not value
        elif isinstance(value, int | float):
            other = value + 1
        else:
            other = "other"
        found = differences(set_value(config, key, other), config)
        assert found == ([] if key in GanConfig().changeable() else [f"{key}: {value} -> {other}"])


def test_steps_may_not_change_when_learning_rates_depend_on_them() -> None:
    config = GanConfig(optimizer=OptimizerConfig(decay="linear"))
    assert differences(set_value(config, "training.steps", 7), config) == ["training.steps: 100000 -> 7"]


def test_what_was_left_to_the_machine_stays_as_it_was_resolved() -> None:
    saved = set_value(set_value(GanConfig(), "training.precision", "fp32"), "data.channels", 1)
    assert keep_resolved(GanConfig(), saved) == saved
    explicit = set_value(GanConfig(), "training.precision", "bf16")
    assert keep_resolved(explicit, saved).training.precision == "bf16"


def test_every_setting_is_described_with_its_range() -> None:
    for kind in (GanConfig, StudyConfig):
        rows = describe_settings(kind)
        assert [(row.key, row.default) for row in rows] == list(flatten(kind()))
        assert all(row.meaning for row in rows)
    rows = {row.key: row for row in describe_settings(GanConfig)}
    assert rows["training.steps"][1:3] == ("int", 100_000)
    assert (rows["training.steps"].range, rows["training.steps"].changeable) == ("at least 1", True)
    assert (rows["loss.clip"].type, rows["loss.clip"].range) == ("float or null", "a positive number")
    assert (rows["optimizer.beta1"].range, rows["optimizer.beta1"].changeable) == ("at least 0 and below 1", False)
    assert rows["model.generator.channels"].range == "at least 1 and at most 8,192"
    assert rows["loss.name"].type == "wgan | wgan-gp | sngan | hinge"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.steps=0", "must be at least 1."),
        ("samples.every=-1", "must not be negative."),
        ("optimizer.d_lr=0", "must be a positive number."),
        ("optimizer.g_lr=.inf", "must be a positive number."),
        ("optimizer.beta1=1", "must be at least 0 and below 1."),
        ("training.ema_decay=.nan", "must be at least 0 and below 1."),
        ("model.generator.channels=8193", "must be at most 8,192."),
        ("loss.clip=0", "must be a positive number, or null for no clipping."),
        ("seed=9223372036854775808", "must be below 2^63."),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_range(override: str, expected: str) -> None:
    key = override.partition("=")[0]
    with pytest.raises(UserError, match=f"^{re.escape(key)}=.*: {re.escape(expected)}$"):
        load_config(CONFIGS[-1].parent / "digits_msngan.yaml", [override])


def test_a_batch_that_processes_cannot_share_evenly_is_refused() -> None:
    check_processes(GanConfig(), 8)
    with pytest.raises(UserError, match="must be a multiple of 3"):
        check_processes(GanConfig(), 3)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["training.accumulation=2"], "statistics are those of each micro-batch"),
        (["loss.name=wgan", "loss.clip=0.01", "model.discriminator.norm=spectral"], "One of the two is enough"),
        (["training.d_batches=joint", "model.discriminator.norm=spectral"], "changes nothing"),
        (["loss.name=wgan-gp"], "penalty loses its meaning"),
    ],
)
def test_doubtful_combinations_are_warned_about(overrides: list[str], words: str) -> None:
    config = load_config(CONFIGS[-1].parent / "digits_msngan.yaml", overrides)
    assert any(words in warning for warning in config.warnings())


def test_the_default_is_not_doubtful() -> None:
    assert load_config(CONFIGS[-1].parent / "digits_msngan.yaml").warnings() == []
