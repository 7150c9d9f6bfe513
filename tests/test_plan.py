"""The plan on paper, and the page that prints it."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import GPT2Config

from benchmarks.costs import Shape, causal_lm
from benchmarks.plan import DEVICES, Device, plan, this_cpu
from rarlhf_nb.errors import UserError

REPOSITORY = Path(__file__).parent.parent
SHAPE = Shape(batch_size=8, prompt_length=64, completion_length=48)
GPT2 = causal_lm(GPT2Config())
SLOW = Device("slow", 1e9, 1e9, 80e9, 1e15, launch_seconds=0.0)


def test_the_tables_of_the_page_are_those_of_the_script():
    from benchmarks.scale import tables

    page = (REPOSITORY / "docs" / "scale.md").read_text()
    assert dict(re.findall(r"<!-- (\S+) -->\n(.*?)\n<!-- end -->", page, flags=re.S)) == tables()


def test_a_device_that_computes_slowly_takes_flops_over_rate():
    found = plan(GPT2, SHAPE, SLOW)
    assert set(found.limits.values()) == {"compute"} and found.longest == "update"
    tail = plan(GPT2, replace(SHAPE, kept=2), SLOW)
    assert tail.seconds.update == pytest.approx(found.seconds.update / 4)
    assert tail.seconds.generate == found.seconds.generate
    assert plan(GPT2, SHAPE, replace(SLOW, flops_32=2e9)).seconds.total == pytest.approx(found.seconds.total / 2)


def test_slow_memory_and_slow_links_limit_what_uses_them():
    assert plan(GPT2, SHAPE, replace(SLOW, flops_32=1e20, bandwidth=1e9)).limits["generate"] == "memory"
    sharded = plan(GPT2, SHAPE, replace(SLOW, flops_32=1e20, link_bandwidth=1e9), 2, "FSDP")
    assert set(sharded.limits.values()) == {"network"}
    engine = plan(GPT2, SHAPE, replace(SLOW, flops_32=1e20, link_bandwidth=1e9), 2, "FSDP", vllm=True)
    assert engine.seconds.generate < sharded.seconds.generate / 40


def test_the_micro_batch_is_the_largest_that_fits():
    roomy = plan(GPT2, SHAPE, SLOW)
    tight = plan(GPT2, SHAPE, replace(SLOW, memory=roomy.memory.peak / 0.9 * 0.95))
    assert (roomy.micro_batch_size, tight.micro_batch_size) == (8, 4) and roomy.fits and tight.fits
    assert not plan(GPT2, SHAPE, replace(SLOW, memory=1e9)).fits


def test_the_price_is_that_of_all_devices():
    found = plan(GPT2, SHAPE, DEVICES["A100"], 4)
    assert found.price == pytest.approx(4 * 1.8 * found.seconds.total / 3600)


def test_a_plan_needs_a_device():
    with pytest.raises(UserError, match="devices = 0"):
        plan(GPT2, SHAPE, SLOW, 0)


def test_this_cpu_is_measured():
    found = this_cpu(size=64)
    assert found.flops_32 > 1e6 and found.bandwidth > 1e6 and found.memory > 1e8
