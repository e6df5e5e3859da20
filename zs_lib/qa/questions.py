"""Questions and passages: the embedded benchmark, and questions of your own from a file or a hub.

The benchmark mirrors the paper's seven sets with subsets made from real facts (`zs benchmark build`):

    natural        NQ          one hop, as typed into a search engine      train, dev, test
    trivia         TriviaQA    one hop, as a quiz asks                      test
    popularity     PopQA       one hop, one template per relation          test
    bridge         HotpotQA    two hops and comparisons                    train, dev, test
    compositional  2Wiki       two relations composed by template          test
    hops           MuSiQue     two, three and four hops                    test
    checked        Bamboogle   125 two-hop questions checked by hand       test
"""

from __future__ import annotations

import os
import re
import reprlib
import tomllib
import types
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from zs_lib.config.paths import BENCHMARK
from zs_lib.errors import DataError
from zs_lib.qa.files import read_rows
from zs_lib.qa.forms import Columns, Unclear, passage_row, question_row

SUBSETS = {
    "natural": "NQ",
    "trivia": "TriviaQA",
    "popularity": "PopQA",
    "bridge": "HotpotQA",
    "compositional": "2WikiMultiHopQA",
    "hops": "MuSiQue",
    "checked": "Bamboogle",
}
"""Subset -> the paper's set that it mirrors."""
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


@dataclass(frozen=True)
class Hop:
    """One step to the answer: a good query names `entity`; its document holds one of `answers`."""

    entity: str
    relation: str
    answers: tuple[str, ...]

    @property
    def noun(self) -> str:
        """What a query calls the relation ("capital"), for the benchmark's relations."""
        return _nouns()[self.relation]

    @property
    def query(self) -> str:
        """The good query of this hop: "capital of Norway"."""
        return f"{self.noun} of {self.entity}"


@cache
def _nouns() -> dict[str, str]:
    """The noun of each relation (the same for every type of subject)."""
    with (BENCHMARK / "relations.toml").open("rb") as file:
        return {row["name"]: row["noun"] for row in tomllib.load(file)["relations"]}


@dataclass(frozen=True)
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


@dataclass(frozen=True)
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
    source = BENCHMARK / "questions.jsonl" if source is None else source
    name = source.name if isinstance(source, Path) else source
    wanted = (subset,) if isinstance(subset, str) else subset
    cure = REBUILD if Path(source).parent == BENCHMARK else QUESTION_LINE
    questions = [
        _question(row, f"{name}, line {line}", number, columns)
        for number, (line, row) in enumerate(_watched(read_rows(source, cure), name), 1)
    ]
    ids = Counter(question.id for question in questions)
    if len(ids) < len(questions):  # all randomness hangs on the id, and tables are joined by it
        raise DataError(
            f"{name}: two lines have the id {ids.most_common(1)[0][0]!r}; give each its own, or none"
        )
    return [
        q for q in questions if (wanted is None or q.subset in wanted) and (split is None or q.split == split)
    ]


def _watched(rows: Iterable, name: Path | str) -> Iterable:
    """The rows, with a progress bar in a terminal if reading them takes more than two seconds."""
    from tqdm import tqdm  # help and profiles, which import this module, come at once without

    return tqdm(rows, f"reading {name}", unit=" rows", delay=2, leave=False, disable=None)


def load_benchmark(name: str, split: str, subset: tuple[str, ...] | None = None) -> list[Question]:
    """Load the "train" or "test" questions of a profile's benchmark.

    The benchmark is "embedded"; "hub" (HUB_TRAIN, and HUB_SETS of HUB_TEST); "hub:OWNER/NAME", with its
    training questions from there, in columns like HUB_TRAIN's; or a source of your own for `load_questions`,
    taken whole whatever the `subset`, whose rows are for training where their `split` says nothing else.

    Where the environment's ZS_HUB_DATA names a folder, its files stand for the hub, as `hf download
    --repo-type dataset OWNER/NAME --local-dir $ZS_HUB_DATA/OWNER/NAME` leaves them.

    Raises:
        DataError: as `load_questions`, or a subset or split has no questions.
    """
    if name == "embedded":
        return load_questions(subset=subset, split=split)
    kind, _, training = name.partition(":")
    if kind != "hub":
        if not (
            own := [question for question in load_questions(name) if (question.split or "train") == split]
        ):
            raise DataError(f"{name} has no {split} questions: say so in their column 'split'.")
        return own
    if split == "train":
        questions = load_questions(_hub_source(training or HUB_TRAIN, "", "train"))
    else:
        questions = [
            replace(question, id=f"{one}/{question.id}", subset=one)
            for one, theirs in HUB_SETS.items()
            for question in load_questions(_hub_source(HUB_TEST, one, theirs))
        ]
    known = dict.fromkeys(question.subset for question in questions)
    if lacking := [one for one in subset or () if one not in known]:
        raise DataError(
            f"The benchmark '{name}' has no {split} questions of {', '.join(lacking)}, only of "
            f"{', '.join(known)}: "
            "correct policy.subsets, or the files."
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
    path = BENCHMARK / f"{corpus}.jsonl"
    passages = (_passage(row, path, number) for number, row in read_rows(path, REBUILD))
    return [passage for passage in passages if split in (None, passage.split)]


def load_corpus(path: Path, columns: Columns | None = None) -> list[Passage]:
    """Load your own corpus: contents like wiki-18's, or title and text, in a file of `files.read_rows`.

    Passages without an id get their number. `columns` maps other columns: our name -> yours.

    Raises:
        DataError: the file cannot be read, or a row is no passage.
    """
    rows = enumerate(read_rows(path, CORPUS_LINE), 1)
    return [_contents(row, f"{path.name}, line {line}", number, columns) for number, (line, row) in rows]


KINDS = {
    "question": (str, "a text"),
    "id": ((str, int, types.NoneType), "a text or a number"),
    "subset": (str, "a text"),
    "data_source": (str, "a text"),
    "split": (str, "a text"),
    "popularity": (int, "a whole number"),
    "hops": (list, "a list"),
}


def _question(row: dict, where: str, number: int, columns: Columns | None) -> Question:
    given = row
    try:
        row = question_row(row, columns)
    except Unclear as problem:
        raise DataError(f"{where}: {problem}; {COLUMNS}") from None
    if missing := [column for column in ("question", "golden_answers") if column not in row]:
        raise DataError(
            f"{where}: no column {' and '.join(missing)} (there are: {', '.join(given) or 'none'}); each "
            f"line needs 'question' (text) and 'golden_answers' (list of texts); {COLUMNS}"
        )
    if not _are_texts(row["golden_answers"]) or not all(map(str.strip, row["golden_answers"])):
        raise DataError(
            f"{where}: golden_answers must be a list of at least one text, none of them empty, "
            f"not {reprlib.repr(row['golden_answers'])}"
        )
    for column, (kind, what) in KINDS.items():
        if column in row and not (isinstance(row[column], kind) and _is_sound(row[column])):
            raise DataError(f"{where}: {column} must be {what}, not {reprlib.repr(row[column])}")
    if not row["question"].strip():
        raise DataError(f"{where}: the question is empty; give it, or leave the line out")
    hops = []
    for hop in row.get("hops", ()):
        if not (
            isinstance(hop, dict)
            and _are_texts([hop.get("entity"), hop.get("relation")])
            and _are_texts(hop.get("answers"))
        ):
            raise DataError(
                f"{where}: each of its hops needs 'entity', 'relation' and 'answers', "
                f"not {reprlib.repr(hop)}; leave the column out if they are not known"
            )
        hops.append(Hop(hop["entity"], hop["relation"], tuple(hop["answers"])))
    known, source = row.get("id"), row.get("data_source", "")
    known = str(number if known is None else known)
    # Sets that were put together count each of their parts anew: "train_0" is in all of them.
    return Question(
        f"{source}/{known}" if source else known,
        row["question"],
        tuple(row["golden_answers"]),
        row.get("subset", source),
        row.get("split", ""),
        tuple(hops),
        row.get("popularity", 0),
    )


def _are_texts(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, str) and _is_sound(one) for one in value)
    )


def _is_sound(value: object) -> bool:
    """Whether a value is free of lone surrogates ("\\ud800" in JSON), which no tokenizer takes."""
    return not isinstance(value, str) or not re.search("[\ud800-\udfff]", value)


def _passage(row: dict, path: Path, number: int) -> Passage:
    try:
        return Passage(**row)
    except TypeError as error:
        raise DataError(f"{path.name}, line {number} is no passage ({error}): {REBUILD}") from None


def _contents(row: dict, where: str, number: int, columns: Columns | None) -> Passage:
    try:
        known, text = passage_row(row, columns)
    except Unclear as problem:
        raise DataError(f"{where}: {problem}; {COLUMNS}") from None
    if not isinstance(known, (str, int)) or not isinstance(text, str):
        raise DataError(
            f"{where} is no passage (id or contents are missing, or no text; there are: "
            f"{', '.join(row) or 'none'}): {CORPUS_LINE}; {COLUMNS}"
        )
    return Passage(str(number if known == "" else known), text, "")
