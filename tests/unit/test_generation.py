"""Decoding in shapes that stay, as on a GPU, against the path of the CPU."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rllr.lm import generation, models
from rllr.lm.generation import generate
from rllr.lm.sampling import uniforms
from test_ppo_engine import PROMPTS, make_backbone


@pytest.fixture(scope="module")
def policy(merged, reward_folders):
    """A model with an adapter that is not zero."""
    backbone = make_backbone(merged, reward_folders, policy_std=0.5)
    backbone.model.eval()
    return backbone.model


@pytest.mark.parametrize("room", [1, 2, 40])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("temperature", [None, 1.0, 0.7])
def test_fixed_shapes_give_the_same_tokens_and_logprobs(policy, room, samples, temperature):
    numbers = None if temperature is None else uniforms([[i] for i in range(len(PROMPTS) * samples)], room)
    stops = list(range(0, 259, 17))  # some rows end early, some never

    def answer(fixed):
        return generate(policy, PROMPTS, stops, 0, room, numbers, temperature or 1.0, samples, True, fixed)

    expected, found = answer(False), answer(True)
    assert found.responses == expected.responses
    lengths = {len(response) for response in found.responses}
    assert room < 40 or temperature is None or len(lengths) > 3
    for name in ("logprobs", "entropies"):
        for own, other in zip(getattr(found, name), getattr(expected, name), strict=True):
            assert own == pytest.approx(other, abs=1e-5, nan_ok=True)
    for own, other in zip(found.reading.layers, expected.reading.layers, strict=True):
        assert torch.equal(own, other)  # what was read of the prompts stays whole


def test_in_bf16_they_differ_by_rounding(merged):
    model = models.load_causal(merged, torch.bfloat16)
    numbers = uniforms([[i] for i in range(len(PROMPTS))], 1)

    def first_two(fixed):
        with models.autocast(torch.bfloat16):
            return generate(model, PROMPTS, [2], 0, 2, numbers.repeat(1, 2), fixed=fixed)

    expected, found = first_two(False), first_two(True)
    assert [r[0] for r in found.responses] == [r[0] for r in expected.responses]
    for own, other in zip(found.logprobs, expected.logprobs, strict=True):
        assert own[0] == pytest.approx(other[0], abs=1e-6)


def test_all_rows_done_end_the_steps(policy, monkeypatch):
    """Looked at every LOOK steps: a look waits for the device."""
    steps = []
    monkeypatch.setattr(generation.FixedLayer, "update", counted(generation.FixedLayer.update, steps))
    result = generate(policy, PROMPTS, range(259), 0, 100, fixed=True)
    assert [len(response) for response in result.responses] == [1] * len(PROMPTS)
    assert len(steps) == 2 * (generation.LOOK - 1)  # layers x steps


def counted(function, calls):
    def wrapped(*args, **kwargs):
        calls.append(1)
        return function(*args, **kwargs)

    return wrapped


def test_the_cpu_keeps_rows_that_leave(policy, monkeypatch):
    monkeypatch.setattr(generation, "decode_fixed", None)
    generate(policy, PROMPTS, [2], 0, 4)


def test_a_step_that_cannot_be_captured_is_launched_by_itself(capsys):
    """Here there is no GPU to capture for."""
    if torch.cuda.is_available():
        pytest.skip("it can be")

    def step():
        raise AssertionError("not called while it is captured")

    assert generation.captured(step) is step
    assert capsys.readouterr().err.startswith("decoding: no CUDA graph (")


def test_a_function_is_first_called_on_one_number(merged):
    # By one thread, that is, which is how MKL chooses the same kernel in every run (see models.choose_kernels).
    first: dict = {}

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), others=None):
            first.setdefault(function.overloadpacket, max([a.numel() for a in arguments if torch.is_tensor(a)] or [0]))
            return function(*arguments, **(others or {}))

    with Watch():
        model = models.load_causal(merged, torch.float32)
        generate(model, PROMPTS, [0], 0, 2)
    assert first[torch.ops.aten.cos] == first[torch.ops.aten.sin] == 1
