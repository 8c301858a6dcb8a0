"""ALBEF pre-training against the released code's numbers: `pretrain.*`, `trace.*`, `pos_embed`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diptych.checkpoints.convert import to_published
from diptych.losses.contrastive import itc_targets, soft_cross_entropy
from diptych.losses.masked_lm import MaskDraws, masked_lm_loss
from diptych.losses.matching import match_labels
from diptych.nn.embeddings import resize_positions
from diptych.pretrained.albef_names import PUBLISHED_PRETRAINING
from diptych.schema import ALBEF_AS_RELEASED, OptimConfig
from diptych.tasks.albef_pretraining import AlbefPretraining, AlbefTrace
from diptych.tasks.pretraining import Draws
from diptych.train.optim import build_optimizer
from diptych.types import Batch, Losses, Progress, Texts, TokenPositions
from tests.parity.golden import Golden, check_number, judged_alone
from tests.parity.pretraining import batch_of, build, draws_of
from tests.traces import traced


@pytest.fixture(scope="module")
def golden(golden_albef: Path) -> Golden:
    return Golden(golden_albef, "pretrain")


def step(task: AlbefPretraining, batch: Batch, draws: Draws, alpha: float) -> tuple[AlbefTrace, Losses]:
    task.before_step()
    return traced(task, batch, Progress(step=0, epoch=alpha), draws)  # alpha rises to 1 within the first epoch


ALPHAS = {"a04": 0.4, "a00": 0.0}


@pytest.fixture(scope="module", params=list(ALPHAS))
def case(request: pytest.FixtureRequest, golden: Golden) -> tuple[str, AlbefPretraining, AlbefTrace, Losses]:
    sizes = json.loads((golden.folder / "config.json").read_text())
    alpha = {**ALPHAS, "a04": sizes["alpha_of_case_a04"]}[request.param]
    task = build(golden.folder)
    made, losses = step(task, batch_of(golden), draws_of(golden), alpha)
    losses.total.backward()
    return request.param, task, made, losses


def test_features_are_the_released_ones(golden: Golden, case: tuple[str, AlbefPretraining, AlbefTrace, Losses]) -> None:
    name, task, made, _ = case
    batch, draws = batch_of(golden), draws_of(golden)
    length = batch.texts.input_ids.shape[1]
    for mark, model in (("", task.model), ("_m", task.momentum_encoder)):
        with torch.no_grad():
            images, texts = model.image_state(batch.pixels), model.text_state(batch.texts)
            golden.check(f"{name}.image_embeds{mark}", images.tokens)
            golden.check(f"{name}.text_embeds{mark}", texts.hidden.unflatten(0, (-1, length)))
            golden.check(f"{name}.image_feat{mark}", model.embed_image(images)["main"])
            golden.check(f"{name}.text_feat{mark}", model.embed_text(texts)["main"])
            masked = model.text_state(Texts(draws.masked_ids, batch.texts.attention_mask))
            here = torch.arange(len(batch))
            rows = model.fuse(masked, images, here, here, positions="all").hidden
            golden.check(f"{name}.mlm_logits{mark}", model.word_logits(rows))
            if not mark:
                golden.check(f"{name}.fused_pos", model.fuse(texts, images, here, here, positions="all").hidden)
                text_index, image_index = torch.cat([here, made.negatives[1]]), torch.cat([made.negatives[0], here])
                golden.check(
                    f"{name}.fused_neg", model.fuse(texts, images, text_index, image_index, positions="all").hidden
                )


def test_contrast_targets_and_weights_are_the_released_ones(
    golden: Golden, case: tuple[str, AlbefPretraining, AlbefTrace, Losses]
) -> None:
    name, _, made, _ = case
    contrast = made.similarities
    alpha = json.loads((golden.folder / "config.json").read_text())["alpha_of_case_a04"] if name == "a04" else 0.0
    golden.check(f"{name}.sim_i2t", contrast.image_to_text)
    golden.check(f"{name}.sim_t2i", contrast.text_to_image)
    golden.check(f"{name}.sim_i2t_m", contrast.momentum_image_to_text)
    golden.check(f"{name}.sim_t2i_m", contrast.momentum_text_to_image)
    image_targets = itc_targets(contrast.momentum_image_to_text, made.positives.float(), alpha)
    text_targets = itc_targets(contrast.momentum_text_to_image, made.positives.float(), alpha)
    golden.check(f"{name}.sim_i2t_targets", image_targets)
    golden.check(f"{name}.sim_t2i_targets", text_targets)
    golden.check(f"{name}.loss_i2t", soft_cross_entropy(contrast.image_to_text, image_targets).mean())
    golden.check(f"{name}.loss_t2i", soft_cross_entropy(contrast.text_to_image, text_targets).mean())
    size = len(made.positives)
    batch_only = [logits[:, :size].softmax(1) for logits in (contrast.text_to_image, contrast.image_to_text)]
    for key, ours, plain in zip(("t2i", "i2t"), made.negative_weights, batch_only, strict=True):
        golden.check(f"{name}.weights_{key}", ours)
        golden.check(f"{name}.weights_{key}", plain.fill_diagonal_(0))


def test_losses_are_the_released_ones(golden: Golden, case: tuple[str, AlbefPretraining, AlbefTrace, Losses]) -> None:
    name, _, made, losses = case
    golden.check(f"{name}.vl_output", made.match_logits)
    golden.check(f"{name}.itm_labels", match_labels(len(made.positives), torch.device("cpu")))
    for key, term in (("ita", "itc"), ("itm", "itm"), ("mlm", "mlm")):
        golden.check(f"{name}.loss_{key}", losses.terms[term][1].mean)
    golden.check(f"{name}.loss_total", losses.total)
    golden.check(f"{name}.loss_mlm_hard", masked_lm_loss(made.word_logits, made.labels).mean)
    soft = soft_cross_entropy(made.word_logits, made.momentum_word_logits.softmax(1))
    golden.check(f"{name}.loss_mlm_soft", soft.mean())


def published_gradients(task: AlbefPretraining) -> dict[str, Tensor]:
    gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in task.model.named_parameters()}
    return to_published({f"model.{name}": g for name, g in gradients.items()}, PUBLISHED_PRETRAINING)


def test_stored_gradients_are_the_released_ones(
    golden: Golden, case: tuple[str, AlbefPretraining, AlbefTrace, Losses]
) -> None:
    name, task, *_ = case
    gradients = published_gradients(task)
    for key in golden.keys(f"{name}.grad."):
        golden.check(key, gradients[key.removeprefix(f"{name}.grad.")])


@pytest.mark.parametrize("keep_padding", [True, False])
@pytest.mark.parametrize("term", ["mlm", "ita", "itm", "total"])
def test_gradient_norms_are_the_released_ones(golden: Golden, term: str, keep_padding: bool) -> None:
    sizes = json.loads((golden.folder / "config.json").read_text())
    task = build(golden.folder, keep_padding)
    _, losses = step(task, batch_of(golden), draws_of(golden), sizes["alpha_of_case_a04"])
    loss = losses.total if term == "total" else losses.terms[{"ita": "itc"}.get(term, term)][1].mean
    loss.backward()
    norms = {name: g.norm().item() for name, g in published_gradients(task).items()}
    stored = json.loads((golden.folder / "pretrain_gradnorms.json").read_text())[term]
    assert set(stored) <= set(norms)
    for name, norm in stored.items():
        check_number(f"{term}: {name}", norms[name], 0.0 if norm is None else norm, 2e-5)


def test_momentum_parameters_move_as_released(golden: Golden) -> None:
    task = build(golden.folder)
    task.before_step()
    published = to_published(
        {f"momentum_encoder.{n}": p for n, p in task.momentum_encoder.named_parameters()}, PUBLISHED_PRETRAINING
    )
    for key in golden.keys("a04.after."):
        if "queue" not in key:
            golden.check(key, published[key.removeprefix("a04.after.")])
    stored = json.loads((golden.folder / "pretrain_momentum_after.json").read_text())
    for name, (total, norm) in stored.items():
        check_number(name, published[name].double().sum().item(), total)
        check_number(name, published[name].double().norm().item(), norm)


def test_the_queue_takes_the_momentum_encoders_features_and_wraps(golden: Golden) -> None:
    task = build(golden.folder)
    for name, image in (("a04", "in.image"), ("second", "in2.image")):
        batch = batch_of(golden, image)
        sizes = json.loads((golden.folder / "config.json").read_text())
        _, losses = step(task, batch, draws_of(golden), sizes["alpha_of_case_a04"])
        task.after_step(losses.carry)
        golden.check(f"{name}.after.image_queue", task.queue.image.T)
        golden.check(f"{name}.after.text_queue", task.queue.text.T)
        golden.check(f"{name}.after.queue_ptr", task.queue.pointer[None])
        if name == "a04":
            for key in ("image_queue", "text_queue"):
                golden.check(f"a00.after.{key}", getattr(task.queue, key.split("_")[0]).T)
            golden.check("a00.after.queue_ptr", task.queue.pointer[None])
        else:
            for key, term in (("ita", "itc"), ("itm", "itm"), ("mlm", "mlm")):
                golden.check(f"second.loss_{key}", losses.terms[term][1].mean)


@pytest.mark.parametrize("case_name", ["clamp_hi", "clamp_lo"])
def test_the_temperature_is_clamped_before_use(golden: Golden, case_name: str) -> None:
    sizes = json.loads((golden.folder / "config.json").read_text())
    task = build(golden.folder)
    task.model.temp.data.copy_(golden[f"{case_name}.temp_in"])
    _, losses = step(task, batch_of(golden), draws_of(golden), sizes["alpha_of_case_a04"])
    golden.check(f"{case_name}.temp_out", task.model.temp)
    for key, term in (("ita", "itc"), ("itm", "itm"), ("mlm", "mlm")):
        golden.check(f"{case_name}.loss_{key}", losses.terms[term][1].mean)


@torch.no_grad()
def test_norm_epsilons_are_the_released_ones(golden: Golden) -> None:
    model = build(golden.folder).model
    batch = batch_of(golden)
    vision, words = model.vision.embedding, model.text.embedding
    for parameter in (vision.proj.weight, vision.proj.bias, vision.cls_token, vision.positions):
        parameter.mul_(2**-10)
    golden.check("eps_probe.image_embeds", model.image_state(batch.pixels).tokens)
    for table in (words.words, words.positions, words.types):
        table.weight.mul_(2**-10)
    texts = model.text_state(batch.texts)
    golden.check("eps_probe.text_embeds", texts.hidden.unflatten(0, batch.texts.input_ids.shape))
    for parameter in model.word_head.dense.parameters():
        parameter.mul_(2**-10)
    here = torch.arange(len(batch))
    rows = model.fuse(texts, model.image_state(batch.pixels), here, here, positions="all").hidden
    golden.check("eps_probe.mlm_logits", model.word_logits(rows))


def test_masking_follows_the_recorded_draws(golden: Golden) -> None:
    task, batch = build(golden.folder), batch_of(golden)
    names = ("draw_select", "draw_replace", "draw_random", "random_words")
    select, replace, randomise, words = (golden[f"maskfn.{name}"] for name in names)
    masked, labels = task.mask(batch.texts, MaskDraws(select.bool(), replace.bool(), randomise.bool(), words))
    golden.check("in.masked_input_ids", masked)
    golden.check("in.mlm_labels", labels)


@torch.no_grad()
def test_valid_rows_do_not_need_padding(golden: Golden) -> None:
    """What the padded code gives at real rows, the packed one gives too."""
    task, batch = build(golden.folder, keep_padding=False), batch_of(golden)
    task.before_step()
    mask = batch.texts.attention_mask
    for mark, model in (("", task.model), ("_m", task.momentum_encoder)):
        texts = model.text_state(batch.texts)
        key = f"a04.text_embeds{mark}"
        assert (texts.hidden - golden[key][mask]).abs().max() <= golden.limit(key)
    here = torch.arange(len(batch))
    joint = task.model.fuse(task.model.text_state(batch.texts), task.model.image_state(batch.pixels), here, here, "all")
    stored = golden["a04.fused_pos"]
    assert torch.equal(joint.mask, mask[:, : joint.mask.shape[1]])
    assert (joint.hidden[joint.mask] - stored[mask]).abs().max() <= golden.limit("a04.fused_pos")


def test_every_stored_tensor_of_pretraining_is_compared(golden: Golden, golden_albef: Path) -> None:
    """Judges the comparisons above; on its own it has none. Spread over processes, they are run again in one."""
    if judged_alone(__file__, golden_albef, golden):
        return
    if len(golden.used) < 50:
        pytest.skip("the comparisons above did not run")
    assert set(golden.tensors) - golden.used == set()


# --------------------------------------------------------------------------- traces


@pytest.mark.parametrize("keep_padding", [True, False])
def test_twenty_steps_of_training_end_where_the_released_code_ends(golden_albef: Path, keep_padding: bool) -> None:
    golden = Golden(golden_albef, "trace")
    info = json.loads((golden_albef / "trace_info.json").read_text())
    for run, settings in info["runs"].items():
        task = build(golden_albef, keep_padding)
        betas = tuple(info["optimizer"]["betas"])
        optim = OptimConfig(settings["lr"], settings["weight_decay"], betas, info["optimizer"]["eps"])
        optimizer = build_optimizer(task, optim, released=ALBEF_AS_RELEASED)
        losses = train(task, optimizer, golden, info["steps"], run)
        golden.check(f"{run}.losses", losses, within=2e-5 * golden.manifest[f"{run}.losses"]["scale"])
        state = to_published(comparable(task), PUBLISHED_PRETRAINING)
        unreliable = set(settings["unreliable"])
        for key in golden.keys(f"{run}.final."):
            name = key.removeprefix(f"{run}.final.")
            if name not in unreliable:
                golden.check(key, state[name], within=2e-5 * max(1.0, golden.manifest[key].get("scale", 1.0)))
        for name, (total, norm) in settings["param_sum_and_l2norm_after"].items():
            if name not in unreliable:
                count = state[name].numel()
                assert abs(state[name].double().sum().item() - total) <= 2e-5 * max(1.0, count**0.5), name
                check_number(name, state[name].double().norm().item(), norm, 2e-5)
    assert {key for key in golden.tensors if "final" in key or "losses" in key or "temp" in key} <= golden.used


def comparable(task: AlbefPretraining) -> dict[str, Tensor]:
    return {k: v for k, v in task.state_dict().items() if k not in ("queue.ids", "queue.filled")}


def train(task: AlbefPretraining, optimizer: torch.optim.Optimizer, golden: Golden, steps: int, run: str) -> Tensor:
    """The recorded steps; checks the temperature after each. Returns MLM, ITC and ITM losses [steps, 3]."""
    losses = []
    for s in range(steps):
        which = golden["in.batch_index"][s]
        texts = Texts(golden["in.input_ids"][which], golden["in.attention_mask"][which].bool())
        batch = Batch(golden["in.image"][which], texts, which)
        negatives = golden["in.neg_image_idx"][s], golden["in.neg_text_idx"][s]
        draws = Draws(
            golden["in.masked_input_ids"][s], golden["in.mlm_labels"][s], torch.zeros(2, len(which)), *negatives
        )
        _, made = step(task, batch, draws, golden["in.alpha"][s].item())
        optimizer.zero_grad()
        made.total.backward()
        optimizer.step()
        task.after_step(made.carry)
        losses.append(torch.stack([made.terms[name][1].mean.detach() for name in ("mlm", "itc", "itm")]))
        stored = golden[f"{run}.temp"][s].item()
        check_number(f"temperature after step {s}", task.model.temp.item(), stored, 1e-6)
    return torch.stack(losses)


def test_decay_groups_are_the_released_ones(golden_albef: Path) -> None:
    info = json.loads((golden_albef / "trace_info.json").read_text())
    task = build(golden_albef)
    groups = build_optimizer(task, OptimConfig(weight_decay=0.1), released=ALBEF_AS_RELEASED).param_groups
    names = {id(p): f"model.{n}" for n, p in task.model.named_parameters()}
    for decayed, stored in ((True, info["decay"]), (False, info["no_decay"])):
        ours = {names[id(p)]: p for g in groups if bool(g["weight_decay"]) == decayed for p in g["params"]}
        published = to_published(ours, [r for r in PUBLISHED_PRETRAINING if not hasattr(r, "of")])
        assert set(published) == set(stored)


# --------------------------------------------------------------------------- positions


def test_position_tables_are_resized_as_released(golden_albef: Path) -> None:
    golden = Golden(golden_albef, "pos_embed")
    table, side = golden["in.pos_embed"], lambda t: round((t.shape[1] - 1) ** 0.5)
    up = resize_positions(table, side(golden["out.up"]))
    golden.check("out.up", up)
    golden.check("out.down", resize_positions(golden["out.up"], side(golden["out.down"])))
    assert set(golden.tensors) == golden.used


def test_a_row_list_of_the_first_positions_is_the_pooled_vector(golden: Golden) -> None:
    task, batch = build(golden.folder, keep_padding=False), batch_of(golden)
    here = torch.arange(len(batch))
    texts, images = task.model.text_state(batch.texts), task.model.image_state(batch.pixels)
    joint = task.model.fuse(texts, images, here, here, TokenPositions(here, torch.zeros_like(here)))
    assert torch.allclose(joint.pooled, joint.hidden, atol=1e-6)
