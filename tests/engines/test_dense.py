"""Dense search, by latent semantic vectors and by a sentence-embedding model."""

import pytest
import torch
from engine_fixtures import TEXTS, ask
from model_fixtures import tiny_model, tiny_tokenizer

from zs_lib.engines.dense import DenseEngine
from zs_lib.errors import EngineError, ModelError
from zs_lib.qa import Passage


def test_dense_search_matches_parts_of_words_and_always_answers():
    engine = DenseEngine([Passage(str(i), text, "train") for i, text in enumerate(TEXTS)])
    results = engine.search([ask("capitals Spanish"), ask("Lyon"), ask("zebra")], 2)
    assert results[0].documents[0] == TEXTS[1] and results[1].documents[0] == TEXTS[2]
    assert [len(result.documents) for result in results] == [2, 2, 2] and engine.search([], 2) == []
    assert results[0] == engine.search([ask("capitals Spanish")], 2)[0]
    with pytest.raises(EngineError, match="no passages"):
        DenseEngine([])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """The folder of a small random sentence-embedding model that pools by the mean."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    folder = tmp_path_factory.mktemp("encoder")
    tiny_model().base_model.save_pretrained(folder / "plain")
    tiny_tokenizer().save_pretrained(folder / "plain")
    words = Transformer(str(folder / "plain"))
    SentenceTransformer(modules=[words, Pooling(words.get_embedding_dimension())]).save(
        str(folder / "encoder")
    )
    return folder / "encoder"


def test_a_sentence_embedding_model_ranks_by_the_cosine_of_its_mean_states(encoder):
    engine = DenseEngine([Passage(str(i), text, "train") for i, text in enumerate(TEXTS)], str(encoder))
    (ranking,) = engine.rank(["capital of Spain"], 4)
    model, tokenizer = tiny_model().base_model, tiny_tokenizer()

    def vector(text: str) -> torch.Tensor:
        states = model(torch.tensor([tokenizer(text).input_ids])).last_hidden_state[0].mean(0)
        return states / states.norm()

    query = vector("capital of Spain")
    by_hand = {text: (vector(text) @ query).item() for text in TEXTS}
    assert [passage.text for passage, _ in ranking] == sorted(TEXTS, key=lambda text: -by_hand[text])[:4]
    assert [score for _, score in ranking] == pytest.approx(
        [by_hand[passage.text] for passage, _ in ranking], abs=1e-5
    )
    assert engine.name == f"dense:{encoder}"
    with pytest.raises(ModelError, match="no config.json"):
        DenseEngine([Passage("0", TEXTS[0], "train")], str(encoder.parent))
