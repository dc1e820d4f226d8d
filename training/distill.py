"""Fourth and fifth stage: back-propagation through the whole student.

Text sequences learn the base's next-token distribution (KL) with some language-model loss; exercise sequences
have no teacher and learn by language-model loss with weights per token. The head is computed for a subset of
the vocabulary: the commonest ids, the batch's own, and a random share of the rest, scaled up in both softmaxes.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from threading import Lock

import numpy as np
import torch
import torch.nn.functional as F

from . import checkpoint
from .balance import Balance
from .local import schedule
from .model import COMPUTE, dense_forward, student_forward
from .settings import EndToEnd, Settings
from .student import Group

# Tokens whose logits are held at once.
HEAD_TOKENS = 8_192 if torch.cuda.is_available() else 256


@dataclass
class Sequences:
    """Packed sequences [sequences, L]: taught by the base, or with `weights` u8 in eighths for the language-model loss alone.

    `final_states` [sequences, L, D] i16 keeps what the base makes of them (bf16 bits, zeros where not yet known).
    """

    ids: np.ndarray
    final_states: np.ndarray | None = None
    weights: np.ndarray | None = None

    @property
    def taught(self) -> bool:
        """Whether the base says what is to be learnt."""
        return self.weights is None


class Subset:
    """The ids of one step's head and what is added to their logits."""

    def __init__(
        self, ids: np.ndarray, common: torch.Tensor, sampled: int, vocabulary: int, draw: np.random.Generator, device="cpu"
    ):
        mine = torch.from_numpy(np.unique(ids).astype("int64"))
        sure = torch.unique(torch.cat([common, mine]))
        rest = torch.ones(vocabulary, dtype=torch.bool)
        rest[sure] = False
        rest = rest.nonzero().view(-1)
        picked = rest[torch.from_numpy(draw.choice(len(rest), sampled, replace=False))]
        self.ids = torch.cat([sure, picked])
        self.place = torch.full((vocabulary,), -1, dtype=torch.long)
        self.place[self.ids] = torch.arange(len(self.ids))
        self.lift = torch.zeros(len(self.ids))
        self.lift[len(sure) :] = float(np.log(len(rest) / sampled))
        self.ids, self.place, self.lift = (part.to(device) for part in (self.ids, self.place, self.lift))


def head_gradient(student, teacher, next_ids, weights, language_share, subset: Subset, embedding):
    """Losses and the gradient of their sum with respect to the student's final states.

    student [T, D] bf16; teacher [T, D] bf16 or None; next_ids [T]; weights [T] of the language-model loss.
    Returns (gradient [T, D], sum of KL, weighted sum of NLL).
    """
    rows = embedding[subset.ids]
    logits = F.linear(student, rows).float() + subset.lift
    log_p = torch.log_softmax(logits, -1)
    places = subset.place[next_ids]
    nll = -log_p.gather(1, places[:, None])[:, 0]
    p = log_p.exp()
    language = weights if teacher is None else weights * language_share
    slope = p * language[:, None]
    slope.scatter_add_(1, places[:, None], -language[:, None])
    kl = torch.zeros((), device=student.device)
    if teacher is not None:
        log_q = torch.log_softmax(F.linear(teacher, rows).float() + subset.lift, -1)
        q = log_q.exp()
        kl = (q * (log_q - log_p)).sum()
        slope += (1 - language_share) * (p - q)
    return slope.to(rows.dtype) @ rows, kl, (nll * weights).sum()


def head_gradients(student, teacher, next_ids, weights, language_share, subset: Subset, embedding):
    """`head_gradient` for all tokens, some at a time: the logits of all would take too much memory."""
    parts = [
        head_gradient(student[rows], teacher if teacher is None else teacher[rows], next_ids[rows], weights[rows],
                      language_share, subset, embedding)
        for rows in (slice(start, start + HEAD_TOKENS) for start in range(0, len(student), HEAD_TOKENS))
    ]  # fmt: skip
    slopes, kls, nlls = zip(*parts)
    return torch.cat(slopes), sum(kls), sum(nlls)


class Run:
    """One stage's state: the student, its data order, its losses; resumable."""

    def __init__(self, name, layers, output_norm, base_model, wanted: EndToEnd, settings: Settings, workers, folder: Path):
        self.name, self.wanted, self.settings, self.workers, self.folder = name, wanted, settings, workers, folder
        self.dense_layers, self.ends, self.sizes, self.cos, self.sin = base_model
        self.device = str(self.ends["embedding"].device)
        self.groups = [Group(layer, wanted, self.device) for layer in layers]
        self.final = Group({"output_norm": output_norm}, wanted, self.device)
        self.balances = [
            Balance(wanted.balance, wanted.balance_within, settings.even_within_sequence) for _ in layers
        ]
        self.step_index = 0
        self.seconds = 0.0
        self.curve: list[list[float]] = []
        self.lock = Lock()

    def teacher_states(self, sequences: Sequences, rows: np.ndarray) -> torch.Tensor:
        """The base's final states [T, D], from the file or computed (and kept, where there is a file)."""

        def made(of: np.ndarray) -> torch.Tensor:
            ids = torch.from_numpy(sequences.ids[of].astype("int64")).to(self.device)
            with torch.no_grad():
                return dense_forward(ids, self.dense_layers, self.ends, self.sizes, self.cos, self.sin)

        if sequences.final_states is None:
            states = made(rows)
        else:
            states = torch.from_numpy(sequences.final_states[rows]).view(torch.bfloat16)
            missing = (states[:, 0, :8] == 0).all(-1).nonzero().view(-1)
            if len(missing):
                states[missing] = made(rows[missing.numpy()]).bfloat16().cpu()
                for place, state in zip(rows[missing.numpy()], states[missing].view(torch.int16).numpy()):
                    sequences.final_states[place] = state
        return states.view(-1, self.sizes.hidden).to(self.device, COMPUTE)

    def task(self, sequences: Sequences, rows: np.ndarray, subset: Subset) -> tuple[float, float, float]:
        """Forward and backward over some sequences; adds gradients; returns sums (KL, NLL, weights)."""
        ids = torch.from_numpy(sequences.ids[rows].astype("int64")).to(self.device)
        if sequences.weights is None:
            weights = torch.ones(ids.shape)
        else:
            weights = torch.from_numpy(sequences.weights[rows].astype("float32") / 8)
        # A token's weight is that of predicting it; the last position predicts nothing here.
        weights = torch.cat([weights[:, 1:], torch.zeros(len(rows), 1)], 1).view(-1).to(ids.device)
        next_ids = torch.roll(ids, -1, 1).view(-1)
        teacher = self.teacher_states(sequences, rows) if sequences.taught else None

        pull = torch.zeros((), device=ids.device)
        length = ids.shape[1]

        def watch(index, probabilities, chosen):
            nonlocal pull
            pull = pull + self.balances[index].loss(probabilities, chosen, length)

        layers = [group.layer() for group in self.groups]
        ends = self.ends | self.final.layer()
        out = student_forward(ids, layers, ends, self.sizes, self.settings.shape, self.cos, self.sin, watch=watch)
        out = out.view(-1, self.sizes.hidden)
        with torch.no_grad():
            slope, kl, nll = head_gradients(
                out.to(COMPUTE), teacher, next_ids, weights, self.wanted.language_share, subset, self.ends["embedding"]
            )
        share = 1 / self.wanted.step_tokens
        everything = [*self.groups, self.final]
        leaves = [leaf for group in everything for leaf in group.working.values()]
        gradients = iter(
            torch.autograd.grad(
                [out, pull], leaves, [slope.float() * share, torch.tensor(ids.numel() * share, device=ids.device)]
            )
        )
        for group in everything:
            made = {name: next(gradients) for name in group.working}
            with self.lock:
                group.add(made)
        return kl.item(), nll.item(), weights.sum().item()

    def share_done(self) -> float:
        """How much of the stage is done: of its time where it has one, else of its tokens."""
        if self.wanted.seconds is not None:
            return self.seconds / self.wanted.seconds
        return self.step_index * self.wanted.step_tokens / self.wanted.tokens

    def train(self, parts: list[tuple[Sequences, float]], common: torch.Tensor) -> None:
        """`parts` are sequences with their shares; each is read in a seeded order, again and again."""
        progress = self.folder / f"{self.name}-progress.pt"
        if (saved := checkpoint.load(progress)) is not None:
            self.restore(saved)
            del saved
        wanted = self.wanted
        timer = checkpoint.Timer(self.settings.checkpoint_seconds)
        per_task = wanted.task_tokens // self.settings.sequence
        tasks_per_step = wanted.step_tokens // wanted.task_tokens
        plan = islice(task_plan([share for _, share in parts]), self.step_index * tasks_per_step, None)
        while (done := self.share_done()) < 1:
            started = time.monotonic()
            draw = np.random.default_rng([self.settings.seed, self.step_index])
            picks = [
                (parts[kind][0], rows_of_task(len(parts[kind][0].ids), own, per_task, self.settings.seed + kind))
                for kind, own in islice(plan, tasks_per_step)
            ]
            subset = Subset(
                np.concatenate([s.ids[rows].reshape(-1) for s, rows in picks]),
                common, wanted.sampled_ids, self.sizes.vocabulary, draw, self.device,
            )
            results = [f.result() for f in [self.workers.submit(self.task, s, rows, subset) for s, rows in picks]]
            factor = wanted.decay * schedule(done, self.step_index, wanted.warmup_steps)
            list(self.workers.map(lambda group: group.step(factor), [*self.groups, self.final]))
            self.step_index += 1
            self.report(picks, results, time.monotonic() - started)
            if timer.due():
                checkpoint.save(self.state(), progress)
            self.seconds += time.monotonic() - started
        checkpoint.save(self.result(), self.folder / f"{self.name}.pt")
        progress.unlink(missing_ok=True)

    def report(self, picks, results, seconds: float) -> None:
        """One line a step; the curve keeps step, KL and NLL."""
        taught = [r for (s, _), r in zip(picks, results) if s.taught]
        alone = [r for (s, _), r in zip(picks, results) if not s.taught]
        per = lambda rows, k: sum(r[k] for r in rows) / max(1e-9, sum(r[2] for r in rows)) if rows else float("nan")
        kl, nll, exercise = per(taught, 0), per(taught, 1), per(alone, 1)
        self.curve.append([self.step_index, kl, nll, exercise])
        within = " ".join(f"{b.within:.0f}" for b in self.balances)
        rate = self.wanted.step_tokens / seconds
        print(
            f"{self.name} {self.step_index}, {self.share_done():.1%}: KL {kl:.4f} NLL {nll:.4f} exercises {exercise:.4f} "
            f"{rate:.0f} tokens/s | within {within}",
            flush=True,
        )

    def result(self) -> dict:
        """The student's tensors, on the CPU, and the curve."""
        cpu = lambda group: {name: tensor.cpu() for name, tensor in group.tensors().items()}
        return {
            "layers": [cpu(group) for group in self.groups],
            "output_norm": cpu(self.final)["output_norm"],
            "curve": self.curve,
        }

    def state(self) -> dict:
        """All that a resumed run needs."""
        return {
            "step": self.step_index,
            "seconds": self.seconds,
            "groups": [group.state() for group in [*self.groups, self.final]],
            "balances": [balance.state() for balance in self.balances],
            "curve": self.curve,
        }

    def restore(self, state: dict) -> None:
        """From `state`."""
        self.step_index, self.seconds, self.curve = state["step"], state["seconds"], state["curve"]
        for group, saved in zip([*self.groups, self.final], state["groups"]):
            group.restore(saved)
        for balance, saved in zip(self.balances, state["balances"]):
            balance.restore(saved, self.device)


def task_plan(shares: list[float]) -> Iterator[tuple[int, int]]:
    """Task after task (part, running number within the part); shares hold at every moment, not on average."""
    done = [0] * len(shares)
    for number in count(1):
        kind = max(range(len(shares)), key=lambda k: shares[k] / sum(shares) * number - done[k])
        yield kind, done[kind]
        done[kind] += 1


def rows_of_task(length: int, number: int, per_task: int, seed: int) -> np.ndarray:
    """Sequence indices of a part's `number`th task: every round reads all sequences once in a fresh order."""
    tasks = length // per_task
    order = np.random.default_rng([seed, number // tasks]).permutation(length)
    start = number % tasks * per_task
    return np.sort(order[start : start + per_task])


def common_ids(pool: np.ndarray, wanted: int) -> torch.Tensor:
    """The commonest ids of a pool."""
    return torch.from_numpy(np.bincount(pool.reshape(-1), minlength=49_152).argsort()[::-1][:wanted].copy())
