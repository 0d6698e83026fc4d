"""Any damage to a run's folder: a command works as if nothing had been, or says in one line what is wrong and changes nothing."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.faults.damages import Contents, Damage, damages
from tests.faults.worlds import NEWEST, World

pytestmark = pytest.mark.slow
MANY = settings(suppress_health_check=list(HealthCheck), phases=[Phase.generate], max_examples=200)
# What a command may change although it refuses to go on: documented, and nothing of it is lost.
LEFTOVERS = ("tmp-", ".best.", ".config.yaml.")


def lost(before: Contents, after: Contents) -> list[str]:
    """What of a folder was changed by a command that refused, but for damaged checkpoints set aside and half lines."""
    found = {name.replace("checkpoints/damaged-step-", "checkpoints/step-"): content for name, content in after.items()}
    changed = []
    for name, content in before.items():
        name = name.replace("checkpoints/damaged-step-", "checkpoints/step-")
        leftover = any(part.startswith(LEFTOVERS) for part in Path(name).parts)
        whole_lines = name.endswith(".jsonl") and name in found and content.startswith(found[name])
        if found.get(name) != content and not leftover and not whole_lines:
            changed.append(name)
    return changed


def hold_to(world: World, name: str, damage: list[Damage]) -> int:
    """Tries the command ``name`` on a damaged run and checks what it did."""
    calm_after, calm_out = world.calm(name)
    outcome, before, after, out = world.tried(name, damage)
    assert outcome.code in (0, 2), outcome
    if outcome.code == 2:
        assert len(outcome.errors()) == 1, outcome
        assert not lost(before, after), f"{outcome.err}: lost {lost(before, after)}"
        return 2
    assert not outcome.errors()
    if name.startswith("train"):
        newest = max(path.split("/")[1] for path in calm_after if path.startswith("checkpoints/step-"))
        expected = {path: content for path, content in calm_after.items() if path.startswith(f"checkpoints/{newest}/")}
        # A damage may have made a file a link to what it was, which a run that is complete leaves.
        found = {path: content for path, content in after.items() if not content.startswith(b"link to ")}
        assert not [path for path, content in expected.items() if found.get(path, content) != content], "it ends otherwise"
        assert expected.keys() <= after.keys()
        return 0
    assert before == after or name == "score", "reading has changed the run"
    if name in ("sample", "export"):
        assert out == calm_out or (out == world.older(name) and not world.intact(before, NEWEST))
    elif name == "score" and world.intact(before, "scores.jsonl"):
        (record,) = (json.loads(line) for line in outcome.out.splitlines())
        weights = world.whole[f"checkpoints/step-{record['step']:08d}/ema.safetensors"]
        assert record["provenance"]["generated"]["generator_sha256"] == hashlib.sha256(weights).hexdigest()
    elif name != "page" and world.intact(
        before, "scores.jsonl", "config.yaml", "metrics.jsonl", "probes.jsonl", "environment.json", "samples/"
    ):  # a page tells the time
        assert out == calm_out
    return 0


@pytest.mark.faults
@pytest.mark.parametrize("world", ["gans", "classifiers"])
def test_any_damage_to_a_run_is_repaired_or_told_in_one_line(
    world: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    finished: World = request.getfixturevalue(world)
    fates: Counter[tuple[str, int]] = Counter()

    def try_it(name: str, damage: list[Damage]) -> None:
        fates[name, hold_to(finished, name, damage)] += 1

    MANY(given(st.sampled_from(sorted(finished.commands)), damages)(try_it))()
    with capsys.disabled():
        print(f"\n    {world}: " + ", ".join(f"{name} {code}: {count}" for (name, code), count in sorted(fates.items())))
    assert {code for _, code in fates} == {0, 2}


# What fuzzing has found. Of those that must be refused rather than worked around the error's words follow.
FOUND: dict[str, tuple[str, str, Damage]] = {
    "no best generator": ("gans", "train on", Damage("remove", "best")),
    "a file in place of the best generator": ("gans", "train on", Damage("file", "best")),
    "a manifest of the best generator cut off": ("gans", "train", Damage("truncate", "best/checkpoint.json")),
    "no records of a finished training": ("gans", "train", Damage("file", "metrics.jsonl")),
    "no records of a finished classifier": ("classifiers", "train", Damage("file", "metrics.jsonl")),
    "a file in place of a GAN's checkpoints": ("gans", "train", Damage("file", "checkpoints")),
    "a file in place of a GAN's checkpoints, sampled": ("gans", "sample", Damage("file", "checkpoints")),
    "a file in place of a classifier's checkpoints": ("classifiers", "train", Damage("file", "checkpoints")),
}


@pytest.mark.parametrize("found", FOUND)
def test_a_damage_that_fuzzing_found_is_repaired_or_told_in_one_line(found: str, request: pytest.FixtureRequest) -> None:
    world, name, damage = FOUND[found]
    hold_to(request.getfixturevalue(world), name, [damage])


@pytest.mark.parametrize("name", ["sample", "export"])
def test_a_checkpoint_without_its_averaged_weights_is_damaged_and_not_one_of_raw_weights(name: str, gans: World) -> None:
    outcome, _, _, out = gans.tried(name, [Damage("remove", f"{NEWEST}ema.safetensors")])
    assert outcome.code == 2 or out == gans.older(name)
