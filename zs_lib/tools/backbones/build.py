"""Backbones S, M, L: the small pre-trained language models of the `tiny` profile, built from nothing.

Three Llama configurations with tied embeddings and one tokenizer, grown from one trunk, trained on shuffled worlds
(see `pretraining`) and shipped in `data/backbones/` as ordinary transformers folders. `build` is the one command that made them; it
resumes, and says what it cost. Everything else loads them through `models`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from tqdm.auto import tqdm
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from zs_lib import protocol
from zs_lib.models.decode import TransformersGenerator
from zs_lib.qa import scoring, wording
from zs_lib.qa.world import World, load_world
from zs_lib.runs import checkpoints
from zs_lib.runs.checkpoints import Checkpoint
from zs_lib.runs.interrupts import between_steps
from zs_lib.tools.backbones.induction_init import CONTEXT, Shape, grow, initialise
from zs_lib.tools.backbones.pretraining import BASE, END, INSTRUCT, Habits, Sampler, Segment

SAVE_S = 180
"""Seconds between checkpoints of pre-training."""
FOLDER = Path(__file__).resolve().parent.parent / "data" / "backbones"


@dataclass(frozen=True)
class Recipe:
    """Shape and training of one backbone."""

    shape: Shape
    tokens: int
    """Training tokens, padding included."""
    shares: tuple[tuple[str, float], ...]
    """Chance of each kind of example in `pretraining.Sampler`."""
    habits: Habits = BASE
    batch_tokens: int = 4096
    learning_rate: float = 3e-3
    """AdamW on norms and biases; Muon on the matrices takes `muon_rate`, on the embeddings `embedding_rate`."""
    muon_rate: float = 0.02
    embedding_rate: float = 0.005
    warmup: float = 0.02
    """Share of the training in which the rate rises."""
    decay: float = 0.4
    """Share of the training, at its end, in which the rate falls to zero."""


TRUNK_SHARES = (
    ("match", 0.40),
    ("reading", 0.25),
    ("recall", 0.15),
    ("trajectory", 0.10),
    ("simulation", 0.10),
)
POLICY_SHARES = (
    ("reading", 0.44),
    ("match", 0.12),
    ("recall", 0.12),
    ("trajectory", 0.20),
    ("simulation", 0.08),
    ("memory", 0.04),
)
SIMULATOR_SHARES = (
    ("reading", 0.26),
    ("match", 0.08),
    ("recall", 0.08),
    ("trajectory", 0.12),
    ("simulation", 0.24),
    ("memory", 0.22),
)
TRUNK = Recipe(Shape(width=128, layers=4, heads=4), tokens=2_200_000, shares=TRUNK_SHARES, decay=0.0)
"""The model that all sizes grow from, so that matching and copying, the slow part, are learnt once."""
BOTH_SHARES = (
    ("reading", 0.40),
    ("match", 0.08),
    ("recall", 0.06),
    ("trajectory", 0.18),
    ("simulation", 0.18),
    ("memory", 0.10),
)
CHAIN_SHARES = (
    ("reading", 0.50),
    ("match", 0.08),
    ("recall", 0.08),
    ("trajectory", 0.22),
    ("simulation", 0.07),
    ("memory", 0.05),
)
LAST_SHARES = (
    ("reading", 0.36),
    ("match", 0.06),
    ("trajectory", 0.12),
    ("simulation", 0.36),
    ("memory", 0.10),
)
ENGINE_SHARES = (
    ("reading", 0.24),
    ("match", 0.05),
    ("trajectory", 0.10),
    ("simulation", 0.46),
    ("memory", 0.15),
)
_S = Recipe(Shape(width=128, layers=4, heads=4), tokens=6_000_000, shares=POLICY_SHARES)
_M = Recipe(Shape(width=192, layers=4, heads=6), tokens=4_000_000, shares=SIMULATOR_SHARES)
_L = Recipe(Shape(width=256, layers=4, heads=8), tokens=6_000_000, shares=SIMULATOR_SHARES)
RECIPES = {
    "S": (_S, replace(_S, tokens=6_000_000, shares=CHAIN_SHARES, muon_rate=0.012)),
    "M": (
        _M,
        replace(_M, tokens=4_000_000, shares=BOTH_SHARES, muon_rate=0.012),
        replace(_M, tokens=2_400_000, shares=LAST_SHARES, muon_rate=0.012),
    ),
    "L": (
        _L,
        replace(_L, tokens=2_400_000, shares=ENGINE_SHARES, muon_rate=0.012),
        replace(_L, tokens=2_400_000, shares=LAST_SHARES, muon_rate=0.012),
    ),
}
"""Size → its rounds of training, one after another: later rounds were added where the first fell short."""
INSTRUCT_TOKENS = 300_000
"""The instruct variant goes on from base for this long, on well-formed trajectories."""


def build_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """Whole words of the benchmark as tokens, the protocol's tags too, and bytes for everything else, so every
    string survives a round trip. A function of the benchmark's files: the same files give the same tokenizer.

    Longest match first (WordPiece's rule, on bytes) needs no merges, so that no token is spent on half a name. Its time
    grows with the cube of a word's length, so words are cut after 32 letters; the benchmark's longest has 17.
    """
    pattern = Regex(r" ?\p{L}{1,32}| ?\p{N}{1,32}| ?[^\s\p{L}\p{N}]|\s")
    splitter = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    special = [END, "<|pad|>", "<|unknown|>"]
    words = {piece for text in _all_wording(world) for piece, _ in splitter.pre_tokenize_str(text)}
    pieces = (
        special
        + sorted(pre_tokenizers.ByteLevel.alphabet())
        + sorted(word for word in words if len(word) > 1)
    )
    tokenizer = Tokenizer(
        models.WordPiece(
            {piece: i for i, piece in enumerate(pieces)},
            unk_token="<|unknown|>",
            continuing_subword_prefix="",
            max_input_chars_per_word=1_000_000,
        )
    )
    tokenizer.pre_tokenizer, tokenizer.decoder = splitter, decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([tag for name in protocol.TAGS for tag in (f"<{name}>", f"</{name}>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token="<|pad|>",
        unk_token="<|unknown|>",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def _all_wording(world: World) -> Iterator[str]:
    """Everything that the benchmark and the protocol can say, in the places where it is said (after a space)."""
    for fact in world.facts:
        relation, name, thing = fact.relation, fact.subject.name, fact.object
        yield f" {name} {thing}"
        for phrase in (*relation.passages, *relation.natural, *relation.trivia, wording.TEMPLATE_QUESTION):
            said = phrase.format(s=name, o=thing, noun=relation.noun)
            yield said
            yield " " + said
            yield wording.sentence(said)
        yield f" {relation.noun}: {relation.mention.format(s=name)}"
    for template in (*protocol.POLICY_TEMPLATES.values(), *protocol.SIMULATOR_TEMPLATES.values()):
        yield template
    yield " ".join(
        (
            *wording.COMPARISONS,
            "useful noisy Useful Noisy one two three four five yes no It is not there. I need the",
        )
    )
    yield protocol.format_invalid_notice() + protocol.format_documents(["", "", "", "", "", ""])
    yield "".join(f" {number}" for number in (*range(130), *range(1700, 2030)))


def encode(tokenizer, example: list[Segment]) -> tuple[list[int], list[float]]:
    """Ids of an example, segment by segment, and the loss weight of each id."""
    ids, weights = [], []
    for text, weight in example:
        piece = tokenizer.encode(text, add_special_tokens=False)
        ids += piece
        weights += [weight] * len(piece)
    return ids[:CONTEXT], weights[:CONTEXT]


def batches(sampler: Sampler, tokenizer, batch_tokens: int):
    """Endless batches (ids (B, T) int64, weights (B, T) float32), rows of like length together."""
    rng, stream = Random(0), iter(sampler)
    while True:
        rows = sorted(
            (encode(tokenizer, example) for example in islice(stream, 1024)), key=lambda row: len(row[0])
        )
        groups, start = [], 0
        while start < len(rows):
            stop = start + 1
            while stop < len(rows) and len(rows[stop][0]) * (stop + 1 - start) <= batch_tokens:
                stop += 1
            groups.append(rows[start:stop])
            start = stop
        rng.shuffle(groups)
        for group in groups:
            length = max(len(ids) for ids, _ in group)
            ids = torch.full((len(group), length), tokenizer.pad_token_id)
            weights = torch.zeros(len(group), length)
            for row, (tokens, values) in enumerate(group):
                ids[row, : len(tokens)], weights[row, : len(tokens)] = (
                    torch.tensor(tokens),
                    torch.tensor(values),
                )
            yield ids, weights


def loss_of(model: LlamaForCausalLM, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean cross-entropy; logits are computed only where the weight is not zero."""
    wanted, weight = ids[:, 1:], weights[:, 1:]
    chosen = weight > 0
    with torch.autocast(ids.device.type, torch.bfloat16):
        hidden = model.model(ids[:, :-1], use_cache=False).last_hidden_state[chosen]
        logits = model.lm_head(hidden)
    losses = F.cross_entropy(logits.float(), wanted[chosen], reduction="none")
    return (losses * weight[chosen]).sum() / weight[chosen].sum()


class Trainer:
    """The pre-training loop: Muon for matrices, AdamW for the rest, a checkpoint every few minutes."""

    def __init__(self, model: LlamaForCausalLM, recipe: Recipe):
        self.model, self.recipe, self.seen, self.step = model, recipe, 0, 0
        matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
        vectors = [p for p in model.parameters() if p.ndim != 2]
        # Adam moves the row of a rare word as far as that of a frequent one, always away from what is predicted: soon
        # all names share one direction, and a look-up cannot tell them apart. An orthogonalised update keeps them apart.
        self.optimizers = [
            torch.optim.Muon(matrices, lr=recipe.muon_rate, weight_decay=0.0, momentum=0.95),
            torch.optim.Muon(
                [model.model.embed_tokens.weight], lr=recipe.embedding_rate, weight_decay=0.0, momentum=0.95
            ),
            torch.optim.AdamW(vectors, lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.peaks = (recipe.muon_rate, recipe.embedding_rate, recipe.learning_rate)

    def rate(self) -> float:
        """Share of the peak rate at the present token count: up, flat, and down to zero."""
        done, recipe = self.seen / self.recipe.tokens, self.recipe
        return max(1e-3, min(1.0, done / recipe.warmup, (1 - done) / recipe.decay if recipe.decay else 1.0))

    def update(self, ids: torch.Tensor, weights: torch.Tensor) -> float:
        """One optimiser step; returns the loss in nats."""
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * self.rate()
        loss = loss_of(self.model, ids, weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.seen += ids.numel()
        self.step += 1
        return loss.item()


def pretrain(
    model: LlamaForCausalLM, tokenizer, recipe: Recipe, world: World, scratch: Path, label: str
) -> float:
    """Train to the recipe's end, from the checkpoint in `scratch` if there is one; returns CPU-seconds spent.

    A resumed run ends like one that was not interrupted, bit for bit (on one kind of device and thread count): it
    draws the examples of its past again, which takes a small part of the time that training on them took.
    """
    trainer, seconds = Trainer(model, recipe), 0.0
    folder, log = scratch / label, scratch / f"{label}.jsonl"
    if folder.exists():
        seconds = _restore(trainer, checkpoints.load_checkpoint(folder))
    stream = batches(Sampler(world, 1, recipe.habits, dict(recipe.shares)), tokenizer, recipe.batch_tokens)
    for _ in range(trainer.step if trainer.seen < recipe.tokens else 0):
        next(stream)
    bar = tqdm(total=recipe.tokens, initial=trainer.seen, unit="tok", unit_scale=True, desc=label)
    clock, average, saved = time.process_time(), None, time.monotonic()
    with between_steps() as asked_to_stop:
        while trainer.seen < recipe.tokens and not asked_to_stop():
            ids, weights = next(stream)
            loss = trainer.update(ids, weights)
            average = loss if average is None else 0.98 * average + 0.02 * loss
            bar.update(ids.numel())
            if trainer.step % 250 == 0 or trainer.seen >= recipe.tokens:
                row = {
                    "step": trainer.step,
                    "tokens": trainer.seen,
                    "loss": average,
                    **probe(model, tokenizer, world, "dev", 200),
                }
                with log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                bar.set_postfix(
                    loss=f"{average:.2f}", read=f"{row['one_hop']:.2f}", chain=f"{row['chain']:.2f}"
                )
            if time.monotonic() - saved > SAVE_S:
                checkpoints.save_checkpoint(
                    folder, _checkpoint(trainer, seconds + time.process_time() - clock)
                )
                saved = time.monotonic()
        checkpoints.save_checkpoint(folder, _checkpoint(trainer, seconds + time.process_time() - clock))
    return seconds + time.process_time() - clock


def _checkpoint(trainer: Trainer, seconds: float) -> Checkpoint:
    """Weights and optimiser moments, and the CPU-seconds spent."""
    tensors = {f"model.{name}": value for name, value in trainer.model.named_parameters()}
    for number, optimizer in enumerate(trainer.optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {
                f"optimizer.{number}.{index}.{key}": torch.as_tensor(value) for key, value in state.items()
            }
    return Checkpoint(trainer.step, tensors, {"seen": trainer.seen, "seconds": seconds})


def _restore(trainer: Trainer, checkpoint: Checkpoint) -> float:
    """Bring the trainer back to where it was; the seconds spent till then."""
    parameters = dict(trainer.model.named_parameters())
    states: list[dict] = [{} for _ in trainer.optimizers]
    for name, value in checkpoint.tensors.items():
        kind, rest = name.split(".", 1)
        if kind == "model":
            parameters[rest].data.copy_(value)
        else:
            number, index, key = rest.split(".")
            states[int(number)].setdefault(int(index), {})[key] = value
    for optimizer, state in zip(trainer.optimizers, states, strict=True):
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    trainer.seen, trainer.step = checkpoint.state["seen"], checkpoint.step
    return checkpoint.state["seconds"]


def build_backbones(
    sizes: tuple[str, ...] = ("S", "M", "L"), folder: Path = FOLDER, scratch: Path | None = None
) -> None:
    """Make the backbones of `sizes`, base and instruct, from nothing; says what each cost.

    Takes half an hour (S, M) to an hour (L) of one CPU core each, minutes of it for the trunk (start the sizes as
    processes of their own once the trunk is there); a killed build goes on from its last checkpoint in `scratch`.
    """
    torch.set_num_threads(1)
    scratch = scratch or folder / ".build"
    scratch.mkdir(parents=True, exist_ok=True)
    world = load_world()
    tokenizer = build_tokenizer(world)
    trunk = initialise(TRUNK.shape, len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id)
    before = pretrain(trunk, tokenizer, TRUNK, world, scratch, "trunk")
    for size in sizes:
        model, seconds = grow(trunk, RECIPES[size][0].shape), before
        for number, recipe in enumerate(RECIPES[size], 1):
            seconds += pretrain(model, tokenizer, recipe, world, scratch, f"tiny-{size}-{number}")
        rounds = (TRUNK, *RECIPES[size])
        ship(model, tokenizer, folder / f"tiny-{size}", rounds, world, seconds)
        later = replace(
            recipe,
            tokens=INSTRUCT_TOKENS,
            habits=INSTRUCT,
            learning_rate=recipe.learning_rate / 5,
            muon_rate=recipe.muon_rate / 5,
            embedding_rate=recipe.embedding_rate / 5,
        )
        seconds += pretrain(model, tokenizer, later, world, scratch, f"tiny-{size}-instruct")
        ship(model, tokenizer, folder / f"tiny-{size}-instruct", (*rounds, later), world, seconds)


def ship(model, tokenizer, folder: Path, rounds: tuple[Recipe, ...], world: World, seconds: float) -> dict:
    """Save in half precision as a transformers folder, with `build.json`: rounds, cost and what it can read."""
    report = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "cpu_seconds": round(seconds),
        "rounds": [asdict(recipe) for recipe in rounds],
        "read": {split: probe(model, tokenizer, world, split, 1000) for split in ("dev", "test")},
    }
    half = LlamaForCausalLM(model.config)
    half.load_state_dict(model.state_dict())
    half.to(torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "build.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(
        f"{folder.name}: {report['parameters']:,} parameters, {seconds / 3600:.2f} CPU-hours, {report['read']}"
    )
    return report


def probe(model, tokenizer, world: World, split: str, count: int = 400, seed: int = 7) -> dict[str, float]:
    """Whole-answer accuracy on real facts of `split`, in [0, 1], with the number of questions of each kind.

    The model is given a trajectory with good queries up to the documents, and writes on greedily. Of three documents
    one or two state the fact; the others state the same relation of another entity, or another relation of the same
    entity. one_hop: the answer equals the right one. chain: questions of two or three hops and comparisons; every
    thought on the way states the bridge fact, and the final answer is right.
    """
    part = World(world.entities, [fact for fact in world.facts if fact.subject.split == split])
    sampler = Sampler(part, seed, BASE, {"reading": 1.0}, shuffle=False)
    contexts, wanted = [], []
    for number, example in enumerate(islice(sampler, count)):
        before = ""
        for place, (text, _) in enumerate(example):
            before += text
            if text.startswith(protocol.tag("information")):
                contexts.append(before + protocol.tag("think"))
                wanted.append(
                    (number, example[place + 5][0].strip())
                )  # think, relation, subject, "is", the object
        wanted[-1] = (number, example[-1][0].removesuffix(protocol.end_tag("answer")).strip())
    generator = TransformersGenerator(model, tokenizer)
    was_training = model.training
    completions = generator.generate(
        [generator.encode(text) for text in contexts],
        [(i,) for i in range(len(contexts))],
        40,
        0.0,
        protocol.STOP_STRINGS,
    )
    model.train(was_training)
    right: dict[int, list[bool]] = {}
    for (number, answer), (after, _), completion in zip(
        wanted, [*wanted[1:], (-1, "")], completions, strict=True
    ):
        written = generator.decode(completion.ids)
        final = scoring.em(protocol.parse_action(written).text, [answer]) == 1.0
        right.setdefault(number, []).append(final if after != number else scoring.contains(written, [answer]))
    one = [all(hits) for hits in right.values() if len(hits) == 1]
    more = [all(hits) for hits in right.values() if len(hits) > 1]
    return {
        "one_hop": sum(one) / max(1, len(one)),
        "chain": sum(more) / max(1, len(more)),
        "n_one_hop": len(one),
        "n_chain": len(more),
    }
