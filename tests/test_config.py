"""Settings: what is refused, what is warned about, what may change."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gan.config import GanConfig, GanTrainingConfig, OptimizerConfig, load_config
from gan.utils.errors import UserError
from gan.utils.setting_fields import describe_settings, walk
from gan.utils.settings import check_processes, differences, flatten, keep_resolved, set_value, to_yaml
from study.config import StudyConfig, load_study_config

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


def test_the_ready_configurations_are_there() -> None:
    assert {path.stem for path in CONFIGS} == {
        "digits_msngan", "cifar10_sngan", "cifar10_msngan", "cifar10_wgan_gp_bn",
        "cifar10_wgan_gp_bn_joint", "cifar10_wgan_gp", "cifar10_wgan_clip",
        "cifar10_hinge", "cifar10_msngan_written", "cifar10_msngan_released", "cifar10_sngan_released", "folder",
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
    assert (rows["loss.clip"].type, rows["loss.clip"].range) == ("float or null", "a positive number and at most 1e+38")
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


TEXTS = [
    "0001",
    "0x1F",
    "12e3456",
    "off",
    "Yes",
    "1_000",
    "12:30:45",
    "1.50",
    "exp #3",
    "2024-01-01",
    "~",
    "*a",
    "!b",
    "[1]",
    "'q'",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_setting_is_what_follows_the_equals_sign(text: str, tmp_path: Path) -> None:
    config = load_config(CONFIGS[-1].parent / "folder.yaml", [f"run.name={text}", f"data.path=./{text}", f"run.dir=a/{text}"])
    assert (config.run.name, config.data.path, config.run.dir) == (text, f"./{text}", f"a/{text}")
    saved = tmp_path / "config.yaml"
    saved.write_text(to_yaml(config))
    assert load_config(saved) == config


@pytest.mark.parametrize("text", ["0001", "0x1F", "12e3456", "off", "1_000", "12:30:45", "1.50", "2024-01-01"])
def test_a_text_setting_in_a_file_is_what_is_written_quoted_or_not(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    for written in (text, f"'{text}'", f'"{text}"'):
        path.write_text(f"run: {{name: {written}}}\ndata:\n  path: {written}\n")
        config = load_config(path)
        assert (config.run.name, config.data.path) == (text, text)


def test_null_is_the_word_null_where_it_is_allowed(tmp_path: Path) -> None:
    digits, path = CONFIGS[-1].parent / "digits_msngan.yaml", tmp_path / "a.yaml"
    assert load_config(digits, ["data.path=null", "run.name=null"]).data.path is None
    assert load_config(digits, ["run.name=null"]).run.name == "null"
    assert load_config(digits, ["loss.clip=null"]).loss.clip is None
    path.write_text("data: {path: null}\nloss: {clip: ~}\ntraining:\n")
    assert (load_config(path).data.path, load_config(path).loss.clip) == (None, None)
    path.write_text("data: {path: 'null'}")
    assert load_config(path).data.path == "null"


def test_lists_and_sections_are_read_as_yaml() -> None:
    digits = CONFIGS[-1].parent / "study" / "digits_cnn3.yaml"
    assert load_study_config(digits, ["probes.layers=[1, 2]"]).probes.layers == [1, 2]
    assert load_study_config(digits, ["probes={layers: null, bins: 7}"]).probes.bins == 7
    for pair in ("probes.layers=2", "probes.layers={a: 1}", "probes.layers=[1.5]"):
        with pytest.raises(UserError, match=r"^probes\.layers"):
            load_study_config(digits, [pair])


def test_a_tilde_is_the_home_folder_in_every_setting_that_is_a_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    gan = load_config(
        CONFIGS[-1].parent / "folder.yaml",
        ["run.dir=~/runs", "data.path=~", "evaluation.weights=~/w.pth", "evaluation.reference=~/r.npz", "run.name=~"],
    )
    found = (gan.run.dir, gan.data.path, gan.evaluation.weights, gan.evaluation.reference, gan.run.name)
    assert found == (f"{tmp_path}/runs", str(tmp_path), f"{tmp_path}/w.pth", f"{tmp_path}/r.npz", "~")
    path = tmp_path / "a.yaml"
    path.write_text("data: {name: folder, path: ./~, test_path: ~/test}")
    assert (load_study_config(path).data.path, load_study_config(path).data.test_path) == ("./~", f"{tmp_path}/test")


def test_each_setting_that_names_a_file_is_declared_as_a_path() -> None:
    for kind in (GanConfig, StudyConfig):
        texts = {key for key, about, _ in walk(kind()) if not about.path} & {
            row.key for row in describe_settings(kind) if "str" in row.type
        }
        assert texts <= {"run.name", "tracking.wandb_project", "evaluation.reference_made_by"}


def test_a_batch_that_processes_cannot_share_evenly_is_refused() -> None:
    check_processes(GanConfig(), 8)
    with pytest.raises(UserError, match="must be a multiple of 12"):
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


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("optimizer.d_lr=1e39", "optimizer.d_lr"),
        ("loss.clip=1e39", "loss.clip"),
        ("__class__.seed=5", "not a setting"),
        ("run.name=a${b}", "${"),
    ],
)
def test_what_torch_or_a_saved_configuration_could_not_take_is_refused(setting: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(CONFIGS[0].parent / "cifar10_wgan_clip.yaml", [setting])
    assert said in str(error.value)


def test_a_file_whose_name_no_saved_configuration_could_hold_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a${b}.yaml").write_text("seed: 1")
    with pytest.raises(UserError, match="contains"):
        load_config(tmp_path / "a${b}.yaml")
