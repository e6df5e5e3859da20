"""Training pairs of a simulator: collect what a real engine answers, judge it, encode it for fine-tuning.

Two recipes. `naive` follows the paper: documents judged useful are shown under the keyword "useful", the
others under "noisy". Then the useful documents of the training set always hold the answer, which stands in
the prompt; so the simulator may learn to write it whatever the query was, and a policy trained on it to
search badly. `grounded` guards against this: "useful" documents are what the real engine gives for this
query, with or without the answer; "noisy" ones are from other questions, and neither hold the answer nor name
the question's entities.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from random import Random

from zs_lib import protocol
from zs_lib.config.arms import PairsArm, RolloutConfig
from zs_lib.config.values import from_dict
from zs_lib.engines import SearchEngine
from zs_lib.engines.simulated import SYSTEM
from zs_lib.errors import ConfigError, DataError, EngineError
from zs_lib.models.encoding import encode_example, encode_prompt
from zs_lib.models.generator import Generator
from zs_lib.qa import Question
from zs_lib.qa.scoring import contains_answer
from zs_lib.rl.rollout import encode_policy_prompt, rollout
from zs_lib.rng import Key
from zs_lib.runs import Run
from zs_lib.runs.distributed import on_main_process

PAIRS = "pairs.jsonl"
HELD_OUT = 0.2
"""Share of the training questions that no pair is made from: fidelity is measured on them."""


@dataclass(frozen=True)
class Pair:
    """A query that a policy wrote, the real engine's documents, and the judges' verdicts.

    `clean` holds documents of other queries, which state no answer and name none of the question's entities.
    `useful` is the LLM judge's verdict, `contained` whether a right answer stands in the documents as text.
    """

    query: str
    question: str
    answer: str
    answers: tuple[str, ...]
    documents: tuple[str, ...]
    clean: tuple[str, ...]
    contained: bool
    useful: bool | None = None


def split_questions(questions: Sequence[Question]) -> tuple[list[Question], list[Question]]:
    """Split questions into (for pairs, held out), by their ids alone: adding questions moves none."""
    held_out = [question for question in questions if Random(question.id).random() < HELD_OUT]
    out = {question.id for question in held_out}
    return [question for question in questions if question.id not in out], held_out


def hold_out(pairs: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Split pairs by their questions into (for training, held out to measure fidelity meanwhile)."""
    out = {pair.question for pair in pairs if Random(pair.question).random() < HELD_OUT}
    return [p for p in pairs if p.question not in out], [p for p in pairs if p.question in out]


def collect_pairs(
    arm: PairsArm, questions: Sequence[Question], collector: Generator, engine: SearchEngine, key: Key = ()
) -> list[Pair]:
    """Roll out the collector with the real engine; returns its searches, equal ones of a question once.

    `key` makes the randomness of one collection its own.

    Raises:
        EngineError: the engine failed a search: its pairs would be missing for good.
    """
    asked = [(question, attempt) for question in questions for attempt in range(arm.attempts)]
    trajectories = rollout(
        [question for question, _ in asked],
        collector,
        engine,
        arm.rollout,
        [("collect", *key, question.id, attempt) for question, attempt in asked],
    )
    found = {}
    for trajectory in trajectories:
        for turn in trajectory.turns:
            if turn.status == "failed":
                raise EngineError(
                    f"The engine '{arm.engine}' failed while pairs were collected ({turn.error}): try again."
                )
            if turn.query and turn.documents:
                found[trajectory.question.id, turn.query] = (trajectory.question, turn)
    pool = list(dict.fromkeys(document for _, turn in found.values() for document in turn.documents))
    return [_pair(question, turn.query, turn.documents, pool) for question, turn in found.values()]


def _pair(question: Question, query: str, documents: Sequence[str], pool: Sequence[str]) -> Pair:
    answers = question.all_answers
    # Without those that name the entity, too: "not of this entity" is one decision, which a small simulator
    # learns. Shown the entity's other relations it leaks answers; shown the same relation of others it does
    # by coincidence, for many countries share a language or a continent.
    kept_back = (*answers, *(hop.entity for hop in question.hops))
    drawn = Random(f"{question.id}/{query}").sample(pool, len(pool))
    others = (document for document in drawn if not contains_answer([document], kept_back))
    return Pair(
        query,
        question.question,
        question.golden_answers[0],
        answers,
        tuple(documents),
        tuple(islice(others, len(documents))),
        contains_answer(documents, answers),
    )


def judge_pairs(pairs: Sequence[Pair], generator: Generator, cfg: RolloutConfig) -> list[Pair]:
    """Let the LLM judge read the documents and answer; a right answer means useful.

    It is prompted as the collector was, with its rollout settings `cfg`, greedily.
    """
    prompts = [
        encode_policy_prompt(pair.question, generator, cfg)
        + generator.encode(
            protocol.tagged("think", f"I need the {pair.query}.") + protocol.tagged("search", pair.query)
        )
        + generator.encode(protocol.format_observation(pair.documents))
        for pair in pairs
    ]
    keys = [("judge", i) for i in range(len(pairs))]
    completions = generator.generate(prompts, keys, cfg.max_turn_tokens, 0.0, protocol.STOP_STRINGS)
    return [
        replace(pair, useful=contains_answer([generator.decode(completion.ids)], pair.answers))
        for pair, completion in zip(pairs, completions, strict=True)
    ]


def judge_agreement(pairs: Sequence[Pair]) -> dict[str, float]:
    """Compare the LLM judge with plain containment: shares of all pairs, and Cohen's kappa."""
    from sklearn.metrics import cohen_kappa_score

    useful, contained = [pair.useful for pair in pairs], [pair.contained for pair in pairs]
    return {
        "pairs": len(pairs),
        "useful": sum(useful) / len(pairs),
        "contained": sum(contained) / len(pairs),
        "agreement": sum(u == c for u, c in zip(useful, contained, strict=True)) / len(pairs),
        "kappa": float(cohen_kappa_score(useful, contained)),
    }


def training_examples(
    pairs: Sequence[Pair], recipe: str, seed: int
) -> list[tuple[Pair, bool, tuple[str, ...]]]:
    """Choose (pair, useful?, documents to write), balanced between the keywords and shuffled.

    Raises:
        DataError: one of the two classes is empty.
    """
    useful = [(pair, True, pair.documents) for pair in pairs if pair.useful]
    if recipe == "naive":
        noisy = [(pair, False, pair.documents) for pair in pairs if not pair.useful]
    else:
        bad = [(pair, True, pair.documents) for pair in pairs if not pair.useful and not pair.contained]
        useful += Random(f"{seed}/balance").sample(bad, min(len(bad), len(useful)))
        noisy = [(pair, False, pair.clean) for pair in pairs if len(pair.clean) == len(pair.documents)]
    if not useful or not noisy:
        raise DataError(
            f"Of {len(pairs)} judged pairs none is {'noisy' if useful else 'useful'}: collect from more "
            "questions (simulator.num_questions), or use a better collector."
        )
    rng, size = Random(f"{seed}/examples"), min(len(useful), len(noisy))
    chosen = rng.sample(useful, size) + rng.sample(noisy, size)
    rng.shuffle(chosen)
    return chosen


def encode_examples(
    chosen: Sequence[tuple[Pair, bool, tuple[str, ...]]], tokenizer, template: str, thinking: bool = True
) -> list[dict]:
    """Tokenise examples for TRL, prompted as the simulator will be; what is trained: documents and EOS.

    Each row's `name` is its query and question.
    """
    rows = []
    for pair, useful, documents in chosen:
        prompt = protocol.simulator_prompt(
            pair.query, pair.question, pair.answer, useful, len(documents), template
        )
        ids = encode_prompt(tokenizer, prompt, SYSTEM, thinking)
        row = encode_example(tokenizer, ids, [(protocol.format_documents(documents), True)], ended=True)
        rows.append(row | {"name": f"{pair.query} ({pair.question})"})
    return rows


@on_main_process
def write_pairs(run: Run, pairs: Sequence[Pair]) -> None:
    """Write the pairs of a run, one JSON object a line."""
    lines = "".join(json.dumps(asdict(pair)) + "\n" for pair in pairs)
    (run.path / PAIRS).write_text(lines, encoding="utf-8")


def read_pairs(run: Run) -> list[Pair]:
    """Read the pairs of a finished run: a `PairsArm`'s, or a refreshed simulator's.

    Raises:
        DataError: they are no pairs. RunError: they are not as they were stored, or unreadable.
    """
    path = run.file(PAIRS)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [from_dict(Pair, json.loads(line), f"line {number}") for number, line in enumerate(lines, 1)]
    except (FileNotFoundError, ValueError, AttributeError, RecursionError, ConfigError) as error:
        raise DataError(
            f"{run.path.name}/{PAIRS} cannot be read ({error}): delete the run's folder, and the pairs are "
            "collected again."
        ) from error
