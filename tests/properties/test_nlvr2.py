"""Several images a text, NLVR2, text assignment: who sees which image, what is shared, what trains, what is drawn."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.models.albef import Albef, ImageState, TextState, repeat_fusion_layers
from diptych.schema import Nlvr2Config, TextAssignmentConfig
from diptych.tasks.nlvr2 import FIRST, NEITHER, SECOND, Assignment, AssignmentDraws, Nlvr2, TextAssignment
from diptych.types import Joint, Progress, TokenPositions
from tests import tiny
from tests.properties.test_albef import plain_text, same, text_layer

LENGTHS = (5, 9, 3, 7)
TEXT_INDEX = torch.tensor([0, 1, 1, 3, 2])
IMAGE_INDEX = torch.tensor([[2, 0, 1], [0, 2, 2], [2, 4, 0], [2, 2, 4], [4, 1, 2]])
"""Image 3 is in no row, image 2 is both first and second, in the fourth row twice."""
LISTED = TokenPositions(torch.tensor([4, 0, 1, 1, 3]), torch.tensor([2, 0, 8, 3, 6]))
LATER = Progress(step=3, epoch=2.0, seed=5)
"""After the momentum encoder has been let in."""


def pixels() -> Tensor:
    return tiny.uniform(5, 3, tiny.SIDE, tiny.SIDE, seed=3) * 2 - 1


@pytest.fixture(scope="module", params=[(*variant, times) for variant in tiny.VARIANTS for times in (2, 3)], ids=str)
def model(request: pytest.FixtureRequest) -> Albef:
    norm, stem, times = request.param
    return tiny.albef(norm=norm, stem=stem, images_per_text=times).requires_grad_(False)


@pytest.fixture(scope="module")
def texts(model: Albef) -> TextState:
    return model.text_state(tiny.texts(LENGTHS))


@pytest.fixture(scope="module")
def images(model: Albef) -> ImageState:
    return model.image_state(pixels())


def fuse(model: Albef, texts: TextState, images: ImageState, rows: object = None, **more: object) -> Joint:
    return model.fuse(texts, images, TEXT_INDEX, IMAGE_INDEX[:, : model.config.images_per_text], rows, **more)


# --------------------------------------------------------------------------- the repeated stack


def unshared(model: Albef) -> Albef:
    """A plain model whose many fusion layers hold their own copies of what the repeated ones share."""
    start, times = model.config.text.fusion_start, model.config.images_per_text
    text = replace(model.config.text, layers=len(model.text.layers))
    state = model.state_dict()
    for number in range(start, text.layers):
        first = number - (number - start) % times
        for part in ("weight", "bias"):
            state[f"text.layers.{number}.cross.kv.{part}"] = state[f"text.layers.{first}.cross.kv.{part}"]
    plain = Albef(replace(model.config, text=text, images_per_text=1)).eval().requires_grad_(False)
    plain.load_state_dict(state)
    return plain


def plain_fusion(plain: Albef, hidden: Tensor, images: list[Tensor]) -> tuple[Tensor, dict[int, Tensor]]:
    """One text's hidden states [L, D]; layer j looks at the tokens [T, Dv] of images[j % S]. Maps by layer."""
    maps: dict[int, Tensor] = {}
    start = plain.config.text.fusion_start
    for number in range(start, plain.config.text.layers):
        image = images[(number - start) % len(images)]
        hidden, probabilities = text_layer(plain.text.layers[number], hidden, image)
        assert probabilities is not None
        maps[number] = probabilities[:, :, 1:]
    return plain.text.fusion_norm(hidden), maps


def test_fusion_layers_look_at_the_images_in_turn_as_in_a_plain_implementation(
    model: Albef, texts: TextState, images: ImageState
) -> None:
    plain, times = unshared(model), model.config.images_per_text
    ids = tiny.texts(LENGTHS).input_ids
    expected = [
        plain_fusion(plain, plain_text(plain, ids[t, : LENGTHS[t]]), [images.tokens[i] for i in row[:times]])
        for t, row in zip(TEXT_INDEX, IMAGE_INDEX, strict=True)
    ]
    first = torch.stack([hidden[0] for hidden, _ in expected])
    numbers = range(model.config.text.fusion_start, len(model.text.layers))
    listed, everything = fuse(model, texts, images, LISTED), fuse(model, texts, images, "all")
    mapped = fuse(model, texts, images, maps=numbers)
    for joint in (fuse(model, texts, images), listed, everything, mapped):
        same(joint.pooled, first)
    same(listed.hidden, torch.stack([expected[p][0][r] for p, r in zip(LISTED.pair, LISTED.position, strict=True)]))
    assert everything.mask is not None
    same(everything.hidden[everything.mask], torch.cat([hidden for hidden, _ in expected]))
    assert set(mapped.maps) == set(numbers)
    for p, (_, maps) in enumerate(expected):
        for number, attention in maps.items():
            same(mapped.maps[number][p, :, : LENGTHS[TEXT_INDEX[p]]], attention)


def test_rows_alone_and_in_any_order_give_the_same(model: Albef, texts: TextState, images: ImageState) -> None:
    whole, index = fuse(model, texts, images).pooled, IMAGE_INDEX[:, : model.config.images_per_text]
    order = torch.tensor([3, 1, 0, 4, 2])
    same(model.fuse(texts, images, TEXT_INDEX[order], index[order]).pooled, whole[order])
    for p in range(len(TEXT_INDEX)):
        own = torch.arange(index.shape[1])[None]
        alone = model.fuse(texts[TEXT_INDEX[p : p + 1]], images[index[p]], torch.tensor([0]), own)
        same(alone.pooled[0], whole[p])


def test_keys_and_values_are_projected_once_an_image_for_all_layers_that_share(
    model: Albef, texts: TextState, images: ImageState
) -> None:
    projected: list[tuple[int, ...]] = []
    plain_layers = model.config.text.layers - model.config.text.fusion_start
    hooks = [
        part.register_forward_hook(lambda _, given, __: projected.append(tuple(given[0].shape)))
        for name, part in model.named_modules()
        if name.endswith("cross.kv")
    ]
    fuse(model, texts, images)
    for hook in hooks:
        hook.remove()
    assert len(hooks) == plain_layers
    assert projected == [tuple(images.tokens.shape)] * plain_layers


def test_a_shared_projection_gets_the_gradients_of_all_its_layers(model: Albef) -> None:
    both, plain = Albef(model.config).eval(), unshared(model)
    both.load_state_dict(model.state_dict())
    start, times = model.config.text.fusion_start, model.config.images_per_text
    image, words = both.image_state(pixels()), both.text_state(tiny.texts(LENGTHS))
    fuse(both, words, image).pooled.sin().sum().backward()
    parts = [plain.text.layers[start + turn].cross.kv.weight.requires_grad_() for turn in range(times)]
    rows = [
        plain_fusion(plain, words[t[None]].hidden.detach(), list(image.tokens.detach()[row[:times]]))[0][0]
        for t, row in zip(TEXT_INDEX, IMAGE_INDEX, strict=True)
    ]
    found = torch.autograd.grad(torch.stack(rows).sin().sum(), parts)
    assert all(bool(gradient.any()) for gradient in found)
    torch.testing.assert_close(both.text.layers[start].cross.kv.weight.grad, sum(found), rtol=1e-3, atol=1e-5)


def test_a_plain_model_starts_a_repeated_one_layer_by_layer(model: Albef) -> None:
    start, times = model.config.text.fusion_start, model.config.images_per_text
    plain = Albef(replace(model.config, images_per_text=1))
    repeated = Albef(model.config)
    repeated.load_state_dict(repeat_fusion_layers(plain.state_dict(), model.config))
    for number, layer in enumerate(repeated.text.layers):
        origin = plain.text.layers[number if number < start else start + (number - start) // times].state_dict()
        own = layer.state_dict()
        assert all(torch.equal(own[name], origin[name]) for name in own)
        shared = {"cross.kv.weight", "cross.kv.bias"} if number >= start and (number - start) % times else set()
        assert set(origin) - set(own) == shared
    others = {n: t for n, t in plain.state_dict().items() if not n.startswith("text.layers.")}
    assert all(torch.equal(repeated.state_dict()[name], tensor) for name, tensor in others.items())


def test_names_with_a_prefix_are_repeated_too_and_a_repeated_state_is_left_alone(model: Albef) -> None:
    plain = {
        f"momentum_encoder.{n}": t for n, t in Albef(replace(model.config, images_per_text=1)).state_dict().items()
    }
    repeated = repeat_fusion_layers(plain, model.config)
    assert set(repeated) == {f"momentum_encoder.{name}" for name in model.state_dict()}
    again = repeat_fusion_layers(repeated, model.config)
    assert set(again) == set(repeated)
    assert all(again[name] is tensor for name, tensor in repeated.items())


def test_one_image_a_text_may_be_given_as_a_table_of_one_column() -> None:
    plain = tiny.albef()
    texts, images = plain.text_state(tiny.texts(LENGTHS)), plain.image_state(pixels())
    column = IMAGE_INDEX[:, :1]
    same(
        plain.fuse(texts, images, TEXT_INDEX, column).pooled, plain.fuse(texts, images, TEXT_INDEX, column[:, 0]).pooled
    )


def test_another_number_of_images_is_refused_with_the_way_out(
    model: Albef, texts: TextState, images: ImageState
) -> None:
    times = model.config.images_per_text
    assert model.joint_width(times) == model.config.text.width
    message = rf"fuses a text with {times} images, not 1: build it with model\.images_per_text=1"
    with pytest.raises(ValueError, match=message):
        model.joint_width()
    for index in (IMAGE_INDEX[:, 0], IMAGE_INDEX[:, :1]):
        with pytest.raises(ValueError, match=message):
            model.fuse(texts, images, TEXT_INDEX, index)
    with pytest.raises(ValueError, match=r"have no cross-attention"):
        fuse(model, texts, images, maps=[len(model.text.layers)])


def test_no_image_a_text_is_refused() -> None:
    with pytest.raises(ValueError, match="images_per_text must be at least 1, not 0"):
        Albef(tiny.albef_config(images_per_text=0))


@pytest.mark.parametrize(("task", "config"), [(Nlvr2, Nlvr2Config()), (TextAssignment, TextAssignmentConfig())])
def test_a_model_for_one_image_is_refused(task: type, config: object) -> None:
    with pytest.raises(ValueError, match=r"1 image, not 2: build it with model\.images_per_text=2"):
        task(tiny.albef(), config)


# --------------------------------------------------------------------------- NLVR2


@pytest.mark.parametrize("system", tiny.MODELS, ids=str)
@pytest.mark.parametrize("kind", ["nlvr2", "text_assignment"])
def test_exactly_what_the_loss_reaches_trains(kind: str, system: dict[str, Any]) -> None:
    task = {"nlvr2": tiny.nlvr2, "text_assignment": tiny.text_assignment}[kind](model=system)
    batch = tiny.picture_pairs(tiny.batch())
    trainable = {name for name, weight in task.named_parameters() if weight.requires_grad}
    task(batch, LATER).total.backward()
    assert all((weight.grad is not None) == weight.requires_grad for weight in task.parameters())
    task.model.requires_grad_(True)
    task(batch, LATER).total.backward()
    reached = {name for name, weight in task.named_parameters() if weight.grad is not None and bool(weight.grad.any())}
    assert trainable == reached
    assert {"model.image_proj.weight", "model.text_proj.weight", "model.temp"}.isdisjoint(reached)


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_the_loss_is_the_labels_and_the_momentum_encoders_share(alpha: float) -> None:
    task, pairs = tiny.nlvr2(alpha=alpha), tiny.picture_pairs(tiny.batch())
    logits = task.logits(pairs).log_softmax(1)
    expected = (1 - alpha) * -logits[torch.arange(4), pairs.labels].mean()
    if alpha:
        expected = expected - alpha * (task.momentum_logits(pairs).softmax(1) * logits).sum(1).mean()
        assert not torch.allclose(task.momentum_logits(pairs), task.logits(pairs), atol=1e-3)
    else:
        assert task.momentum_encoder is None
        assert not [name for name in task.state_dict() if name.startswith("momentum_")]
    losses = task(pairs, LATER)
    same(losses.total, expected)
    half = task(pairs, replace(LATER, epoch=0.5))
    assert half.measures["alpha"].mean.item() == pytest.approx(alpha / 2)
    hits = (logits.argmax(1) == pairs.labels).float().mean().item()
    assert losses.measures["accuracy"].mean.item() == pytest.approx(hits)


def test_the_momentum_encoder_follows_once_a_step_and_is_never_trained() -> None:
    task = tiny.nlvr2(momentum=0.9)
    assert task.momentum_encoder is not None
    before = {name: weight.clone() for name, weight in task.state_dict().items()}
    task.before_step()
    assert {name for name, weight in task.state_dict().items() if not torch.equal(weight, before[name])} == {
        name for name in before if name.startswith("momentum_")
    }
    for name, old in before.items():
        if name.startswith("momentum_"):
            student = before[name.replace("momentum_head.", "head.").replace("momentum_encoder.", "model.")]
            torch.testing.assert_close(task.state_dict()[name], 0.9 * old + 0.1 * student)
    assert not any(w.requires_grad for part in (task.momentum_encoder, task.momentum_head) for w in part.parameters())
    assert not task.train().momentum_encoder.training
    assert tiny.nlvr2(momentum_encoder_dropout=True).train().momentum_encoder.training


@pytest.mark.parametrize("system", tiny.MODELS, ids=str)
def test_answers_depend_on_neither_padding_nor_batch_mates(system: dict[str, Any]) -> None:
    task = tiny.nlvr2(model=system).eval()
    pairs = tiny.picture_pairs(tiny.batch())
    answers = task.predict(pairs)
    same(answers.sum(1), torch.ones(4))
    same(task.predict(replace(pairs, texts=tiny.padded(pairs.texts, tiny.POSITIONS))), answers)
    for b in range(4):
        texts = replace(
            pairs.texts,
            input_ids=pairs.texts.input_ids[b : b + 1],
            attention_mask=pairs.texts.attention_mask[b : b + 1],
        )
        one = slice(b, b + 1)
        alone = replace(
            pairs, pixels=pairs.pixels[one], second_pixels=pairs.second_pixels[one], texts=texts,
            image_ids=pairs.image_ids[one], labels=pairs.labels[one],
        )  # fmt: skip
        same(task.predict(alone)[0], answers[b])


def test_the_order_of_the_two_pictures_counts() -> None:
    task, pairs = tiny.nlvr2().eval(), tiny.picture_pairs(tiny.batch())
    swapped = replace(pairs, pixels=pairs.second_pixels, second_pixels=pairs.pixels)
    assert (task.predict(swapped) - task.predict(pairs)).abs().max() > 1e-3


def test_batches_that_lack_a_second_picture_or_a_label_are_refused_in_words() -> None:
    task, batch = tiny.nlvr2(), tiny.batch()
    for given in (batch, tiny.labelled(batch)):
        with pytest.raises(ValueError, match="two pictures and a label"):
            task(given, LATER)
        with pytest.raises(ValueError, match="needs two pictures for each statement"):
            task.predict(given)


# --------------------------------------------------------------------------- text assignment


def test_draws_are_a_function_of_seed_step_and_micro_batch() -> None:
    task, batch = tiny.text_assignment(), tiny.batch((5, 9, 3, 7, 4, 6), range(6))
    images = task.model.image_state(batch.pixels)

    def drawn(progress: Progress) -> list[list[int]]:
        made = task.draw(images, batch, progress)
        return [*made.images.tolist(), made.labels.tolist()]

    torch.manual_seed(1)
    first = drawn(LATER)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert drawn(replace(LATER, epoch=9.0)) == first
    assert torch.equal(torch.get_rng_state(), state)
    for other in (replace(LATER, step=4), replace(LATER, seed=6)):
        assert drawn(other) != first


def test_a_recorded_assignment_stands_in_for_the_drawn_one() -> None:
    task, batch = tiny.text_assignment(), tiny.batch()
    made = task.draw(task.model.image_state(batch.pixels), batch, LATER)
    same(task(batch, LATER, made).total, task(batch, LATER).total)
    turned = Assignment(made.images.flip(1), torch.tensor([1, 0, 2])[made.labels])
    assert abs(task(batch, LATER, turned).total.item() - task(batch, LATER).total.item()) > 1e-4


def test_the_class_says_where_the_own_picture_is_and_the_classes_are_equally_often() -> None:
    size = 30_000
    draws = AssignmentDraws.make(size, torch.Generator().manual_seed(0))
    own = torch.arange(size)
    made = Assignment.of(draws.labels, torch.stack([(own + 1) % size, (own + 2) % size]))
    found = made.images == own[:, None]
    assert torch.equal(found[:, 0], made.labels == FIRST)
    assert torch.equal(found[:, 1], made.labels == SECOND)
    assert torch.equal(found.any(1), made.labels != NEITHER)
    assert torch.equal(made.images[:, 0] != made.images[:, 1], torch.ones(size, dtype=torch.bool))
    shares = torch.bincount(made.labels) / size
    assert (shares - 1 / 3).abs().max() < 0.011  # four standard deviations


def test_other_pictures_are_drawn_by_likeness_without_replacement() -> None:
    """Frequencies beside the exact probability of each ordered pair, p(i) · p(j) / (1 − p(i))."""
    task, size = tiny.text_assignment(temperature=0.2), 2_000
    batch = tiny.batch()
    features = task.model.embed_image(task.model.image_state(batch.pixels))["main"]
    weights = torch.exp(features @ features.T / 0.2).fill_diagonal_(0)
    weights = weights / weights.sum(1, keepdim=True)
    uniform = torch.rand(2, size * 4, generator=torch.Generator().manual_seed(1))
    images = task.model.image_state(batch.pixels)
    drawn = torch.stack([task.others(images, batch.image_ids, u) for u in uniform.view(2, size, 4).unbind(1)])
    assert drawn.shape == (size, 2, 4)
    for text in range(4):
        counts = torch.zeros(4, 4).index_put_(tuple(drawn[:, :, text].T), torch.ones(size), accumulate=True)
        p = weights[text]
        exact = p[:, None] * p[None] / (1 - p[:, None])
        exact[:, text] = exact[text] = 0
        exact.fill_diagonal_(0)
        assert (counts / size - exact).abs().max() < 4 * (0.25 / size) ** 0.5


def test_another_caption_of_the_same_picture_is_no_other_picture() -> None:
    batch, uniform = tiny.batch(ids=(10, 10, 12, 13)), tiny.uniform(200, 2, 4)
    drawn = {}
    for choice in (False, True):
        task = tiny.text_assignment(keep_false_negatives=choice)
        images = task.model.image_state(batch.pixels)
        found = torch.stack([task.others(images, batch.image_ids, u) for u in uniform])
        assert not (found == torch.arange(4)).any()
        assert not (found[:, 0] == found[:, 1]).any()
        drawn[choice] = set(found[:, :, 0].flatten().tolist())
    assert drawn == {False: {2, 3}, True: {1, 2, 3}}


@pytest.mark.parametrize("ids", [(10, 11, 11), (10, 10, 10, 11)])
def test_batches_of_fewer_than_three_pictures_are_refused_with_the_way_out(ids: tuple[int, ...]) -> None:
    batch, task = tiny.batch((5, 9, 3, 7)[: len(ids)], ids), tiny.text_assignment()
    with pytest.raises(ValueError, match=r"at least three different pictures, so choose a larger run\.batch_size"):
        task(batch, LATER)


def test_losses_do_not_depend_on_how_far_texts_are_padded() -> None:
    task, batch = tiny.text_assignment(), tiny.batch()
    wide = replace(batch, texts=tiny.padded(batch.texts, tiny.POSITIONS))
    same(task(wide, LATER).total, task(batch, LATER).total)


def test_the_loss_is_the_mean_cross_entropy_of_three_classes() -> None:
    task, batch = tiny.text_assignment(), tiny.batch()
    made = Assignment(torch.tensor([[0, 3], [2, 1], [0, 1], [3, 2]]), torch.tensor([0, 1, 2, 0]))
    images, texts = task.model.image_state(batch.pixels), task.model.text_state(batch.texts)
    scores = task.head(task.model.fuse(texts, images, torch.arange(4), made.images).pooled)
    assert scores.shape == (4, 3)
    same(task(batch, LATER, made).total, F.nll_loss(scores.log_softmax(1), made.labels))
