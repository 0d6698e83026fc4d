"""Any statistics file, any record of scores: a number, or one line that says what is wrong."""

import copy
import io
import json
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import eval.__main__ as evaluation
from eval.statistics import GaussianStats, save_stats
from tests.faults.damages import Damage, contents
from tests.faults.worlds import Outcome, World, called
from tests.small import small_extractor

pytestmark = pytest.mark.faults
MANY = settings(suppress_health_check=list(HealthCheck), phases=[Phase.generate], max_examples=300)
WORDS = ["--extractor", "efficientnet-lite0", "--cpu", "--json"]
D = 12  # features of the small extractor
Arrays = dict[str, Any]
KINDS = ("f2", "f4", ">f8", "i8", "u1", "?", "c16", "U3", "S3", "M8[s]", "V4", "O")
SHAPES = ((), (0,), (1,), (D,), (D, 1), (1, D), (D, D), (D * D,), (D, D, 1), (2, D, D // 2))
NUMBERS = (0.0, -0.0, 1.0, -1.0, math.nan, math.inf, -math.inf, 1e-320, 1e30, 1e150, 1e160, 1e308, -1e308)
JSON: tuple[Any, ...] = (None, True, 0, -1, 10**30, 0.5, 1e308, math.nan, math.inf, "", "x", "1", "\u2028", "x" * 5000, [], [1],
    [[]], {}, {"a": 1})  # fmt: skip


def moments(seed: int) -> GaussianStats:
    values = np.random.default_rng(seed).normal(size=(40, D))
    provenance = {"extractor": small_extractor("efficientnet-lite0").identity, "images": {"image": [3, 32, 32]}}
    return GaussianStats(values.mean(0), np.cov(values, rowvar=False), 40, provenance)


@st.composite
def arrays_of(draw: st.DrawFn) -> Arrays:
    """Entries of a statistics file, ours or pytorch-fid's, one to three of them changed."""
    whole = moments(0)
    found: Arrays = {"mu": whole.mean, "sigma": whole.covariance}
    if draw(st.booleans()):
        found |= {"count": np.array(40), "provenance": np.array(json.dumps(whole.provenance))}
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(["mu", "sigma", "count", "provenance", "x"]))
        what = draw(st.sampled_from(["remove", "type", "shape", "number", "scale", "json"]))
        if what == "remove":
            found.pop(name, None)
        elif what == "json":
            found["provenance"] = np.array(json.dumps(draw(changed_json(whole.provenance))))
        else:
            found[name] = draw(changed_array(found.get(name, whole.mean), what))
    return found


@st.composite
def changed_array(draw: st.DrawFn, array: Any, what: str) -> Any:
    array = np.array(array)
    if what == "shape":
        return np.resize(array, draw(st.sampled_from(SHAPES)))
    if what == "type":
        try:
            return array.astype(draw(st.sampled_from(KINDS)))
        except (ValueError, TypeError):
            return np.zeros(array.shape, draw(st.sampled_from(KINDS)))
    number = draw(st.sampled_from(NUMBERS))
    if array.dtype.kind != "f" or not array.size:
        return np.array(number)
    if what == "scale":
        with np.errstate(all="ignore"):
            return array * number
    array.flat[draw(st.integers(0, array.size - 1))] = number
    return array


@st.composite
def changed_json(draw: st.DrawFn, value: Any) -> Any:
    """``value`` with something in it left out, or anything in its place."""
    value = copy.deepcopy(value)
    place, keys = value, []
    while isinstance(place, dict | list) and place and (not keys or draw(st.booleans())):
        key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        keys.append((place, key))
        place = place[key]
    owner, key = keys[-1]
    if draw(st.booleans()):
        owner[key] = draw(st.sampled_from(JSON))
    else:
        del owner[key]
    return value


def file_of(entries: Arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **entries)
    return buffer.getvalue()


def hold_to(outcome: Outcome) -> dict[str, Any] | None:
    """What was scored, or None for a refusal in one line."""
    assert outcome.code in (0, 2), outcome
    if outcome.code == 2:
        assert len(outcome.errors()) == 1, outcome
        return None
    assert not outcome.errors()
    (found,) = (json.loads(line) for line in outcome.out.splitlines())
    assert isinstance(found, dict)
    return found


def tell(capsys: pytest.CaptureFixture[str], fates: Counter[Any]) -> None:
    with capsys.disabled():
        print("\n    " + ", ".join(f"{fate}: {count}" for fate, count in sorted(fates.items(), key=str)))


def test_any_statistics_file_gives_a_finite_distance_or_one_line(
    gans: World,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one, other = gans.root / "one.npz", gans.root / "other.npz"
    save_stats(other, moments(1))
    fates: Counter[str] = Counter()

    def try_them(entries: Arrays, damage: Damage | None, command: str) -> None:
        content = file_of(entries)
        one.write_bytes(damage.changed(content) if damage else content)
        if command == "images":
            order = [one, other] if len(content) % 2 else [other, one]
            made_by = ["--made-by", "efficientnet-lite0"]
            found = hold_to(called(evaluation.main, ["images", *map(str, order), *WORDS, *made_by]))
            distance = found and found["fid"]
        else:
            gans.fresh()
            before = contents(gans.run)
            found = hold_to(called(evaluation.main, _score(gans, "--reference", str(one), "--made-by", "efficientnet-lite0")))
            distance = found and found["scores"]["fid"]["mean"]
            assert found or contents(gans.run) == before
        if found is not None:
            assert math.isfinite(distance) and distance >= 0, distance
        fates[f"{command} {'refused' if found is None else 'scored'}"] += 1

    damage = st.none() | st.builds(Damage, st.sampled_from(["flip", "truncate"]), other=st.integers(0, 7), where=st.floats(0, 1))
    whole = st.just({"mu": moments(0).mean, "sigma": moments(0).covariance})
    commands = st.sampled_from(["images", "score"])
    MANY(given(st.one_of(arrays_of(), arrays_of(), whole), damage, commands)(try_them))()
    tell(capsys, fates)
    assert len(fates) == 4


def _score(world: World, *more: str) -> list[str]:
    return ["score", str(world.run), "--protocol", "quick", *WORDS, *more]


def test_any_record_of_scores_is_used_or_told_in_one_line(
    gans: World,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = gans.run / "scores.jsonl"
    lines = [json.loads(line) for line in gans.whole["scores.jsonl"].splitlines()]
    fates: Counter[str] = Counter()

    def try_it(index: int, changed: Any, command: str) -> None:
        gans.fresh()
        path.write_text("".join(json.dumps(changed if i == index else line) + "\n" for i, line in enumerate(lines)))
        before = path.read_bytes()
        outcome = gans.commands[command](gans)
        assert outcome.code in (0, 2) and len(outcome.errors()) == (outcome.code == 2), outcome
        assert outcome.code == 0 or path.read_bytes() == before
        fates[f"{command} {outcome.code}"] += 1

    for_each = st.integers(0, len(lines) - 1).flatmap(lambda i: st.tuples(st.just(i), changed_json(lines[i])))
    commands = st.sampled_from(["score", "table2", "train on"])
    MANY(given(for_each, commands)(lambda one, command: try_it(*one, command)))()
    tell(capsys, fates)
    assert {fate[-1] for fate in fates} == {"0", "2"}
