"""The model card of a schedule: what it is of, what it costs and loses, how it was found."""

from dicache.files.card import Card, table
from dicache.schedules.action_table import lines_of
from dicache.schedules.schedule_file import Content

REPOSITORY = "USER/REPOSITORY"


def schedule_card(content: Content, work: float, prompts: str | None) -> Card:
    """Of one that executes this share of the uncached work; `prompts` says in words what the prompts were."""
    basis, origin = content.basis, content.origin
    steps, sites = basis.shape
    model = basis.model.split("-")[0]
    error = "not measured" if content.error is None else f"{content.error:.4f}"
    fitted = "none" if content.fitted is None else "beside it, for the cells marked *"
    lines = lines_of(content.table)
    return Card(
        title=f"Schedule of {model}, {steps} steps: {1 / work:.2f}x less computed",
        lead=(
            "Which steps are computed and which are filled in, found with dicache for this very model, scheduler and "
            "number of steps."
        ),
        usage=(
            "import dicache\n\n"
            f'with dicache.enable(pipe, schedule="{REPOSITORY}"):\n'
            f"    pipe(prompt, num_inference_steps={steps})"
        ),
        facts={
            "model": basis.model,
            "scheduler": basis.scheduler,
            "steps": f"{steps}, sigmas from {basis.sigmas[0]:.4g} to {basis.sigmas[-1]:.4g}",
            "decided on its own": f"{sites} sites, {basis.selector.get('name', '')}".rstrip(", "),
            "work": f"{work:.1%} of the uncached multiply-accumulates of the denoiser, {1 / work:.2f}x less",
            "error of the final latent": f"{error} (relative L2, the mean over {origin.prompts} prompts)",
            "fitted coefficients": fitted,
        },
        sections=[
            ("Its actions", "```\n" + ("".join(lines) if sites == 1 else "\n".join(lines)) + "\n```"),
            ("How it was found", table(("what", "which"), _origin(content, prompts))),
        ],
    )


def _origin(content: Content, prompts: str | None) -> list[tuple[str, str]]:
    origin = content.origin
    words = [] if prompts is None else [("prompts were", prompts)]
    arguments = [(name, str(value)) for name, value in origin.arguments.items()]
    counted = [("prompts", str(origin.prompts)), ("SHA-256 of them", origin.digest), ("seed", str(origin.seed))]
    return [("finder", origin.finder), *arguments, *words, *counted, ("version of dicache", origin.version)]
