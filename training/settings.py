"""Every number a run depends on: the model's shape, the stages' lengths, step sizes and seeds.

Not here: paths (make.py) and what a stage does with the numbers (the stage's own file).
"""

from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Shape:
    """The student's sizes; whatever is not named here is the base's own."""

    experts: int = 60
    experts_per_token: int = 4
    expert_width: int = 32
    shared_width: int = 1024


@dataclass(frozen=True)
class Statistics:
    """The pass over the dense model that ranks neurons and measures sensitivities."""

    importance_tokens: int = 65_536
    cluster_tokens: int = 24_576
    sensitivity_tokens: int = 16_384
    cluster_rounds: int = 14
    # How strongly directions that tell texts apart, not tokens, are shrunk before clustering: chosen per layer
    # between these so that an LRU cache of half the experts misses about this often.
    miss_rate: float = 0.31
    least_subject_shrink: float = 0.02
    most_subject_shrink: float = 8.0
    shrink_tries: int = 4
    trial_rounds: int = 6
    top_mass: float = 0.6


@dataclass(frozen=True)
class Local:
    """Layer by layer: router and experts learn what the shared expert leaves out."""

    tokens: int = 500_000
    chunk_tokens: int = 4_096
    task_tokens: int = 1_024
    step_tokens: int = 1_024
    # Step sizes are shares of each tensor's root mean square, so that they fit every layer.
    step_size: float = 0.04
    router_step_size: float = 0.015
    warmup_steps: int = 20
    balance: float = 0.02
    # Times the part of the pull that a layer uneven within sequences gets.
    balance_within: float = 0.02
    # Share of the plain squared error beside the sensitivity-weighted one.
    plain_error: float = 0.3


@dataclass(frozen=True)
class EndToEnd:
    """Back-propagation through the whole student; used by the stages distill and mix."""

    tokens: int
    # Where given, the stage is as long as this and `tokens` is not looked at.
    seconds: float | None = None
    step_tokens: int = 4_096
    task_tokens: int = 1_024
    expert_step_size: float = 0.012
    router_step_size: float = 0.004
    shared_step_size: float = 0.003
    attention_step_size: float = 0.002
    norm_step_size: float = 0.001
    warmup_steps: int = 10
    language_share: float = 0.1
    # Whether learnt matrices take part as the file will round them; the gradient passes as if they were not.
    rounded: bool = False
    balance: float = 0.003
    balance_within: float = 0.009
    # The head is computed for the commonest ids and a random share of the rest.
    common_ids: int = 6_144
    sampled_ids: int = 2_048
    decay: float = 1.0


@dataclass(frozen=True)
class Settings:
    """One run; two runs with equal settings on one machine read the same data in the same order."""

    seed: int = 20_261_125
    sequence: int = 256
    shape: Shape = field(default_factory=Shape)
    statistics: Statistics = field(default_factory=Statistics)
    local: Local = field(default_factory=Local)
    distill: EndToEnd = field(default_factory=lambda: EndToEnd(tokens=1_500_000))
    mix: EndToEnd = field(
        default_factory=lambda: EndToEnd(tokens=900_000, expert_step_size=0.008, language_share=0.5)
    )
    # Effective experts within a sequence below which the balance loss pulls harder.
    even_within_sequence: float = 36.0
    pool_tokens: int = 1_400_000
    name: str = "moce demo: SmolLM2 MoE 60x32"
    # Shares of the last stage's tasks.
    text_share: float = 0.35
    sampled_share: float = 0.2
    exercise_share: float = 0.45
    exercise_tokens: int = 1_500_000
    sampled_batches: int = 12
    sampled_batch: int = 64
    checkpoint_seconds: int = 300
    # Whether the base's final states are kept on disk (1.1 KB a token) or computed each time.
    keep_states: bool = True


def for_accelerator() -> Settings:
    """A narrower shared expert and twenty times the tokens: what the shipped model was made with."""
    step = {"task_tokens": 16_384, "warmup_steps": 40}
    return Settings(
        sequence=512,
        shape=Shape(shared_width=768),
        local=Local(tokens=1_048_576, chunk_tokens=32_768, task_tokens=16_384, step_tokens=8_192),
        distill=replace(Settings().distill, tokens=731 * 32_768, step_tokens=32_768, **step),
        mix=replace(Settings().mix, tokens=487 * 49_152, step_tokens=49_152, **step),
        even_within_sequence=38.0,
        pool_tokens=12_000_000,
        exercise_tokens=6_000_000,
        sampled_batches=2,
        sampled_batch=2_048,
        keep_states=False,
    )


def for_more() -> Settings:
    """A longer mix for a model that has been through one (`FROM=`): in larger tasks, rounded as the file rounds, with more of its own text."""
    begun = for_accelerator()
    return replace(
        begun,
        mix=replace(
            begun.mix, tokens=60_000_000, step_tokens=65_536, task_tokens=32_768, expert_step_size=0.006, rounded=True
        ),
        text_share=0.4,
        sampled_share=0.25,
        exercise_share=0.35,
        sampled_batches=4,
    )


def for_more_on_cpu() -> Settings:
    """A longer mix in small tasks, for cores that multiply bf16 matrices (AVX-512 BF16 or AMX); mostly text."""
    more = for_more()
    return replace(
        more,
        mix=replace(
            more.mix, tokens=5_000_000, step_tokens=16_384, task_tokens=4_096, warmup_steps=5, expert_step_size=0.004
        ),
        text_share=0.6,
        sampled_share=0.1,
        exercise_share=0.3,
        pool_tokens=6_000_000,
        exercise_tokens=3_000_000,
        sampled_batches=2,
        sampled_batch=128,
    )


CHOICES = {"cpu": Settings, "accelerator": for_accelerator, "more": for_more, "more-cpu": for_more_on_cpu}
