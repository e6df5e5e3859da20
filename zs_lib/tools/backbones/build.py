"""Build the backbones S, M and L of the profile `tiny`: small Llama models pre-trained from scratch.

They have tied embeddings and one tokenizer, are grown from one trunk, trained on shuffled worlds
(`pretraining`), and shipped in `data/backbones/` as transformers folders. `zs backbones build` made them; it
resumes, and prints its cost.
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
from zs_lib.config.paths import BACKBONES
from zs_lib.models.load import build_generator
from zs_lib.qa import scoring
from zs_lib.runs import checkpoints
from zs_lib.runs.checkpoints import Checkpoint
from zs_lib.runs.interrupts import between_steps
from zs_lib.tools.backbones.induction_init import CONTEXT, Shape, grow, initialise
from zs_lib.tools.backbones.pretraining import BASE, END, INSTRUCT, Habits, Sampler, Segment
from zs_lib.tools.benchmark import wording
from zs_lib.tools.benchmark.world import World, load_world

SAVE_S = 180
"""Seconds between checkpoints of pre-training."""
LOG_STEPS = 250
"""Steps between two measurements that are logged."""


@dataclass(frozen=True)
class Recipe:
    """Shape and training of one backbone."""

    shape: Shape
    tokens: int
    """Training tokens, padding included."""
    shares: tuple[tuple[str, float], ...]
    """Share of each kind of example in `pretraining.KINDS`."""
    habits: Habits = BASE
    batch_tokens: int = 4096
    learning_rate: float = 3e-3
    """Peak learning rate of AdamW, on norms and biases."""
    muon_rate: float = 0.02
    """Peak learning rate of Muon, on matrices."""
    embedding_rate: float = 0.005
    """Peak learning rate of Muon, on the embeddings."""
    warmup: float = 0.02
    """Share of the training in which the learning rate rises."""
    decay: float = 0.4
    """Share of the training, at its end, in which the learning rate falls to zero."""


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
"""The model that all sizes are grown from, so that matching and copying, the slow part, are learnt once."""
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
"""Size → its successive rounds of training; later rounds were added where the first were not enough."""
INSTRUCT_TOKENS = 300_000
"""Further training tokens of the instruct variant, on well-formed trajectories."""


def build_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """Build the tokenizer: whole words of the benchmark, the protocol's tags, and bytes for everything else.

    Every string survives a round trip. The same files of the benchmark give the same tokenizer. WordPiece's
    longest match, on bytes, needs no merges, so that no token is half a name. Its time grows with the cube of
    a word's length, so words are cut after 32 letters; the benchmark's longest has 17.
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
    """All texts of the benchmark and the protocol, at a start and after a space."""
    for fact in world.facts:
        relation, name, thing = fact.relation, fact.subject.name, fact.object
        yield f" {name} {thing}"
        for phrase in (*relation.passages, *relation.natural, *relation.trivia, wording.TEMPLATE_QUESTION):
            text = phrase.format(s=name, o=thing, noun=relation.noun)
            yield text
            yield " " + text
            yield wording.sentence(text)
        yield f" {relation.noun}: {relation.mention.format(s=name)}"
    for templates in (protocol.POLICY_TEMPLATES, protocol.SIMULATOR_TEMPLATES):
        yield from (templates["paper"], templates["short"])  # those that the backbones are trained with
    words = "useful noisy Useful Noisy one two three four five yes no It is not there. I need the"
    yield " ".join((*wording.COMPARISONS, words))
    yield protocol.format_invalid_notice() + protocol.format_documents(["", "", "", "", "", ""])
    yield "".join(f" {number}" for number in (*range(130), *range(1700, 2030)))


def encode(tokenizer, example: list[Segment]) -> tuple[list[int], list[float]]:
    """Tokenise an example segment by segment: token ids, and the loss weight of each."""
    ids, weights = [], []
    for text, weight in example:
        piece = tokenizer.encode(text, add_special_tokens=False)
        ids += piece
        weights += [weight] * len(piece)
    return ids[:CONTEXT], weights[:CONTEXT]


def batches(
    sampler: Sampler, tokenizer: PreTrainedTokenizerFast, batch_tokens: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield endless batches, token ids (B, T) and loss weights (B, T), of rows of similar length."""
    rng, stream = Random(0), iter(sampler)
    while True:
        rows = [encode(tokenizer, example) for example in islice(stream, 1024)]
        rows.sort(key=lambda row: len(row[0]))
        groups, start = [], 0
        while start < len(rows):
            stop = start + 1
            while stop < len(rows) and len(rows[stop][0]) * (stop + 1 - start) <= batch_tokens:
                stop += 1
            groups.append(rows[start:stop])
            start = stop
        rng.shuffle(groups)
        for group in groups:
            yield _padded(group, tokenizer.pad_token_id)


def _padded(rows: list[tuple[list[int], list[float]]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    length = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), length), pad)
    weights = torch.zeros(len(rows), length)
    for i, (row_ids, row_weights) in enumerate(rows):
        ids[i, : len(row_ids)] = torch.tensor(row_ids)
        weights[i, : len(row_weights)] = torch.tensor(row_weights)
    return ids, weights


def loss_of(model: LlamaForCausalLM, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Compute the weighted mean cross-entropy; logits are computed only where the weight is not zero."""
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
        # Adam moves the embedding of a rare word as far as that of a frequent one, away from the predicted
        # words. Soon all names share one direction, and look-ups confuse them; Muon's orthogonalised update
        # prevents this.
        self.optimizers = [
            torch.optim.Muon(matrices, lr=recipe.muon_rate, weight_decay=0.0, momentum=0.95),
            torch.optim.Muon(
                [model.model.embed_tokens.weight], lr=recipe.embedding_rate, weight_decay=0.0, momentum=0.95
            ),
            torch.optim.AdamW(vectors, lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.peaks = (recipe.muon_rate, recipe.embedding_rate, recipe.learning_rate)

    def rate(self) -> float:
        """Return the present learning rate over its peak: it rises, is constant, and falls to zero."""
        recipe = self.recipe
        done = self.seen / recipe.tokens
        falling = (1 - done) / recipe.decay if recipe.decay else 1.0
        return max(1e-3, min(1.0, done / recipe.warmup, falling))

    def update(self, ids: torch.Tensor, weights: torch.Tensor) -> float:
        """Make one optimiser step; the loss in nats."""
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
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    recipe: Recipe,
    world: World,
    scratch: Path,
    label: str,
) -> float:
    """Train to the recipe's end, from the checkpoint in `scratch` if there is one; the CPU-seconds spent.

    A resumed run ends like an uninterrupted one, bit for bit (with the same kind of device and number of
    threads): it draws the past examples again, which takes a small part of the time of training on them.
    """
    trainer, seconds = Trainer(model, recipe), 0.0
    folder, log = scratch / label, scratch / f"{label}.jsonl"
    if folder.exists():
        seconds = _restore(trainer, checkpoints.load_checkpoint(folder))
    stream = batches(Sampler(world, 1, recipe.habits, dict(recipe.shares)), tokenizer, recipe.batch_tokens)
    for _ in range(trainer.step if trainer.seen < recipe.tokens else 0):
        next(stream)
    bar = tqdm(total=recipe.tokens, initial=trainer.seen, unit="tok", unit_scale=True, desc=label)
    started, average, saved = time.process_time(), None, time.monotonic()

    def save() -> None:
        spent = seconds + time.process_time() - started
        checkpoints.save_checkpoint(folder, _checkpoint(trainer, spent))

    with between_steps() as asked_to_stop:
        while trainer.seen < recipe.tokens and not asked_to_stop():
            ids, weights = next(stream)
            loss = trainer.update(ids, weights)
            average = loss if average is None else 0.98 * average + 0.02 * loss
            bar.update(ids.numel())
            if trainer.step % LOG_STEPS == 0 or trainer.seen >= recipe.tokens:
                row = {"step": trainer.step, "tokens": trainer.seen, "loss": average}
                row |= probe(model, tokenizer, world, "dev", 200)
                with log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                bar.set_postfix(
                    loss=f"{average:.2f}", read=f"{row['one_hop']:.2f}", chain=f"{row['chain']:.2f}"
                )
            if time.monotonic() - saved > SAVE_S:
                save()
                saved = time.monotonic()
        save()
    return seconds + time.process_time() - started


def _checkpoint(trainer: Trainer, seconds: float) -> Checkpoint:
    """Weights, optimiser moments, tokens seen, and the CPU-seconds spent."""
    tensors = {f"model.{name}": value for name, value in trainer.model.named_parameters()}
    tensors |= {"seen": torch.tensor(trainer.seen), "seconds": torch.tensor(seconds, dtype=torch.float64)}
    for number, optimizer in enumerate(trainer.optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {
                f"optimizer.{number}.{index}.{key}": torch.as_tensor(value) for key, value in state.items()
            }
    return Checkpoint(trainer.step, tensors)


def _restore(trainer: Trainer, checkpoint: Checkpoint) -> float:
    """Load a checkpoint into the trainer; the CPU-seconds spent until then."""
    parameters = dict(trainer.model.named_parameters())
    states: list[dict] = [{} for _ in trainer.optimizers]
    for name, value in checkpoint.tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "model":
            parameters[rest].data.copy_(value)
        elif kind == "optimizer":
            number, index, key = rest.split(".")
            states[int(number)].setdefault(int(index), {})[key] = value
    for optimizer, state in zip(trainer.optimizers, states, strict=True):
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    trainer.seen, trainer.step = checkpoint.tensors["seen"].item(), checkpoint.step
    return checkpoint.tensors["seconds"].item()


def build_backbones(
    sizes: tuple[str, ...] = ("S", "M", "L"), folder: Path = BACKBONES, scratch: Path | None = None
) -> None:
    """Pre-train the backbones of these sizes, base and instruct, from scratch, and print what each cost.

    Each takes half an hour (S, M) to an hour (L) of one CPU core, some minutes of it for the trunk (once the
    trunk is finished, sizes can be built in parallel processes). A killed build resumes from its last
    checkpoint in `scratch`.
    """
    torch.set_num_threads(1)
    scratch = scratch or folder / ".build"
    scratch.mkdir(parents=True, exist_ok=True)
    world = load_world()
    tokenizer = build_tokenizer(world)
    trunk = initialise(TRUNK.shape, len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id)
    trunk_seconds = pretrain(trunk, tokenizer, TRUNK, world, scratch, "trunk")
    for size in sizes:
        model, seconds = grow(trunk, RECIPES[size][0].shape), trunk_seconds
        for number, recipe in enumerate(RECIPES[size], 1):
            seconds += pretrain(model, tokenizer, recipe, world, scratch, f"tiny-{size}-{number}")
        rounds = (TRUNK, *RECIPES[size])
        ship(model, tokenizer, folder / f"tiny-{size}", rounds, world, seconds)
        instruct = replace(
            recipe,
            tokens=INSTRUCT_TOKENS,
            habits=INSTRUCT,
            learning_rate=recipe.learning_rate / 5,
            muon_rate=recipe.muon_rate / 5,
            embedding_rate=recipe.embedding_rate / 5,
        )
        seconds += pretrain(model, tokenizer, instruct, world, scratch, f"tiny-{size}-instruct")
        ship(model, tokenizer, folder / f"tiny-{size}-instruct", (*rounds, instruct), world, seconds)


def ship(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    rounds: tuple[Recipe, ...],
    world: World,
    seconds: float,
) -> dict:
    """Save a model in half precision as a transformers folder, and its recipes and cost in `build.json`."""
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
    size, hours = f"{report['parameters']:,} parameters", f"{seconds / 3600:.2f} CPU-hours"
    print(f"{folder.name}: {size}, {hours}, {report['read']}")
    return report


def probe(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    world: World,
    split: str,
    count: int = 400,
    seed: int = 7,
) -> dict[str, float]:
    """Measure the accuracy of whole answers, in [0, 1], on real facts of a split; counts of questions too.

    The model is given a trajectory with good queries up to the documents, and continues greedily. Of three
    documents, one or two state the fact; the others state the same relation of another entity, or another
    relation of the same one. one_hop: the answer equals the right one. chain (questions of two or three hops,
    and comparisons): every thought states its hop's fact, and the final answer is right.
    """
    contexts, wanted = _probe_contexts(world, split, count, seed)
    generator = build_generator("transformers", model, tokenizer)
    was_training = model.training
    prompts, keys = [generator.encode(text) for text in contexts], [(i,) for i in range(len(contexts))]
    completions = generator.generate(prompts, keys, 40, 0.0, protocol.STOP_STRINGS)
    model.train(was_training)
    right: dict[int, list[bool]] = {}
    following = [*wanted[1:], (-1, "")]
    for (number, answer), (following_number, _), completion in zip(
        wanted, following, completions, strict=True
    ):
        written = generator.decode(completion.ids)
        if number == following_number:
            hit = scoring.contains(written, [answer])
        else:  # the last turn of its question
            hit = scoring.em(protocol.parse_action(written).text, [answer]) == 1.0
        right.setdefault(number, []).append(hit)
    one = [all(hits) for hits in right.values() if len(hits) == 1]
    more = [all(hits) for hits in right.values() if len(hits) > 1]
    return {
        "one_hop": sum(one) / max(1, len(one)),
        "chain": sum(more) / max(1, len(more)),
        "n_one_hop": len(one),
        "n_chain": len(more),
    }


def _probe_contexts(
    world: World, split: str, count: int, seed: int
) -> tuple[list[str], list[tuple[int, str]]]:
    """Texts up to each thought after documents; for each, the question's number and the text to find."""
    part = World(world.entities, [fact for fact in world.facts if fact.subject.split == split])
    sampler = Sampler(part, seed, BASE, {"reading": 1.0}, shuffle=False)
    contexts, wanted = [], []
    for number, example in enumerate(islice(sampler, count)):
        context = ""
        for i, (text, _) in enumerate(example):
            context += text
            if text.startswith(protocol.tag("information")):
                contexts.append(context + protocol.tag("think"))
                # Segments that follow: think, relation, subject, "is", the object.
                wanted.append((number, example[i + 5][0].strip()))
        wanted[-1] = (number, example[-1][0].removesuffix(protocol.end_tag("answer")).strip())
    return contexts, wanted
