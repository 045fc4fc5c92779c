"""Hooks beside those of others, what is refused before anything was changed, and which pipeline is running."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import nn

import dicache
from dicache.config import Config
from dicache.controllers.interval import Interval
from dicache.errors import AlreadyEnabledError, CopyError, ModeError, UnsupportedModelError
from dicache.hosts.attachment import Attachment, attached_to
from dicache.hosts.checks import check_apart, check_branches, check_offloaded, check_others, check_uncached
from dicache.hosts.compiled_blocks import Compilation, Compiled, refuse_whole, refuse_wrapped
from dicache.hosts.module_hook import NAME, Hooks, ModuleHook, registry_of
from dicache.hosts.running_pipeline import Running
from dicache.sites import Evaluation, Spans
from dicache.solvers.clock import Loop
from dicache.solvers.loop_clock import LoopClock
from dicache.tensors.mac_meter import MacCounter
from helpers.requesting import Requested
from helpers.watching import snapshot
from pipelines.neighbours import quiet
from pipelines.tiny import draw_flux, make_flux

ORDERS = list(itertools.permutations(["ours", "first", "second"]))
IDS = ["-".join(order) for order in ORDERS]


class Doubles(ModelHook):
    """Somebody else's hook, by which what comes out is multiplied."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def post_forward(self, module, output):
        return output * self.by


class Adds(ModelHook):
    """Ours, in the place of a session's: adds to what the module gives."""

    def new_forward(self, module, *args, **kwargs):
        return self.fn_ref.original_forward(*args, **kwargs) + 1


def hooked(order: tuple[str, ...]) -> tuple[nn.Linear, ModuleHook]:
    """A linear map under three hooks, put on in this order."""
    module, ours = nn.Linear(2, 2, bias=False), None
    module.weight.data = torch.eye(2)
    for name in order:
        if name == "ours":
            ours = ModuleHook(module, Adds())
        else:
            by = 2.0 if name == "first" else 5.0
            HookRegistry.check_if_exists_or_initialize(module).register_hook(Doubles(by), name)
    assert ours is not None
    return module, ours


def expected(order: tuple[str, ...], x: float = 1.0) -> float:
    """The innermost hook is the one that was put on first."""
    for name in order:
        x = x + 1 if name == "ours" else x * (2 if name == "first" else 5)
    return x


def given_by(module: nn.Module) -> float:
    return float(module(torch.ones(1, 2)).detach()[0, 0])


# Hooks.


@pytest.mark.parametrize("order", ORDERS, ids=IDS)
def test_a_hook_that_is_taken_off_leaves_those_of_others_as_they_were(order):
    module, ours = hooked(order)
    assert given_by(module) == expected(order) and ours.alive
    ours.remove()
    others = [name for name in order if name != "ours"]
    assert given_by(module) == expected(tuple(others)) and registry_of(module)._hook_order == others


@pytest.mark.parametrize("order", ORDERS, ids=IDS)
@pytest.mark.parametrize("taken", ["first", "second"])
def test_a_hook_goes_on_when_another_one_is_taken_off(order, taken):
    module, ours = hooked(order)
    registry_of(module).remove_hook(taken, recurse=False)
    ours.put_back()
    left = tuple(name for name in order if name != taken)
    assert given_by(module) == expected(left)
    ours.remove()
    assert given_by(module) == expected(tuple(name for name in left if name != "ours"))


def test_the_last_hook_leaves_nothing_behind_and_no_more_than_was_there():
    module = nn.Linear(2, 2)
    before = set(vars(module))
    hook = ModuleHook(module, Adds())
    assert {"forward", "_diffusers_hook"} <= set(vars(module))
    hook.remove()
    assert set(vars(module)) == before
    HookRegistry.check_if_exists_or_initialize(module)  # as naming a branch does
    ModuleHook(module, Adds()).remove()
    assert "_diffusers_hook" in vars(module) and not registry_of(module).hooks


def test_a_hook_whose_forward_was_replaced_by_an_older_one_is_dead():
    module, plain = nn.Linear(2, 2), nn.Linear(2, 2).forward
    hook = ModuleHook(module, Adds())
    module._old_forward, module.forward = module.forward, plain  # wrapped, as sequential offload does it
    assert hook.alive
    del module._old_forward
    assert not hook.alive


def test_modules_that_were_replaced_meanwhile_are_let_go():
    session = SimpleNamespace(meter=None, strategy=SimpleNamespace(block=None), call=None)
    denoiser, old, new = nn.Module(), nn.Linear(2, 2), nn.Linear(2, 2)
    hooks = Hooks(denoiser, session)
    hooks.surround({"embed": old})
    hooks.surround({"embed": old})
    assert len(registry_of(old).hooks) == 1, "once is enough"
    hooks.surround({"embed": new})
    assert registry_of(old) is None and NAME in registry_of(new).hooks
    hooks.remove()
    assert registry_of(new) is None and hooks.around == {}


# What is refused.


def test_one_module_in_two_places_is_refused_by_both_names_and_shared_weights_are_not():
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    other.weight = one.weight
    check_apart({"blocks.0": one, "blocks.1": other})
    with pytest.raises(UnsupportedModelError, match=r"blocks\.2 is the module that blocks\.0 is"):
        check_apart({"blocks.0": one, "blocks.1": other, "blocks.2": one})


@pytest.mark.parametrize(
    "name", ["taylorseer_cache", "mag_cache_block_hook", "fbc_leader", "pyramid_attention_broadcast"]
)
def test_the_hook_of_another_cache_is_refused_by_its_name_and_other_hooks_are_not(name):
    denoiser = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    for neighbour in ("group_offloading", "layerwise_casting", NAME):
        HookRegistry.check_if_exists_or_initialize(denoiser[0]).register_hook(ModelHook(), neighbour)
    check_others(denoiser, denoiser.modules())
    check_uncached(denoiser)
    HookRegistry.check_if_exists_or_initialize(denoiser[1]).register_hook(ModelHook(), name)
    with pytest.raises(AlreadyEnabledError, match=f"the hook '{name}' of another cache"):
        check_others(denoiser, denoiser.modules())


@pytest.mark.parametrize(
    ("modules", "sites", "refused"), [(2, Spans(), True), (1, Spans(), False), (2, Evaluation(), False)]
)
def test_offload_of_several_blocks_at_once_goes_with_whole_evaluations_alone(modules, sites, refused):
    block, hook = nn.Linear(2, 2), ModelHook()
    hook.group = SimpleNamespace(modules=[block] * modules)
    HookRegistry.check_if_exists_or_initialize(block).register_hook(hook, "group_offloading")
    config = Config(Interval(2), sites=sites)
    if refused:
        with pytest.raises(ModeError, match="group offload moves 2 blocks"):
            check_offloaded([block], config)
    else:
        check_offloaded([nn.Linear(2, 2), block], config)


def test_attention_that_splits_the_batch_itself_is_refused_where_branches_are_decided():
    class PAGProcessor:
        pass

    denoiser = nn.Sequential(nn.Linear(2, 2))
    check_branches(denoiser)
    denoiser[0].processor = PAGProcessor()
    with pytest.raises(UnsupportedModelError, match="PAGProcessor splits the batch"):
        check_branches(denoiser)


def test_what_is_compiled_as_a_whole_or_wrapped_is_refused_and_a_block_of_its_own_only_without_the_keyword():
    denoiser = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    refuse_whole(denoiser)
    refuse_wrapped({"0": denoiser[0]})
    wrapper = nn.Module()
    wrapper._orig_mod = nn.Linear(2, 2)
    with pytest.raises(ModeError, match=r"1 is what torch\.compile made of a module"):
        refuse_wrapped({"0": denoiser[0], "1": wrapper})
    with pytest.raises(ModeError, match="compiled as a whole"):
        refuse_whole(wrapper)
    denoiser[0]._compiled_call_impl = graph = object()
    with pytest.raises(ModeError, match="the blocks of Sequential are compiled"):
        Compilation(denoiser, denoiser, None).check()
    compilation = Compilation(denoiser, denoiser, {})
    compilation.check()
    assert denoiser[0]._compiled_call_impl is None, "taken over"
    compilation.undo()
    assert denoiser[0]._compiled_call_impl is graph and compilation.taken == []


def test_a_graph_that_would_hide_what_it_multiplies_is_counted_by_running_it_as_it_was():
    ran: list[str] = []
    compiled = Compiled.__new__(Compiled)
    compiled.eager = lambda x: ran.append("as it was") or x @ x
    compiled.compiled = lambda x: ran.append("the graph") or x
    compiled(torch.ones(3, 3))
    assert ran == ["the graph"]
    with MacCounter() as counter:
        compiled(torch.ones(3, 3))
    assert ran == ["the graph", "as it was", "the graph"] and counter.total == 27


def test_what_is_refused_leaves_the_denoiser_as_it_was():
    denoiser = make_flux().transformer
    before = snapshot(denoiser)
    wrong = Config(Interval(2), sites=Spans(back=50))
    with pytest.raises(UnsupportedModelError, match="selects nothing"):
        Attachment(denoiser, wrong, LoopClock())
    assert snapshot(denoiser) == before and attached_to(denoiser) is None


def test_who_is_attached_is_known_by_the_denoiser_and_nothing_of_it_is_copied():
    denoiser = make_flux().transformer
    attachment = Attachment(denoiser, Config(Interval(2)), LoopClock())
    assert attached_to(denoiser) is attachment
    with pytest.raises(CopyError, match="cannot be copied"):
        attachment.__deepcopy__({})
    with pytest.raises(CopyError, match="cannot be pickled"):
        attachment.__reduce_ex__(4)
    attachment.detach()
    assert attached_to(denoiser) is None and attachment.handles == []
    attachment.detach()  # twice is no harm
    with dicache.enable(denoiser, config=Config(Interval(2))):
        assert attached_to(denoiser) is not None


# Which pipeline runs.


class Pipe:
    """Holds a denoiser and a scheduler, and has a loop."""

    def __init__(self, denoiser, scheduler):
        self.transformer, self.scheduler = denoiser, scheduler

    def __call__(self, ask, eta=0.5):
        extra_step_kwargs = {"eta": eta, "generator": object()}
        return self.denoise(ask), extra_step_kwargs

    def denoise(self, ask):
        return ask()

    def asked(self, ask, **options):
        """What is answered from within its loop."""
        return self(ask, **options)[0]


def test_the_scheduler_is_that_of_the_pipeline_whose_frames_led_to_the_call():
    denoiser = nn.Linear(2, 2)
    one, other, stranger = Pipe(denoiser, "one's"), Pipe(denoiser, "other's"), Pipe(nn.Linear(2, 2), "stranger's")
    running = Running(one, {"transformer": denoiser})
    assert running() == "one's", "nobody runs: the one it was enabled on"
    assert one.asked(running) == "one's" and other.asked(running) == "other's"
    assert stranger.asked(running) == "one's", "it holds another denoiser"
    assert stranger.asked(lambda: other.asked(running)) == "other's" == other.asked(lambda: stranger.asked(running))


def test_what_a_loop_hands_to_every_step_is_found_in_its_frame_without_its_generator():
    denoiser = nn.Linear(2, 2)
    pipe = Pipe(denoiser, "its")
    running = Running(pipe, {"transformer": denoiser})
    assert pipe.asked(running.loop, eta=0.3) == Loop(None, {"eta": 0.3})
    pipe._num_timesteps = 7
    assert pipe.asked(running.loop, eta=0.3) == Loop(7, {"eta": 0.3})
    assert running.loop() == Loop(None, {}), "of a loop by hand nothing is known: it was another that made 7"


def test_whatever_else_is_called_pipe_is_asked_and_not_believed():
    denoiser = nn.Linear(2, 2)
    running = Running(Pipe(denoiser, "its"), {"transformer": denoiser})

    def calls(pipe, components=None):
        return running()

    assert calls(3) == calls(None) == calls(SimpleNamespace(scheduler="no denoiser")) == "its"
    assert calls(SimpleNamespace(scheduler=None, transformer=denoiser)) == "its"
    assert calls(SimpleNamespace(scheduler="an experts'", transformer=denoiser)) == "an experts'"
    module = nn.Module()
    module.transformer, module.scheduler = denoiser, "a module's"
    assert calls(module) == "its", "a model that holds the denoiser drives nothing"
    assert calls(0, SimpleNamespace(scheduler="modular", transformer=denoiser)) == "modular"


def test_a_loop_by_hand_after_a_run_of_the_pipeline_counts_its_own_steps():
    pipe = quiet(make_flux())
    request = Requested(pipe, 1, 8)
    draw_flux(pipe, [1], 1)
    pipe.scheduler = request.scheduler
    with dicache.enable(pipe, error_budget=0.5) as cache, torch.no_grad():
        while not request.over:
            request.advance(pipe.transformer(**request.inputs))
    report = cache.report()
    assert len(report.to_dict()["steps"]) == 8 and report.compute_speedup > 1.5
