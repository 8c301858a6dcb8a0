"""Search, re-ranking and evaluation against brute force, with a model whose arithmetic is exact."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from diptych.evaluate import DIRECTIONS, contrastive_recall, evaluate_retrieval
from diptych.metrics.recall import recall, retrieval_ranks
from diptych.models.albef import Albef
from diptych.models.vlmo import Vlmo
from diptych.schema import AlbefConfig, EvaluationConfig, TextConfig, VisionConfig, VlmoConfig
from diptych.search.index import CosineIndex, top_k
from diptych.search.rerank import UNSELECTED, plan_calls, rerank
from diptych.types import Joint, Texts

WIDTH = 4


class Vectors:
    """The state of the fake model: one vector an item."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: torch.Tensor) -> Vectors:
        return Vectors(self.values[index])

    @classmethod
    def cat(cls, states: list[Vectors]) -> Vectors:
        return cls(torch.cat([state.values for state in states]))

    @property
    def nbytes(self) -> int:
        return self.values.nbytes


@dataclass
class Call:
    pairs: list[tuple[float, float]]
    images: int


class FakeModel(nn.Module):
    """Vectors come from the inputs as they are; match logits are integers, so that no order of work can change them."""

    def __init__(self, fused_image_tokens: int = 0) -> None:
        super().__init__()
        self.fused_image_tokens = fused_image_tokens
        self.dropout = nn.Dropout(0.5)
        self.frozen = nn.Linear(1, 1)
        self.calls: list[Call] = []
        self.alive: weakref.WeakSet[Vectors] = weakref.WeakSet()
        self.most_alive = 0
        self.encoded = 0

    def image_state(self, pixels: torch.Tensor) -> Vectors:
        state = Vectors(self.dropout(pixels.flatten(1)[:, :WIDTH]))
        self.alive.add(state)
        self.most_alive = max(self.most_alive, sum(len(one) for one in self.alive))
        self.encoded += len(state)
        return state

    def text_state(self, texts: Texts) -> Vectors:
        return Vectors(texts.input_ids[:, :WIDTH].float())

    def embed_image(self, state: Vectors) -> dict[str, torch.Tensor]:
        return {"main": nn.functional.normalize(state.values, dim=1)}

    embed_text = embed_image

    def fuse(self, texts: Vectors, images: Vectors, text_index: torch.Tensor, image_index: torch.Tensor) -> Joint:
        assert not torch.is_grad_enabled()
        rows = torch.cat([texts.values[text_index], images.values[image_index]], dim=1)
        self.calls.append(Call([tuple(row) for row in rows.tolist()], len(images)))
        return Joint(pooled=rows, hidden=None)

    def temperature(self) -> torch.Tensor:
        return torch.tensor(0.05)

    def match_logits(self, joint: Joint) -> torch.Tensor:
        text, image = joint.pooled.split(WIDTH, dim=1)
        logit = (text * image.roll(1, dims=1)).sum(dim=1) % 17 - 8
        return torch.stack([-logit, logit], dim=1)


@dataclass(frozen=True)
class Case:
    pixels: torch.Tensor
    texts: Texts
    owner: torch.Tensor

    def batches(self, size: int = 3) -> list[torch.Tensor]:
        return list(self.pixels.split(size))


def make_case(images: int = 7, captions: int = 2, seed: int = 0) -> Case:
    random = torch.Generator().manual_seed(seed)
    pixels = torch.randint(-9, 10, (images, 3, 2, 2), generator=random).float()
    pixels[:, 0, 0, 0] = torch.arange(images) + 1  # no two alike, none zero
    owner = torch.arange(images).repeat_interleave(captions)
    ids = torch.randint(1, 20, (len(owner), 9), generator=random)
    lengths = torch.randint(WIDTH, 10, (len(owner), 1), generator=random)
    return Case(pixels, Texts(ids, torch.arange(9)[None] < lengths), owner)


def brute_force(case: Case, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Score tables of the procedure as the paper tells it: every pair alone, candidates by a plain sort."""
    model = FakeModel().eval()
    images = model.image_state(case.pixels)
    texts = model.text_state(case.texts)
    cosine = nn.functional.normalize(images.values, dim=1) @ nn.functional.normalize(texts.values, dim=1).T
    tables = torch.full_like(cosine, UNSELECTED), torch.full_like(cosine.T, UNSELECTED)
    for table, similarity, flip in ((tables[0], cosine, False), (tables[1], cosine.T, True)):
        for query, row in enumerate(similarity.tolist()):
            for candidate in sorted(range(len(row)), key=lambda c: (-row[c], c))[:k]:
                image, text = (candidate, query) if flip else (query, candidate)
                pair = Joint(torch.cat([texts.values[text], images.values[image]])[None], None)
                table[query, candidate] = model.match_logits(pair)[0, 1]
    return tables


def two_stage(
    case: Case, k: int, budget: int, batch: int, model: FakeModel | None = None, temperature: float | None = None
):
    model = (model or FakeModel()).eval()
    texts = model.text_state(case.texts)
    images = [model.image_state(pixels) for pixels in case.batches(batch)]
    to_text, to_image = CosineIndex(texts.values), CosineIndex(Vectors.cat(images).values)
    lengths = case.texts.attention_mask.sum(1)
    found = to_text.search(to_image.vectors, k), to_image.search(to_text.vectors, k)
    return rerank(model, texts, lengths, images, *found, tokens_per_call=budget, temperature=temperature)


@given(st.integers(0, 99), st.integers(1, 20), st.integers(1, 200), st.integers(1, 8))
@settings(max_examples=40, deadline=None)
def test_reranking_gives_the_scores_of_every_pair_alone(seed: int, k: int, budget: int, batch: int) -> None:
    case = make_case(seed=seed)
    to_text, to_image = two_stage(case, k, budget, batch)
    expected = brute_force(case, k)
    assert to_text.dense(len(case.owner)).equal(expected[0])
    assert to_image.dense(len(case.pixels)).equal(expected[1])


def test_the_sum_adds_similarity_by_temperature_to_the_log_odds_and_orders_by_it() -> None:
    case = make_case()
    for alone, both in zip(two_stage(case, 5, 100, 3), two_stage(case, 5, 100, 3, temperature=0.05), strict=True):
        assert torch.equal(both.candidates, alone.candidates)
        torch.testing.assert_close(both.match, 2 * alone.match + both.similarity / 0.05)  # the fake's logits are ∓ x
        assert torch.equal(both.match, both.log_odds)
        ordered = both.ordered()
        assert (ordered.match.diff(dim=1) <= 0).all()
        assert not torch.equal(ordered.candidates, alone.ordered().candidates)


def test_more_candidates_asked_for_than_there_are_means_all_of_them() -> None:
    case = make_case()
    to_text, to_image = two_stage(case, k=1000, budget=100, batch=3)
    assert to_text.candidates.shape == (7, 14)
    assert to_image.candidates.shape == (14, 7)
    assert (to_text.dense(14) != UNSELECTED).all()


def test_a_pair_that_both_directions_want_is_fused_once() -> None:
    model = FakeModel()
    to_text, to_image = two_stage(make_case(), k=4, budget=60, batch=3, model=model)
    fused = [pair for call in model.calls for pair in call.pairs]
    wanted = {(i, t) for i, row in enumerate(to_text.candidates.tolist()) for t in row}
    wanted |= {(i, t) for t, row in enumerate(to_image.candidates.tolist()) for i in row}
    assert len(fused) == len(set(fused)) == len(wanted)


def test_all_pairs_of_an_image_share_one_call_when_the_budget_allows() -> None:
    model = FakeModel()
    two_stage(make_case(), k=1000, budget=10_000, batch=3, model=model)
    assert [call.images for call in model.calls] == [3, 3, 1]


def test_an_image_that_joins_each_of_its_pairs_counts_as_its_rows() -> None:
    """A pair has 4 to 9 text tokens; three pairs of 44 begin within 100 rows, four do not."""
    attended, joining = FakeModel(), FakeModel(fused_image_tokens=40)
    for model in (attended, joining):
        two_stage(make_case(), k=1000, budget=100, batch=1, model=model)
    assert max(len(call.pairs) for call in joining.calls) <= 3
    assert max(len(call.pairs) for call in attended.calls) > 10


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), min_size=1, max_size=40), st.integers(1, 60))
@settings(max_examples=80, deadline=None)
def test_calls_hold_each_pair_once_and_keep_to_the_budget(pairs: list[tuple[int, int]], budget: int) -> None:
    image, tokens = torch.tensor(sorted(pairs)).T
    calls = plan_calls(image, tokens, budget)
    assert torch.cat(calls).sort().values.tolist() == list(range(len(pairs)))
    for call in calls:
        of_image = [tokens[call][image[call] == one].sum() for one in image[call].unique()]
        padded = len(of_image) * max(of_image)
        # One image alone may pass the budget by less than its last text.
        assert padded <= budget or (len(of_image) == 1 and padded < budget + tokens[call].max())


@given(st.lists(st.lists(st.integers(0, 2), min_size=6, max_size=6), min_size=1, max_size=4), st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_top_k_of_ties_takes_the_lower_number(rows: list[list[int]], k: int) -> None:
    found = top_k(torch.tensor(rows).float(), k)
    expected = [sorted(range(6), key=lambda c: (-row[c], c))[:k] for row in rows]
    assert found.indices.tolist() == expected
    assert found.scores.tolist() == [[row[c] for c in order] for row, order in zip(rows, expected, strict=True)]


def test_an_index_finds_the_same_in_blocks_of_any_size(monkeypatch) -> None:
    random = torch.Generator().manual_seed(0)
    index = CosineIndex(torch.randn(50, 8, generator=random))
    queries = torch.randn(20, 8, generator=random)
    expected = index.search(queries, 7).indices
    monkeypatch.setattr("diptych.search.index.BLOCK", 150)
    assert index.search(queries, 7).indices.equal(expected)
    assert index.search(queries[:0], 7).indices.shape == (0, 7)


def test_vectors_that_are_not_finite_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="candidate 1 is not finite"):
        CosineIndex(torch.tensor([[1.0, 0.0], [torch.nan, 0.0]]))


# --------------------------------------------------------------------------- evaluation

CONFIG = EvaluationConfig(rerank=4, batch_size=5, bootstrap=200, tokens_per_call=50)


def evaluated(case: Case, config: EvaluationConfig = CONFIG, model: FakeModel | None = None, **options):
    return evaluate_retrieval(model or FakeModel(), case.batches(), case.texts, case.owner, config, **options)


def test_recalls_are_those_of_the_brute_force_tables() -> None:
    case = make_case(images=30)
    result = evaluated(case, replace(CONFIG, rerank=12)).to_json()
    relevant = case.owner[None] == torch.arange(30)[:, None]
    for direction, table, right in zip(DIRECTIONS, brute_force(case, 12), (relevant, relevant.T), strict=True):
        # At and above k = 12 candidates all ranks are past 10, where the tables know no order.
        expected = {k: recall(retrieval_ranks(table, right), k) for k in (1, 5, 10)}
        assert {k: result[f"{direction}.recall@{k}"] for k in expected} == pytest.approx(expected)
        for k in expected:
            low, high = result[f"{direction}.recall@{k}.interval"]
            assert low <= expected[k] <= high


def test_the_gain_is_the_difference_of_the_two_stages() -> None:
    result = evaluated(make_case(images=30))
    stages = [
        (one.recall[1].value - one.contrastive_recall[1].value) for one in (result.image_to_text, result.text_to_image)
    ]
    assert result.rerank_gain.value == pytest.approx(sum(stages) / 2)
    assert result.rerank_gain.interval.low <= result.rerank_gain.value <= result.rerank_gain.interval.high


def test_a_query_whose_answer_is_no_candidate_keeps_its_first_rank() -> None:
    result = evaluated(make_case(images=30), replace(CONFIG, rerank=2))
    for one in (result.image_to_text, result.text_to_image):
        unreached = one.contrastive_ranks >= 2
        assert unreached.any()
        assert one.ranks[unreached].equal(one.contrastive_ranks[unreached])
        assert (one.ranks[one.contrastive_ranks < 2] < 2).all()


def test_without_candidates_to_rerank_nothing_is_fused_or_kept_and_similarity_decides() -> None:
    case, model = make_case(images=12), FakeModel()
    alone = evaluated(case, replace(CONFIG, rerank=0), model)
    assert model.calls == []
    assert (model.encoded, model.most_alive) == (12, 6)
    both = evaluated(case)
    for direction in DIRECTIONS:
        one, other = getattr(alone, direction), getattr(both, direction)
        assert one.recall == one.contrastive_recall == other.contrastive_recall
        assert one.ranks.equal(other.contrastive_ranks)
        assert one.reranked.ordered().candidates[:, :4].equal(other.reranked.candidates)
    assert alone.rerank_gain is None
    assert {name for name in both.to_json() if name not in alone.to_json()} == {
        "rerank_gain.recall@1", "rerank_gain.interval", *(f"{direction}.candidates" for direction in DIRECTIONS)
    }  # fmt: skip


def test_pictures_that_are_seen_once_may_come_from_a_generator() -> None:
    case = make_case()
    once = evaluate_retrieval(
        FakeModel(), (one for one in case.batches()), case.texts, case.owner, replace(CONFIG, rerank=0)
    )
    assert once.to_json() == evaluated(case, replace(CONFIG, rerank=0)).to_json()


@pytest.mark.parametrize("change", [{"batch_size": 1}, {"tokens_per_call": 1}, {"keep_bytes": 0}])
def test_how_the_work_is_cut_never_changes_a_result(change: dict[str, int]) -> None:
    case = make_case(images=12)
    assert evaluated(case, replace(CONFIG, **change)).to_json() == evaluated(case).to_json()


def test_pictures_that_do_not_fit_are_encoded_again_and_never_held_together() -> None:
    case = make_case(images=12)
    streaming, keeping = FakeModel(), FakeModel()
    evaluated(case, replace(CONFIG, keep_bytes=4 * 4 * WIDTH), streaming)
    evaluated(case, CONFIG, keeping)
    assert (streaming.encoded, keeping.encoded) == (24, 12)
    # Three fit; a batch of three comes beside them, and the next one is made before the last is let go.
    assert streaming.most_alive <= 6
    assert keeping.most_alive == 12


def test_every_module_is_afterwards_in_the_mode_it_was_in() -> None:
    model = FakeModel().train()
    model.frozen.eval()
    evaluated(make_case(), model=model)
    assert (model.training, model.dropout.training, model.frozen.training) == (True, True, False)
    broken = replace(make_case(), pixels=torch.full((7, 3, 2, 2), torch.nan))
    with pytest.raises(ValueError, match="not finite"):
        evaluated(broken, model=model)
    assert (model.training, model.dropout.training, model.frozen.training) == (True, True, False)


def test_validation_sees_the_first_stage_of_the_evaluation() -> None:
    case = make_case(images=20)
    quick = contrastive_recall(FakeModel().train(), case.batches(), case.texts, case.owner, batch_size=3)
    full = evaluated(case).to_json()
    assert {k: v for k, v in quick.items() if "@" in k} == pytest.approx(
        {f"{d}.recall@{k}": full[f"contrastive.{d}.recall@{k}"] for d in DIRECTIONS for k in (1, 5, 10)}
    )


def test_progress_is_told_for_every_stage() -> None:
    told: list[tuple[str, int, int | None]] = []
    evaluated(make_case(), on_progress=lambda *news: told.append(news))
    assert {stage: (done, total) for stage, done, total in told} == {
        "texts": (14, 14),
        "pictures": (7, None),
        "re-ranking": (7, 7),
    }


def test_what_cannot_be_evaluated_is_said_in_the_users_words() -> None:
    case = make_case()
    with pytest.raises(ValueError, match="not a generator"):
        evaluate_retrieval(FakeModel(), iter(case.batches()), case.texts, case.owner, CONFIG)
    with pytest.raises(ValueError, match=r"1 of 7 pictures have no text \(picture 6"):
        evaluated(replace(case, owner=case.owner.clamp(max=5)))
    with pytest.raises(ValueError, match="one of the 7 pictures for each of the 14 texts"):
        evaluated(replace(case, owner=case.owner + 1))
    with pytest.raises(ValueError, match="no picture"):
        evaluate_retrieval(FakeModel(), [], case.texts, case.owner, CONFIG)


# --------------------------------------------------------------------------- the real model


def real(system: str) -> Albef | Vlmo:
    torch.manual_seed(0)
    model = Albef(ALBEF) if system == "albef" else Vlmo(VLMO)
    for weight in model.parameters():  # far from the start, so that scores differ visibly
        torch.nn.init.normal_(weight, std=0.3) if weight.dim() > 1 else None
    return model


both = pytest.mark.parametrize("system", ["albef", "vlmo"])
ALBEF = AlbefConfig(
    vision=VisionConfig(image_size=16, patch_size=8, width=24, depth=2, heads=2),
    text=TextConfig(vocab_size=20, width=24, layers=4, fusion_start=2, heads=2, intermediate=48, max_positions=12),
    embed_dim=8,
)
VLMO = VlmoConfig(
    image_size=16, patch_size=8, width=24, depth=4, heads=2, fusion_start=2, max_positions=12, vocab_size=20
)


@both
def test_a_real_model_scores_the_same_pairs_the_same_in_any_cut(system: str) -> None:
    case = make_case(images=9)
    pixels = torch.randn(9, 3, 16, 16, generator=torch.Generator().manual_seed(1)).split(4)
    model = real(system).train()  # dropout would show
    cuts = [CONFIG, replace(CONFIG, batch_size=1, tokens_per_call=1, keep_bytes=0), replace(CONFIG, batch_size=99)]
    results = [evaluate_retrieval(model, pixels, case.texts, case.owner, cut) for cut in cuts]
    for one in results[1:]:
        for direction in DIRECTIONS:
            first, other = getattr(results[0], direction).reranked, getattr(one, direction).reranked
            assert other.candidates.equal(first.candidates)
            torch.testing.assert_close(other.match, first.match, rtol=1e-4, atol=1e-4)
    assert results[0].image_to_text.reranked.match.std() > 0.1


@both
def test_pairs_of_the_ranking_score_as_they_do_alone(system: str) -> None:
    case = make_case(images=5)
    pixels = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    model = real(system).eval()
    scored = evaluate_retrieval(model, [pixels], case.texts, case.owner, replace(CONFIG, rerank=3)).text_to_image
    with torch.no_grad():
        for text, row in enumerate(scored.reranked.candidates.tolist()):
            length = int(case.texts.attention_mask[text].sum())
            alone = Texts(case.texts.input_ids[[text], :length], case.texts.attention_mask[[text], :length])
            zero = torch.zeros(1, dtype=torch.long)
            for place, image in enumerate(row):
                states = model.text_state(alone), model.image_state(pixels[[image]])
                logit = model.match_logits(model.fuse(*states, zero, zero))[0, 1]
                torch.testing.assert_close(scored.reranked.match[text, place], logit, rtol=1e-4, atol=1e-4)


def test_what_vlmo_keeps_of_a_picture_is_its_patches_and_each_picture_is_embedded_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The transformer runs over a picture once for its vector, then only within pairs."""
    case, model = make_case(images=6), real("vlmo").eval()
    pixels = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1)).split(4)
    rows: dict[str, int] = {"image_state": 0, "embed_image": 0}

    def counting(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(given: Any) -> Any:
            rows[name] += len(given)
            return call(given)

        return counted

    for name in rows:
        monkeypatch.setattr(model, name, counting(name, getattr(model, name)))
    evaluate_retrieval(model, pixels, case.texts, case.owner, CONFIG)
    assert rows == {"image_state": 6, "embed_image": 6}
    evaluate_retrieval(model, pixels, case.texts, case.owner, replace(CONFIG, keep_bytes=0))
    assert rows == {"image_state": 6 + 12, "embed_image": 6 + 6}
