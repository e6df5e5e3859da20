"""The simulator: collect what a real engine answers, judge it, fine-tune an LLM to do the same, measure it.

Two ways to make the training pairs. `naive` follows the paper: documents judged useful are shown under the keyword
"useful", the others under "noisy". Then the useful documents of the training set always hold the answer, which
stands in the prompt; so the simulator may learn to write it whatever the query was, and a policy trained on it to
search badly. `grounded` guards against this: "useful" means what the real engine gives for this query, with or
without the answer, and "noisy" means what it gave for other questions: documents that neither hold the answer nor
tell of what the question is about.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from random import Random

from zs_lib import metrics, models, protocol, qa, warm_up, wording
from zs_lib.arms import FidelityArm, PairsArm, RolloutConfig, SimulatorArm
from zs_lib.engines import SearchEngine, SearchRequest, build_engine
from zs_lib.engines.simulated import SimulatedEngine
from zs_lib.errors import DataError, EngineError
from zs_lib.fine_tuning import Progress, fine_tune, keep
from zs_lib.generate import Generator
from zs_lib.qa import Hop, Question
from zs_lib.rollout import rollout
from zs_lib.runs import Run, RunStore

PAIRS = "pairs.jsonl"
HELD_OUT = 0.2
"""Share of the training questions that no pair is made from: fidelity is measured on them."""


@dataclass(frozen=True)
class Pair:
    """A query that a policy wrote, what the real engine answered, and what the judges say.

    `clean` holds documents of other queries, which state no answer and name none of the question's entities. `useful` is
    the LLM judge's verdict, `contained` whether a right answer stands in the documents as text.
    """

    query: str
    question: str
    answer: str
    answers: tuple[str, ...]
    documents: tuple[str, ...]
    clean: tuple[str, ...]
    contained: bool
    useful: bool | None = None


# collect and judge --------------------------------------------------------------------------------------------------


def split_questions(questions: Sequence[Question]) -> tuple[list[Question], list[Question]]:
    """(to make pairs from, held out); by the question's id alone, so both stay what they are when others come."""
    held_out = [question for question in questions if Random(question.id).random() < HELD_OUT]
    out = {question.id for question in held_out}
    return [question for question in questions if question.id not in out], held_out


def states(documents: Sequence[str], answers: Sequence[str]) -> bool:
    """Whether one of `documents` holds one of `answers` as whole words, after normalisation."""
    return any(metrics.contains(document, answers) for document in documents)


def answers_of(question: Question) -> tuple[str, ...]:
    """What a search for this question may find: its golden answers, and those of the hops on the way."""
    return (*question.golden_answers, *(answer for hop in question.hops for answer in hop.answers))


COLLECTION = RolloutConfig(
    max_searches=2,
    num_documents=3,
    template="short",
    max_turn_tokens=40,
    temperature=1.0,
    max_context_tokens=600,
)
"""How the collector writes where its arm does not say."""


def _collection(arm: PairsArm) -> RolloutConfig:
    return replace(arm.collection or COLLECTION, num_documents=arm.num_documents)


def collect(
    arm: PairsArm, questions: Sequence[Question], collector: Generator, engine: SearchEngine
) -> list[Pair]:
    """Trajectories of the collector with the real engine, as pairs; equal queries of a question once. EngineError if the
    engine failed one: its pairs would be missing for good."""
    cfg = _collection(arm)
    asked = [(question, attempt) for question in questions for attempt in range(arm.attempts)]
    trajectories = rollout(
        [question for question, _ in asked],
        collector,
        engine,
        cfg,
        [("collect", question.id, attempt) for question, attempt in asked],
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
    answers = answers_of(question)
    # Without those that name the entity, too: "not of this entity" is one decision, which a small simulator learns.
    # Shown the entity's other relations it leaks answers; shown the same relation of others it does by coincidence,
    # for many countries share a language or a continent.
    kept_back = (*answers, *(hop.entity for hop in question.hops))
    drawn = Random(f"{question.id}/{query}").sample(pool, len(pool))
    others = (document for document in drawn if not states([document], kept_back))
    return Pair(
        query,
        question.question,
        question.golden_answers[0],
        answers,
        tuple(documents),
        tuple(islice(others, len(documents))),
        states(documents, answers),
    )


def judge(pairs: Sequence[Pair], generator: Generator, cfg: RolloutConfig = COLLECTION) -> list[Pair]:
    """The LLM judge reads the documents and says what it found, prompted as the collector was; a right answer means
    useful."""
    prompts = [
        generator.encode_prompt(protocol.policy_prompt(pair.question, cfg.template))
        + generator.encode(f"<think> I need the {pair.query}. </think><search> {pair.query} </search>")
        + generator.encode(protocol.format_observation(pair.documents))
        for pair in pairs
    ]
    keys = [("judge", i) for i in range(len(pairs))]
    completions = generator.generate(prompts, keys, cfg.max_turn_tokens, 0.0, protocol.STOP_STRINGS)
    return [
        replace(pair, useful=states([generator.decode(completion.ids)], pair.answers))
        for pair, completion in zip(pairs, completions, strict=True)
    ]


def agreement(pairs: Sequence[Pair]) -> dict[str, float]:
    """How the LLM judge and plain containment agree: shares of all pairs, and Cohen's kappa."""
    from sklearn.metrics import cohen_kappa_score

    useful, contained = [pair.useful for pair in pairs], [pair.contained for pair in pairs]
    return {
        "pairs": len(pairs),
        "useful": sum(useful) / len(pairs),
        "contained": sum(contained) / len(pairs),
        "agreement": sum(u == c for u, c in zip(useful, contained)) / len(pairs),
        "kappa": float(cohen_kappa_score(useful, contained)),
    }


# training examples --------------------------------------------------------------------------------------------------


def examples(pairs: Sequence[Pair], way: str, seed: int) -> list[tuple[Pair, bool, tuple[str, ...]]]:
    """(pair, useful?, documents to write), balanced between the keywords and shuffled.

    Raises:
        DataError: one of the two classes is empty.
    """
    if way == "naive":
        useful = [(pair, True, pair.documents) for pair in pairs if pair.useful]
        noisy = [(pair, False, pair.documents) for pair in pairs if not pair.useful]
    else:
        good = [(pair, True, pair.documents) for pair in pairs if pair.useful]
        bad = [(pair, True, pair.documents) for pair in pairs if not pair.useful and not pair.contained]
        noisy = [(pair, False, pair.clean) for pair in pairs if len(pair.clean) == len(pair.documents)]
        rng = Random(f"{seed}/balance")
        useful = good + rng.sample(bad, min(len(bad), len(good)))
    if not useful or not noisy:
        raise DataError(
            f"Of {len(pairs)} judged pairs none is {'noisy' if useful else 'useful'}: collect from more "
            "questions (simulator.num_questions), or use a better collector."
        )
    rng, size = Random(f"{seed}/examples"), min(len(useful), len(noisy))
    chosen = rng.sample(useful, size) + rng.sample(noisy, size)
    rng.shuffle(chosen)
    return chosen


def encode_examples(chosen, tokenizer, template: str) -> list[dict[str, list[int]]]:
    """Rows for TRL: input_ids, and completion_mask with 1 on the documents and the end token (the prompt: 0)."""
    rows = []
    for pair, useful, documents in chosen:
        prompt = tokenizer.encode(
            protocol.simulator_prompt(
                pair.query, pair.question, pair.answer, useful, len(documents), template
            )
        )
        written = tokenizer.encode(protocol.format_documents(documents), add_special_tokens=False) + [
            tokenizer.eos_token_id
        ]
        rows.append(
            {"input_ids": prompt + written, "completion_mask": [0] * len(prompt) + [1] * len(written)}
        )
    return rows


# fine-tune ----------------------------------------------------------------------------------------------------------


def ensure(arm: SimulatorArm, seed: int, store: RunStore, progress: Progress | None = None) -> Run:
    """The finished simulator of this arm and seed: found in the store, or made now.

    One that is not fine-tuned is its backbone as it is, copied into the run so that every arm is used alike.
    """

    def work(run: Run) -> dict:
        loaded = models.load(arm.backbone, arm.dtype)
        summary: dict = {"backbone": arm.backbone, "way": arm.way}
        if arm.fine_tuned:
            pairs = read_pairs(ensure_pairs(arm.pairs, 0, store))
            chosen = examples(pairs, arm.way, seed)
            rows = encode_examples(chosen, loaded.tokenizer, arm.template)
            summary |= {"examples": len(chosen)} | fine_tune(run, loaded, rows, arm, seed, progress)
        keep(run, loaded, arm.dtype, arm.fine_tuned)
        return summary

    return store.ensure(arm, seed, work, together=True)


def ensure_pairs(arm: PairsArm, seed: int, store: RunStore) -> Run:
    """These pairs: found in the store, or collected and judged now."""

    def work(run: Run) -> dict:
        questions, _ = split_questions(qa.load_benchmark(arm.benchmark, "train"))
        questions = Random("pairs").sample(questions, min(arm.num_questions, len(questions)))
        run.progress("collecting", 0, 2)
        pairs = collect(
            arm, questions, _generator(arm.collector, arm, store), build_engine(arm.engine, split="train")
        )
        run.progress("judging", 1, 2)
        pairs = judge(pairs, _generator(arm.judge, arm, store), _collection(arm))
        lines = "".join(json.dumps(asdict(pair)) + "\n" for pair in pairs)
        (run.path / PAIRS).write_text(lines, encoding="utf-8")
        return agreement(pairs)

    return store.ensure(arm, seed, work)


def read_pairs(run: Run) -> list[Pair]:
    """The pairs of a finished run of `ensure_pairs`; DataError if they are damaged."""
    try:
        rows = [json.loads(line) for line in (run.path / PAIRS).read_text(encoding="utf-8").splitlines()]
        return [
            Pair(**{name: tuple(value) if isinstance(value, list) else value for name, value in row.items()})
            for row in rows
        ]
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{run.path.name}/{PAIRS} cannot be read ({error}): delete the run's folder, and the pairs are "
            "collected again."
        ) from error


def _generator(name: str, arm: PairsArm, store: RunStore) -> Generator:
    loaded = models.load(warm_up.start(name, arm.warm_up, arm.benchmark, store), arm.dtype)
    return Generator(loaded.model, loaded.tokenizer)


# fidelity -----------------------------------------------------------------------------------------------------------


def fidelity(
    engine: SimulatedEngine,
    questions: Sequence[Question],
    real: SearchEngine,
    k: int,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> dict:
    """How a simulator behaves on `questions` (with known hops), compared with the real engine.

    answer_first, answer_last: share of good queries for the first and the last hop of two whose useful documents
    state that hop's answer (one-hop questions count as last); answer_good: both together. answer_bad: the same for
    queries that do not name the entity, where the answer must not appear. leak: noisy documents of good queries
    that state an answer. short: requests that brought fewer than k documents. words: mean words a document.
    distinct_2: share of distinct bigrams. auc: of a classifier that tells these documents from the real engine's
    (0.5: it cannot; NaN with too few documents). All shares are in [0, 1]; `real_*` is the real engine's value.
    """
    rng = Random(seed)
    good = [(question, hop, _good_query(hop)) for question in questions for hop in question.hops]
    bad = [(question, question.hops[-1], _bad_query(question, questions, rng)) for question in questions]
    asked = {"useful": (good, False), "noisy": (good, True), "bad": (bad, False)}
    answered = {}
    for done, (kind, (queries, is_noisy)) in enumerate(asked.items()):
        progress(done, len(asked))
        answered[kind] = _ask(engine, queries, k, is_noisy, (kind,))
    useful, noisy, off = answered.values()
    truth, truth_off = _ask(real, good, k, False, ()), _ask(real, bad, k, False, ())
    first = [hop is question.hops[0] and len(question.hops) > 1 for question, hop, _ in good]
    hit, real_hit = _hits(useful, good), _hits(truth, good)
    documents = [document for result in useful for document in result.documents]
    real_documents = [document for result in truth for document in result.documents]
    everything = [*useful, *noisy, *off]
    return {
        "answer_good": _mean(hit),
        "answer_first": _mean(h for h, f in zip(hit, first) if f),
        "answer_last": _mean(h for h, f in zip(hit, first) if not f),
        "answer_bad": _mean(_hits(off, bad)),
        "leak": _mean(_hits(noisy, good)),
        "short": _mean(len(result.documents) < k for result in everything),
        "words": _mean(len(document.split()) for document in documents),
        "distinct_2": metrics.distinct_n(documents, 2),
        "auc": _told_apart(documents, real_documents),
        "real_good": _mean(real_hit),
        "real_bad": _mean(_hits(truth_off, bad)),
        "real_words": _mean(len(document.split()) for document in real_documents),
        "real_distinct_2": metrics.distinct_n(real_documents, 2),
        "good_queries": len(good),
        "bad_queries": len(bad),
    }


def _good_query(hop: Hop) -> str:
    return wording.query(wording.NOUNS[hop.relation], hop.entity)


def _bad_query(question: Question, questions: Sequence[Question], rng: Random) -> str:
    """Half the time the relation alone, else the good query of another question's entity."""
    good = _good_query(question.hops[-1])
    if rng.random() < 0.5:
        return good.split(" of ")[0]
    return _good_query(
        rng.choice([other for other in questions if other.hops[-1].entity != question.hops[-1].entity]).hops[
            -1
        ]
    )


def _ask(engine: SearchEngine, asked, k: int, noisy: bool, key: tuple):
    return engine.search(
        [
            SearchRequest(query, question.question, question.golden_answers, noisy, (*key, i))
            for i, (question, _, query) in enumerate(asked)
        ],
        k,
    )


def _hits(results, asked) -> list[bool]:
    return [states(result.documents, hop.answers) for result, (_, hop, _) in zip(results, asked, strict=True)]


def _told_apart(documents: Sequence[str], real_documents: Sequence[str]) -> float:
    try:
        return metrics.two_sample_auc(documents, real_documents)
    except DataError:  # a simulator that does not understand its prompt writes hardly a document
        return float("nan")


def _mean(values) -> float:
    values = list(values)
    return sum(values) / len(values) if values else float("nan")


def ensure_fidelity(arm: FidelityArm, seed: int, store: RunStore) -> Run:
    """The fidelity of a simulator as a run of its own, on training questions that no pair was made from ("held
    out", where the simulator may know the facts that bridge two hops) or on questions of entities that it never
    met ("test")."""

    def work(run: Run) -> dict:
        if arm.simulator.benchmark != "embedded":
            raise DataError(
                f"The fidelity of '{arm.name}' cannot be measured: that takes questions whose hops are known, which "
                f"the benchmark '{arm.simulator.benchmark}' has not."
            )
        if arm.questions_from == "test":
            questions = qa.load_questions(subset=qa.TRAINED_ON, split="test")
        else:
            questions = split_questions(qa.load_questions(subset=qa.TRAINED_ON, split="train"))[1]
        questions = [question for question in questions if qa.is_chain(question)]
        questions = Random("fidelity").sample(questions, min(arm.num_questions, len(questions)))
        simulator = ensure(arm.simulator, seed, store)
        engine = build_engine("simulated", model=simulator.model_dir, arm=arm.simulator)
        return fidelity(
            engine,
            questions,
            build_engine(arm.simulator.engine),
            arm.simulator.num_documents,
            progress=lambda done, of: run.progress("measuring", done, of),
        )

    return store.ensure(arm, seed, work)
