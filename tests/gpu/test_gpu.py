"""A GPU computes what a CPU computes (pytest -m gpu); the same programs run here on a CPU as far as they can."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import gpu, gpu_checks
from benchmarks.gpu_checks import EAGER, GRAPH, Job
from benchmarks.measurements import Suite, write_random_images
from benchmarks.scaling import Cost


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_computes_what_a_cpu_computes_and_resumes_exactly() -> None:
    suite = Suite(quick=False)
    results = gpu_checks.run(suite, "cuda")
    assert len(results) > 20
    assert not suite.failed


@pytest.mark.slow
def test_the_checks_pass_on_a_cpu_and_notice_another_training() -> None:
    suite = Suite(quick=True)
    results = gpu_checks.run(suite, "cpu")
    assert not suite.failed
    assert [result for what, result in results if what.startswith("weights resumed")] == [
        f"weights resumed at step {stop}, {form}, and without a stop to 0e+00" for form in (EAGER, GRAPH) for stop in (2, 6)
    ]
    jobs = {"a": Job(["seed=0"], steps=2), "b": Job(["seed=1"], steps=2)}
    found = gpu_checks.trainings("cpu", jobs)()
    assert gpu_checks._relative(found["a"], found["b"]) > gpu_checks.BOUNDS["bf16"]
    assert np.abs(found["a"].weights - found["b"].weights).max() > 1e-3
    assert not found["a"].captured


@pytest.mark.slow
@pytest.mark.parametrize("form", [None, "cuda_graph"])
def test_timed_programs_take_their_steps(tmp_path: Path, form: str | None) -> None:
    write_random_images(tmp_path, 40)
    common = {"norm": "mean_spectral", "images": str(tmp_path), "batch": 4, "device": "cpu", "unit": 2}
    case = gpu.our_steps(**common, d_batches="joint_quarter", precision="fp32", form=form)
    assert case() != case()
    theirs = gpu.plain_steps(**common)
    assert theirs() != theirs()


def test_the_least_time_is_that_of_arithmetic_or_of_memory_whichever_is_longer() -> None:
    roof = {"flops": 1e12, "full_flops": 1e11, "bytes": 1e10}
    assert gpu.least_seconds(Cost(2e12, 1e9, 0, 0, 0), roof) == 2.0
    assert gpu.least_seconds(Cost(1e9, 1e11, 0, 0, 0), roof) == 5.0  # bf16 halves the bytes
    assert gpu.least_seconds(Cost(2e12, 1e9, 0, 0, 0, penalty_flops=1e12), roof) == 11.0  # but a penalty is computed in float32
    assert gpu.least_seconds(Cost(1e9, 1e11, 0, 0, 0, penalty_bytes=1e11), roof) == 10.0
    found = gpu.roofline("cpu")()
    assert 1e8 < found["flops"] < 1e15 and 1e7 < found["bytes"] < 1e13
