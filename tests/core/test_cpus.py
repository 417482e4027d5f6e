"""CPUs of the job, not of the machine."""

import os

from rgbd_reid_jax.core import cpus


def test_a_job_has_the_cpus_that_it_was_given(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 8}, raising=False)
    assert cpus.usable() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert cpus.usable() == 64
