"""Questions and passages: the embedded benchmark, and questions of your own from a file or a hub."""

from __future__ import annotations

import os
import re
import reprlib
import tomllib
import types
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import TypeVar

from zs_lib.config.paths import BENCHMARK
from zs_lib.errors import DataError
from zs_lib.qa.files import read_rows
from zs_lib.qa.forms import Columns, RowError, passage_row, question_row

SUBSETS = {
    "natural": "NQ",  # one hop, as typed into a search engine
    "trivia": "TriviaQA",  # one hop, as a quiz asks
    "popularity": "PopQA",  # one hop, one template per relation
    "bridge": "HotpotQA",  # two hops and comparisons
    "compositional": "2WikiMultiHopQA",  # two relations composed by template
    "hops": "MuSiQue",  # two, three and four hops
    "checked": "Bamboogle",  # 125 two-hop questions checked by hand
}
"""Subset of the embedded benchmark, made from real facts (`zs benchmark build`) -> the paper's set that it
mirrors. All have test questions; those TRAINED_ON have train and dev questions, too."""
REBUILD = "run `zs benchmark build`"
COLUMNS = "name yours by columns={'golden_answers': 'label'}, or --columns golden_answers=label"
QUESTION_LINE = 'give a file with one JSON object a line, {"question": "…", "golden_answers": ["…"]}'
CORPUS_LINE = (
    'each line must be a JSON object {"id": "…", "contents": "…"}, or have title and text: mend or remove it'
)
"""The cures for a file that cannot be read: of the benchmark, with other columns, of questions, passages."""
TRAINED_ON = ("natural", "bridge")
"""The paper trains on NQ and HotpotQA only; the other five are out of domain."""
HUB_TRAIN = "Alibaba-NLP/ZeroSearch_dataset"
"""NQ's and HotpotQA's training questions, a parquet file a split; PeterJinGo/nq_hotpotqa_train has the same
form."""
HUB_TEST = "RUC-NLPIR/FlashRAG_datasets"
"""One configuration a set."""
HUB_SETS = {
    "nq": "test",
    "triviaqa": "test",
    "popqa": "test",
    "hotpotqa": "dev",
    "2wikimultihopqa": "dev",
    "musique": "dev",
    "bamboogle": "test",
}
"""The paper's seven sets -> the split with answers that the original evaluates on."""
HUB_DEV = {"nq": "dev", "triviaqa": "dev"}
"""Those of them with a split that nothing else reads: neither HUB_SETS nor HUB_TRAIN."""
KINDS = {
    "question": (str, "a text"),
    "id": ((str, int, types.NoneType), "a text or a number"),
    "subset": (str, "a text"),
    "data_source": (str, "a text"),
    "split": (str, "a text"),
    "popularity": (int, "a whole number"),
    "hops": (list, "a list"),
}
"""Column -> its type, and how an error calls that."""
_SURROGATES = re.compile("[\ud800-\udfff]")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Hop:
    """One step to the answer: a good query names `entity`; its document holds one of `answers`."""

    entity: str
    relation: str
    answers: tuple[str, ...]

    @property
    def noun(self) -> str:
        """The relation's name in a query ("highest mountain" for the benchmark's "highest_point")."""
        return _nouns().get(self.relation, self.relation)

    @property
    def query(self) -> str:
        """The good query of this hop: "capital of Norway"."""
        return f"{self.noun} of {self.entity}"


@cache
def _nouns() -> dict[str, str]:
    """The noun of each relation (the same for every type of subject)."""
    with (BENCHMARK / "relations.toml").open("rb") as file:
        return {row["name"]: row["noun"] for row in tomllib.load(file)["relations"]}


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its right answers; `hops` is empty for questions whose steps are not known."""

    id: str
    question: str
    golden_answers: tuple[str, ...]
    subset: str = ""
    split: str = ""
    hops: tuple[Hop, ...] = ()
    popularity: int = 0

    @property
    def is_chain(self) -> bool:
        """Whether the last hop finds the answer (a comparison's answer is yes, no, or one of two names)."""
        return bool(self.hops) and self.hops[-1].answers == self.golden_answers

    @property
    def all_answers(self) -> tuple[str, ...]:
        """Everything that searches for this question may find: its golden answers and those of its hops."""
        return (*self.golden_answers, *(answer for hop in self.hops for answer in hop.answers))


@dataclass(frozen=True, slots=True)
class Passage:
    """A document of the corpus that the real engine searches."""

    id: str
    text: str
    split: str


def load_questions(
    source: Path | str | None = None,
    subset: str | tuple[str, ...] | None = None,
    split: str | None = None,
    columns: Columns | None = None,
) -> list[Question]:
    """Load questions in the order of their source.

    The source is None (the embedded benchmark), a file (`files.read_rows`), or a set of the hub:
    "owner/name", or "owner/name:config:split" (by default its test split). Your own need `question` and
    `golden_answers` in each row, or the columns of a set that `forms` knows; `columns` maps others, our name
    to yours. A missing `id` is made from the row's number, after `data_source` where that is given, which is
    the `subset` too.

    Raises:
        DataError: the source cannot be read or is empty, a column is missing or of another type, or two rows
            have one id.
    """
    if source is None and columns is None:
        path = BENCHMARK / "questions.jsonl"
        questions = _embedded_questions(path, path.stat().st_mtime_ns if path.exists() else 0)
    else:
        questions = _read_questions(source or BENCHMARK / "questions.jsonl", columns)
    wanted = (subset,) if isinstance(subset, str) else subset
    return [
        q for q in questions if (wanted is None or q.subset in wanted) and (split is None or q.split == split)
    ]


@lru_cache(maxsize=1)
def _embedded_questions(path: Path, modified_ns: int) -> list[Question]:
    """Read the embedded benchmark, once a process while its file stays as it is."""
    return _read_questions(path, None)


def _read_questions(source: Path | str, columns: Columns | None) -> list[Question]:
    cure = REBUILD if Path(source).parent == BENCHMARK else QUESTION_LINE
    questions = list(_read(source, cure, lambda row, number: _question(row, number, columns)))
    [(known, lines)] = Counter(question.id for question in questions).most_common(1)
    if lines > 1:  # all randomness hangs on the id, and tables are joined by it
        name = getattr(source, "name", source)
        raise DataError(f"{name}: two lines have the id {known!r}; give each its own, or none")
    return questions


def _read(source: Path | str, cure: str, read: Callable[[dict, int], T]) -> Iterator[T]:
    """Read each row with its number; what is wrong with one is told with its line."""
    for number, (line, row) in enumerate(read_rows(source, cure), 1):
        try:
            yield read(row, number)
        except RowError as error:
            raise DataError(f"{getattr(source, 'name', source)}, line {line}: {error}") from None


def load_benchmark(name: str, split: str, subset: tuple[str, ...] | None = None) -> list[Question]:
    """Load the "train", "dev" or "test" questions of a profile's benchmark.

    The benchmark is "embedded"; "hub" (HUB_TRAIN; HUB_DEV and HUB_SETS of HUB_TEST); "hub:OWNER/NAME", with
    its training questions from there, in columns like HUB_TRAIN's; or a source of your own for
    `load_questions`, taken whole whatever the `subset`, whose rows are for training where their `split` says
    nothing else.

    Where the environment's ZS_HUB_DATA names a folder, its files stand for the hub, as `hf download
    --repo-type dataset OWNER/NAME --local-dir $ZS_HUB_DATA/OWNER/NAME` leaves them.

    Raises:
        DataError: as `load_questions`, or a subset or split has no questions.
    """
    if name == "embedded":
        return load_questions(subset=subset, split=split)
    kind, _, training = name.partition(":")
    if kind != "hub":
        own = [question for question in load_questions(name) if (question.split or "train") == split]
        if not own:
            raise DataError(f"{name} has no {split} questions: say so in their column 'split'.")
        return own
    if split == "train":
        questions = load_questions(_hub_source(training or HUB_TRAIN, "", "train"))
    else:
        questions = [
            replace(question, id=f"{one}/{question.id}", subset=one)
            for one, theirs in (HUB_DEV if split == "dev" else HUB_SETS).items()
            for question in load_questions(_hub_source(HUB_TEST, one, theirs))
        ]
    known = dict.fromkeys(question.subset for question in questions)
    if lacking := [one for one in subset or () if one not in known]:
        raise DataError(
            f"The benchmark '{name}' has no {split} questions of {', '.join(lacking)}, only of "
            f"{', '.join(known)}: correct policy.subsets, or the files."
        )
    return [
        replace(question, split=split)
        for question in questions
        if subset is None or question.subset in subset
    ]


def _hub_source(name: str, config: str, split: str) -> Path | str:
    """The source of one split of a set for `load_questions`: its name, or a file of ZS_HUB_DATA."""
    folder = os.environ.get("ZS_HUB_DATA")
    if not folder:
        return f"{name}:{config}:{split}"
    files = [Path(folder, name, config, split + suffix) for suffix in (".parquet", ".jsonl")]
    if found := next(filter(Path.exists, files), None):
        return found
    raise DataError(
        f"{files[0]} is missing (or .jsonl): get it by `hf download --repo-type dataset {name}`, or unset "
        "ZS_HUB_DATA"
    )


def load_passages(split: str | None = None, corpus: str = "passages") -> list[Passage]:
    """Load an embedded corpus, or its passages of one split (training searches only those of "train").

    The corpus is "passages", the benchmark's own, or "factbook", the World Factbook's prose.
    """
    passages = _read(BENCHMARK / f"{corpus}.jsonl", REBUILD, lambda row, _: _embedded_passage(row))
    return [passage for passage in passages if split in (None, passage.split)]


def read_corpus(path: Path, columns: Columns | None = None) -> Iterator[Passage]:
    """Read your own corpus: contents like wiki-18's, or title and text, in a file of `files.read_rows`.

    Passages without an id get their number. `columns` maps other columns: our name -> yours.

    Raises:
        DataError: the file cannot be read, or a row is no passage.
    """
    return _read(path, CORPUS_LINE, lambda row, number: _passage(row, number, columns))


def _question(row: dict, number: int, columns: Columns | None) -> Question:
    given, row = row, question_row(row, columns)
    if missing := [column for column in ("question", "golden_answers") if column not in row]:
        raise RowError(
            f"no column {' and '.join(missing)} (there are: {', '.join(given) or 'none'}); each "
            f"line needs 'question' (text) and 'golden_answers' (list of texts); {COLUMNS}"
        )
    if not _are_texts(row["golden_answers"]) or not all(map(str.strip, row["golden_answers"])):
        raise RowError(
            "golden_answers must be a list of at least one text, none of them empty, "
            f"not {reprlib.repr(row['golden_answers'])}"
        )
    for column, (kind, what) in KINDS.items():
        if column in row and not (isinstance(row[column], kind) and _is_sound(row[column])):
            raise RowError(f"{column} must be {what}, not {reprlib.repr(row[column])}")
    if not row["question"].strip():
        raise RowError("the question is empty; give it, or leave the line out")
    known, source = row.get("id"), row.get("data_source", "")
    known = str(number if known is None else known)
    # Sets that were put together count each of their parts anew: "train_0" is in all of them.
    return Question(
        f"{source}/{known}" if source else known,
        row["question"],
        tuple(row["golden_answers"]),
        row.get("subset", source),
        row.get("split", ""),
        tuple(map(_hop, row.get("hops", ()))),
        row.get("popularity", 0),
    )


def _hop(row: object) -> Hop:
    if (
        isinstance(row, dict)
        and _are_texts([row.get("entity"), row.get("relation")])
        and _are_texts(row.get("answers"))
    ):
        return Hop(row["entity"], row["relation"], tuple(row["answers"]))
    raise RowError(
        "each of its hops needs 'entity', 'relation' and 'answers', "
        f"not {reprlib.repr(row)}; leave the column out if they are not known"
    )


def _are_texts(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, str) and _is_sound(one) for one in value)
    )


def _is_sound(value: object) -> bool:
    """Whether a value is free of lone surrogates ("\\ud800" in JSON), which no tokenizer takes."""
    return not isinstance(value, str) or not _SURROGATES.search(value)


def _embedded_passage(row: dict) -> Passage:
    try:
        return Passage(**row)
    except TypeError as error:
        raise RowError(f"no passage ({error}): {REBUILD}") from None


def _passage(row: dict, number: int, columns: Columns | None) -> Passage:
    known, text = passage_row(row, columns)
    if not isinstance(known, (str, int)) or not isinstance(text, str):
        raise RowError(
            f"no passage (id or contents are missing, or no text; there are: "
            f"{', '.join(row) or 'none'}): {CORPUS_LINE}; {COLUMNS}"
        )
    return Passage(str(number if known == "" else known), text, "")
