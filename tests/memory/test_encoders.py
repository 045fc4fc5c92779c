"""Text encoders that remember: the same outputs to the bit without running, and never those of anything else."""

import copy
import sqlite3
from contextlib import closing

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

import dicache
from dicache.errors import CopyError, DicacheWarning, MemoryFileError, ModeError
from dicache.memory.encoded import Unfit, decoded, encoded
from dicache.reference.scenes import prompts

CAPTIONS = prompts("calibration", 2, seed=5)


@pytest.fixture
def pipe(reference):
    yield reference
    dicache.disable(reference)


@pytest.fixture
def runs(pipe):
    """How often each encoder really ran."""
    counts = {"text_encoder": 0, "text_encoder_2": 0}

    def count(name):
        def hook(module, args, output):
            counts[name] += 1

        return hook

    linear = {name: next(m for m in vars(pipe)[name].modules() if isinstance(m, torch.nn.Linear)) for name in counts}
    handles = [module.register_forward_hook(count(name)) for name, module in linear.items()]
    yield counts
    for handle in handles:
        handle.remove()


def embedded(pipe, prompt=CAPTIONS[0]):
    with torch.no_grad():
        words, sentence, _ = pipe.encode_prompt(prompt, prompt)
    return words, sentence


def test_a_prompt_is_encoded_once_also_for_the_next_process_and_to_the_bit(pipe, runs, tmp_path):
    exact, path = embedded(pipe), tmp_path / "prompts.sqlite"
    runs.update(dict.fromkeys(runs, 0))
    for wanted in (1, 1):
        with dicache.enable(pipe, error_budget=0.1, memory=path) as cache:
            assert all(map(torch.equal, embedded(pipe), exact)) and all(map(torch.equal, embedded(pipe), exact))
            use = cache.memory
        assert set(runs.values()) == {wanted}
    assert (use.remembered, use.computed) == (4, 0) and use.seconds_saved != 0
    assert "forward" not in vars(pipe.text_encoder) and "forward" not in vars(pipe.text_encoder_2)
    embedded(pipe)
    assert set(runs.values()) == {2}


def test_another_prompt_tenant_or_weight_is_computed(pipe, runs, tmp_path):
    path = tmp_path / "prompts.sqlite"
    for k, tenant in enumerate(("a", "b")):
        with dicache.enable(pipe, error_budget=0.1, memory=dicache.Memory(path, tenant)):
            embedded(pipe)
            embedded(pipe, CAPTIONS[1])
        assert runs["text_encoder"] == 2 * (k + 1)
    weight = next(pipe.text_encoder.parameters())
    with dicache.enable(pipe, error_budget=0.1, memory=dicache.Memory(path, "a")), torch.no_grad():
        weight.mul_(2)
        _, sentence = embedded(pipe)
        weight.div_(2)
        assert not torch.equal(embedded(pipe)[1], sentence)
    assert runs == {"text_encoder": 5, "text_encoder_2": 4}


def test_with_gradients_or_in_training_it_runs(pipe, runs, tmp_path):
    with dicache.enable(pipe, error_budget=0.1, memory=tmp_path / "m"):
        embedded(pipe)
        pipe.encode_prompt(CAPTIONS[0], CAPTIONS[0])
        pipe.text_encoder.train()
        embedded(pipe)
        pipe.text_encoder.eval()
    assert runs["text_encoder"] == 3


def test_a_damaged_entry_is_computed_and_written_anew_and_another_prompts_is_never_given(pipe, runs, tmp_path):
    path = tmp_path / "m"
    with dicache.enable(pipe, error_budget=0.1, memory=path) as cache:
        exact = embedded(pipe)
        embedded(pipe, CAPTIONS[1])
        with closing(sqlite3.connect(path, isolation_level=None)) as file:
            # every entry under the next one's name, one cut short
            rows = file.execute("SELECT key, value FROM entries ORDER BY key").fetchall()
            for (key, _), (_, value) in zip(rows, rows[1:] + rows[:1], strict=True):
                file.execute("UPDATE entries SET value = ? WHERE key = ?", (value, key))
            file.execute("UPDATE entries SET value = ? WHERE key = ?", (rows[0][1][:100], rows[0][0]))
        assert all(map(torch.equal, embedded(pipe), exact))
        assert cache.memory.remembered == 0 and cache.memory.computed == 6
        assert all(map(torch.equal, embedded(pipe), exact)) and cache.memory.remembered == 2


def test_a_memory_that_breaks_half_way_is_said_once_and_the_run_goes_on(pipe, tmp_path):
    path = tmp_path / "m"
    exact = embedded(pipe)
    with dicache.enable(pipe, error_budget=0.1, memory=path):
        path.write_bytes(b"something else " * 1000)
        with pytest.warns(DicacheWarning, match="cannot be used"):
            assert all(map(torch.equal, embedded(pipe), exact))
        assert all(map(torch.equal, embedded(pipe), exact))  # a warning is an error here


def test_what_cannot_remember_says_so_and_leaves_the_model_as_it_was(pipe, tmp_path):
    (tmp_path / "text").write_text("prompts " * 1000)
    for memory, error in ((tmp_path / "text", MemoryFileError), (True, ModeError), (3, ModeError)):
        with pytest.raises(error, match="Expected"):
            dicache.enable(pipe, error_budget=0.1, memory=memory)
    with pytest.raises(ModeError, match="no text encoder"):
        dicache.enable(pipe.transformer, error_budget=0.1, memory=tmp_path / "m")
    assert not {"forward"} & {*vars(pipe.text_encoder)}
    with dicache.enable(pipe, error_budget=0.1, memory=tmp_path / "m"), pytest.raises(CopyError, match="disable"):
        copy.deepcopy(pipe.text_encoder)


def test_outputs_come_back_as_they_were(reference):
    encoder, device = reference.text_encoder_2, torch.device("cpu")
    half = torch.randn(2, 3).to(torch.bfloat16)
    output = BaseModelOutput(last_hidden_state=half, hidden_states=(half.T, torch.zeros(0)))
    back, seconds = decoded(encoded(output, "k", 0.5), "k", encoder, device)
    assert type(back) is BaseModelOutput and seconds == 0.5 and torch.equal(back.last_hidden_state, half)
    assert torch.equal(back.hidden_states[0], half.T) and back.hidden_states[1].shape == (0,)
    for unfit in ({"a": half}, [half], object()):
        with pytest.raises(Unfit):
            encoded(unfit, "k", 0.5)
