"""Other tools measure, through an adapter, what `diptych evaluate` measures: each is the real package, where it is."""

from __future__ import annotations

import importlib.util
import json
import pickle
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import diptych
from diptych.apps import adapters
from diptych.apps.adapters.common import is_picture
from diptych.apps.adapters.scikit_learn import Vectorizer
from diptych.catalog import find_recipe
from diptych.cli.main import main
from diptych.predict import Predictor
from diptych.recipes.override import override
from diptych.run import train
from diptych.run.splits import open_split, read_retrieval
from tests.index.sources import save_pictures
from tests.runs import TEXTS, save_run

SHRUNK = {
    "model.vision.depth": 1, "model.text.layers": 2, "model.text.fusion_start": 1, "data.scenes.sprites": "shapes",
    "data.scenes.count": 64, "data.scenes.evaluation_count": 40, "data.workers": 0, "evaluation.bootstrap": 20,
    "evaluation.rerank": 8, "evaluation.batch_size": 16, "run.steps": 12, "run.batch_size": 16, "run.validate_every": 0,
    "run.device": "cpu", "task.queue_size": 16, "schedule.warmup_steps": 2,
}  # fmt: skip
POINTS = 0.1
"""Largest difference in percent points."""


@dataclass(frozen=True)
class Measured:
    """A trained run, what `diptych evaluate` says of it, and its test split."""

    run: Path
    model: Predictor
    figures: dict[str, float]
    pictures: list[Image.Image]
    captions: list[str]
    owner: list[int]
    """The picture of each caption."""

    def recall(self, ranked: list[list[int]], k: int = 1) -> float:
        """Recall of pictures for each caption."""
        return 100 * float(np.mean([owner in places[:k] for owner, places in zip(self.owner, ranked, strict=True)]))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    run = tmp_path_factory.mktemp("run") / "retrieval"
    train(override(replace(find_recipe("albef_tiny_retrieval"), init_from=None), SHRUNK), run)
    assert main(["evaluate", str(run)]) == 0
    model = diptych.load(run, "cpu")
    split = read_retrieval(model.recipe, open_split(model.recipe, "test"), model.tokenizer)
    pictures = [split.pictures[place] for place in range(len(split.pictures))]
    figures = json.loads((run / "eval.json").read_text())
    return Measured(run, model, figures, pictures, list(split.captions), split.image_of_text.tolist())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("small"), "retrieval")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return sorted(save_pictures(tmp_path_factory.mktemp("photos"), 5).rglob("*.png"))


# --------------------------------------------------------------------------- sentence-transformers


def test_a_sentence_transformer_finds_what_evaluate_finds(measured: Measured) -> None:
    util = pytest.importorskip("sentence_transformers.util")
    encoder = adapters.sentence_transformer(measured.run, "cpu")
    vectors = encoder.encode(measured.pictures, convert_to_tensor=True)
    found = util.semantic_search(encoder.encode(measured.captions, convert_to_tensor=True), vectors, top_k=10)
    ranked = [[hit["corpus_id"] for hit in hits] for hits in found]
    for k in (1, 5, 10):
        expected = measured.figures[f"contrastive.text_to_image.recall@{k}"]
        assert measured.recall(ranked, k) == pytest.approx(expected, abs=POINTS)


def test_a_cross_encoder_ranks_candidates_by_the_probability_of_a_match(measured: Measured) -> None:
    """Not as `evaluate` does, which orders by the logit of a match, as released, or by its sum with the similarity."""
    pytest.importorskip("sentence_transformers")
    similarity = measured.model.embed_texts(measured.captions) @ measured.model.embed_images(measured.pictures).T
    matches = measured.model.match(measured.pictures, measured.captions).T
    encoder = adapters.cross_encoder(measured.model)
    for caption, row, match in zip(measured.captions, similarity, matches, strict=True):
        places = row.topk(measured.model.recipe.evaluation.rerank).indices
        hits = encoder.rank(caption, [measured.pictures[place] for place in places.tolist()])
        found = match[places[[hit["corpus_id"] for hit in hits]]]
        assert [hit["score"] for hit in hits] == pytest.approx(found.tolist(), abs=1e-4)
        assert found.tolist() == pytest.approx(match[places].sort(descending=True).values.tolist(), abs=1e-4)


@pytest.mark.parametrize("system", ["albef", "vlmo"])
def test_an_encoder_has_the_model_s_vectors_of_any_kind_of_picture(
    system: str, tmp_path: Path, files: list[Path]
) -> None:
    pytest.importorskip("sentence_transformers")
    model = diptych.load(save_run(tmp_path, "retrieval", system), "cpu")
    encoder = adapters.sentence_transformer(model)
    expected = model.embed_images(files).numpy()
    for pictures in ([*map(str, files)], [Image.open(file) for file in files], [{"image": str(f)} for f in files]):
        assert np.allclose(encoder.encode(pictures), expected, atol=1e-6)
    assert np.allclose(encoder.encode(TEXTS), model.embed_texts(TEXTS).numpy(), atol=1e-6)
    assert encoder[0].get_embedding_dimension() == expected.shape[1]
    assert encoder.max_seq_length == model.recipe.data.max_tokens_evaluation


def test_a_cross_encoder_gives_the_probability_of_a_match_in_either_order(small: Path, files: list[Path]) -> None:
    pytest.importorskip("sentence_transformers")
    model = diptych.load(small, "cpu")
    encoder = adapters.cross_encoder(model)
    expected = model.match(files, TEXTS).numpy()
    pairs = [(text, str(file)) for file in files for text in TEXTS]
    assert np.allclose(encoder.predict(pairs).reshape(expected.shape), expected, atol=1e-6)
    turned = [(picture, text) for text, picture in pairs]
    assert np.allclose(encoder.predict(turned).reshape(expected.shape), expected, atol=1e-6)
    best = encoder.rank(Image.open(files[0]), TEXTS)[0]
    assert best["corpus_id"] == int(expected[0].argmax())


def test_what_sentence_transformers_cannot_do_is_said(small: Path, files: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    encoder = adapters.sentence_transformer(small, "cpu")
    with pytest.raises(ValueError, match=r"text.*(separate|single batch)"):
        encoder.encode(["a boat", str(files[0])])
    with pytest.raises(ValueError, match="a text and a picture, not two texts"):
        adapters.cross_encoder(small, "cpu").predict([("a boat", "a fox")])
    with pytest.raises(ValueError, match="diptych export RUN"):
        encoder.save(str(tmp_path / "copy"))


def test_a_caption_that_ends_in_a_file_s_name_is_a_text(tmp_path: Path) -> None:
    assert not is_picture("see the fox in fox.jpg")
    (tmp_path / "a fox.jpg").touch()
    assert is_picture(str(tmp_path / "a fox.jpg"))


# --------------------------------------------------------------------------- scikit-learn


def test_a_pipeline_learns_classes_and_survives_cloning_and_pickling(small: Path, files: list[Path]) -> None:
    sklearn = pytest.importorskip("sklearn")
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline

    pictures, labels = [*map(str, files)] * 4, [0, 0, 1, 1, 1] * 4
    pipeline = make_pipeline(adapters.vectorizer(str(small), device="cpu"), LogisticRegression(C=1e4))
    assert cross_val_predict(pipeline, pictures, labels, cv=2).tolist() == labels
    pipeline = sklearn.clone(pipeline).fit(pictures, labels)
    again = pickle.loads(pickle.dumps(pipeline))
    assert again.predict(pictures).tolist() == labels
    assert len(pickle.dumps(pipeline)) < 20_000, "the model travels with the pipeline"


def test_a_vectorizer_has_the_model_s_vectors(small: Path, files: list[Path]) -> None:
    pytest.importorskip("sklearn")
    import pandas

    model = diptych.load(small, "cpu")
    column = pandas.DataFrame({"file": [*map(str, files)]})
    expected = model.embed_images(files).numpy()
    assert np.array_equal(adapters.vectorizer(model).fit_transform(column), expected)
    framed = adapters.vectorizer(model).set_output(transform="pandas").fit_transform(column)
    assert framed.shape == expected.shape
    texts = adapters.vectorizer(model, of="text").fit_transform(np.array(TEXTS)[:, None])
    assert np.array_equal(texts, model.embed_texts(TEXTS).numpy())
    with pytest.raises(ValueError, match="2 columns are given"):
        adapters.vectorizer(model).transform(np.array([[str(files[0]), "a boat"]]))
    with pytest.raises(ValueError, match="of is picture or text, not 'sound'"):
        Vectorizer(model, of="sound").fit([])


# --------------------------------------------------------------------------- CLIP_benchmark


def batches(measured: Measured, transform: Any) -> Iterator[tuple[torch.Tensor, list[list[str]]]]:
    """Batches of pictures with their captions, as CLIP_benchmark's loaders give them."""
    for start in range(0, len(measured.pictures), 16):
        rows = range(start, min(start + 16, len(measured.pictures)))
        captions = [[c for c, owner in zip(measured.captions, measured.owner, strict=True) if owner == r] for r in rows]
        yield torch.stack([transform(measured.pictures[row]) for row in rows]), captions


def test_clip_benchmark_measures_what_evaluate_measures(measured: Measured) -> None:
    zeroshot = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")
    model, transform, tokenizer = adapters.clip_benchmark_model(measured.run, "cpu")
    found = zeroshot.evaluate(
        model, batches(measured, transform), tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10]
    )
    for k in (1, 5, 10):
        for theirs, ours in (("image_retrieval", "text_to_image"), ("text_retrieval", "image_to_text")):
            expected = measured.figures[f"contrastive.{ours}.recall@{k}"]
            assert 100 * found[f"{theirs}_recall@{k}"] == pytest.approx(expected, abs=POINTS)


def test_clip_benchmark_s_zero_shot_is_ours(measured: Measured) -> None:
    zeroshot = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
    model, transform, tokenizer = adapters.clip_benchmark_model(measured.model)
    names, templates = ["fox", "red car", "boat"], ["{c}", "a photo of a {c}", "a picture of a {c}"]
    classes = zeroshot.zero_shot_classifier(model, tokenizer, names, templates, "cpu", amp=False)
    pixels = torch.stack([transform(picture) for picture in measured.pictures])
    with torch.no_grad():
        theirs = (model.encode_image(pixels) @ classes).argmax(dim=1).tolist()
    ours = [names.index(choice.label) for choice in measured.model.classify(measured.pictures, names)]
    assert theirs == ours


def test_clip_benchmark_takes_the_model_type(small: Path, monkeypatch: pytest.MonkeyPatch, files: list[Path]) -> None:
    pytest.importorskip("clip_benchmark")
    if importlib.util.find_spec("open_clip") is None:  # which only its own models need
        monkeypatch.setitem(sys.modules, "open_clip", ModuleType("open_clip"))
    models = importlib.import_module("clip_benchmark.models")
    adapters.register_clip_benchmark()
    adapters.register_clip_benchmark()
    assert models.MODEL_TYPES.count("diptych") == 1
    model, transform, _ = models.load_clip("diptych", "fox", str(small), None, "cpu")
    vectors = model.encode_image(transform(Image.open(files[0]))[None])
    assert torch.allclose(vectors.detach(), diptych.load(small, "cpu").embed_images(files[0]), atol=1e-6)


# --------------------------------------------------------------------------- mteb


def retrieval_task(measured: Measured) -> Any:
    """Text → image retrieval of the run's test split as a task of mteb, which is not on the Hub."""
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    class Scenes(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="Scenes", description="made scenes", reference=None, type="Any2AnyRetrieval", category="t2i",
            dataset={"path": "none/none", "revision": "1"}, eval_splits=["test"], eval_langs=["eng-Latn"],
            main_score="recall_at_1", modalities=["text", "image"], date=("2020-01-01", "2020-01-02"),
            domains=[], task_subtypes=[], license=None, annotations_creators="derived", dialect=[],
            sample_creation="found", bibtex_citation="",
        )  # fmt: skip

        def load_data(self, **_: Any) -> None:
            pictures = [{"id": f"p{n}", "image": p, "modality": "image"} for n, p in enumerate(measured.pictures)]
            features = Features({"id": Value("string"), "image": ImageFeature(), "modality": Value("string")})
            queries = [{"id": f"q{n}", "text": text} for n, text in enumerate(measured.captions)]
            self.dataset = {
                "default": {
                    "test": {
                        "corpus": Dataset.from_list(pictures, features=features),
                        "queries": Dataset.from_list(queries),
                        "relevant_docs": {f"q{n}": {f"p{owner}": 1} for n, owner in enumerate(measured.owner)},
                        "top_ranked": None,
                    }
                }
            }
            self.data_loaded = True

    return Scenes()


def test_mteb_measures_what_evaluate_measures(measured: Measured) -> None:
    mteb = pytest.importorskip("mteb")
    encoder = adapters.mteb_encoder(measured.model, "me/fox")
    result = mteb.evaluate(encoder, retrieval_task(measured), cache=None, show_progress_bar=False)
    scores = result.task_results[0].scores["test"][0]
    for k in (1, 5, 10):
        expected = measured.figures[f"contrastive.text_to_image.recall@{k}"]
        assert 100 * scores[f"recall_at_{k}"] == pytest.approx(expected, abs=POINTS)
    assert result.model_name == "me/fox"


def test_an_mteb_model_is_what_mteb_expects(small: Path, files: list[Path]) -> None:
    protocols = pytest.importorskip("mteb.models.models_protocols")
    model = diptych.load(small, "cpu")
    encoder, crossed = adapters.mteb_encoder(model), adapters.mteb_cross_encoder(model, "me/crossed")
    assert isinstance(encoder, protocols.EncoderProtocol)
    assert isinstance(crossed, protocols.CrossEncoderProtocol)
    assert encoder.mteb_model_meta.embed_dim == model.model.embed_dim
    assert crossed.mteb_model_meta.name == "me/crossed"
    assert crossed.mteb_model_meta.model_type == ["cross-encoder"]


def test_mteb_s_batches_of_texts_pictures_and_both(small: Path, files: list[Path]) -> None:
    model = diptych.load(small, "cpu")
    encoder = adapters.MtebEncoder(model)
    pictures, texts = [Image.open(file) for file in files[:4]], [*TEXTS]
    of_texts = encoder.encode([{"text": texts[:3]}, {"text": texts[3:]}])
    assert torch.allclose(of_texts, model.embed_texts(texts), atol=1e-6)
    of_pictures = encoder.encode([{"image": pictures}])
    both = encoder.encode([{"image": pictures, "text": texts}])
    assert torch.allclose(both, torch.nn.functional.normalize(of_texts + of_pictures, dim=1), atol=1e-6)
    assert torch.allclose(encoder.similarity(of_texts, of_pictures.numpy()), of_texts @ of_pictures.T, atol=1e-6)
    assert torch.allclose(encoder.similarity_pairwise(of_texts, of_texts), torch.ones(4))
    with pytest.raises(ValueError, match="not audio"):
        encoder.encode([{"audio": []}])
    crossed = adapters.MtebCrossEncoder(model)
    expected = model.match_pairs(pictures, texts, [(n, n) for n in range(4)]).logit()
    assert torch.allclose(crossed.predict([{"text": texts}], [{"image": pictures}]), expected, atol=1e-4)
    assert torch.allclose(crossed.predict([{"image": pictures}], [{"text": texts}]), expected, atol=1e-4)
    with pytest.raises(ValueError, match="a pair needs one of each"):
        crossed.predict([{"text": texts}], [{"text": texts}])


# --------------------------------------------------------------------------- what is missing

MAKERS = {
    "sentence_transformers": (adapters.sentence_transformer, adapters.cross_encoder),
    "mteb": (adapters.mteb_encoder, adapters.mteb_cross_encoder),
    "sklearn": (adapters.vectorizer,),
    "clip_benchmark.models": (lambda model: adapters.register_clip_benchmark(),),
}
EXTRAS = {
    "sentence_transformers": "sentence-transformers", "mteb": "mteb", "sklearn": "scikit-learn",
    "clip_benchmark.models": "clip-benchmark",
}  # fmt: skip


@pytest.mark.parametrize("module", MAKERS)
def test_a_missing_package_is_named_with_its_extra(module: str, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tomllib

    monkeypatch.setitem(sys.modules, module, None)
    extra = EXTRAS[module]
    assert extra in tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
    for make in MAKERS[module]:
        with pytest.raises(ValueError, match=rf"pip install 'diptych\[{extra}\]'"):
            make(str(small))


def test_a_model_without_trained_embeddings_is_refused(tmp_path: Path) -> None:
    run = save_run(tmp_path, "entailment")
    for make in (adapters.sentence_transformer, adapters.cross_encoder, adapters.clip_benchmark_model):
        with pytest.raises(ValueError, match="holds no trained"):
            make(run, "cpu")
