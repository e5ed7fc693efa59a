"""What others make of the same initial weights, rows and number of images: the sides ``recipes.py`` compares with.

Each takes a controller that is set up (its model is changed in place) and the rows; evaluation is the caller's.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F


def image_features(controller: Any, paths: Sequence[Any]) -> torch.Tensor:
    """What the frozen image tower hands to its projection, ``[n, width]``."""
    from domainclip.models.projections import projection_inputs, tower_projection

    engine, encoder = controller.engine(), controller.model
    encoder.eval()
    projection = tower_projection(encoder, "image")
    parts = []
    for start in range(0, len(paths), 64):
        pixels = engine.spec.normalise(engine.pixels(list(paths[start : start + 64])).to(engine.device))
        parts.append(projection_inputs(projection, encoder.encode_image, pixels).features.cpu())
    return torch.cat(parts)


def linear_probe(controller: Any, train: Sequence[Any], test: Sequence[Any]) -> dict[str, Any]:
    """Logistic regression on features, as they are or standardised; that and its strength are chosen by shuffled
    cross-validation on the training rows (folds in the order of the rows choose far too weak ones)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, recall_score
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    labels = [pair.label for pair in train]
    folds = max(2, min(5, min(labels.count(label) for label in set(labels))))
    probe = GridSearchCV(
        Pipeline([("scale", StandardScaler()), ("fit", LogisticRegression(max_iter=1000))]),
        [
            {"scale": [StandardScaler()], "fit__C": [1e-4, 1e-3, 1e-2, 1e-1, 1.0]},
            {"scale": ["passthrough"], "fit__C": [1e-2, 1e-1, 1.0, 1e1, 1e2]},
        ],
        cv=StratifiedKFold(folds, shuffle=True, random_state=0),
    )
    probe.fit(image_features(controller, [pair.image_path for pair in train]).numpy(), labels)
    predicted = probe.predict(image_features(controller, [pair.image_path for pair in test]).numpy())
    truth = [pair.label for pair in test]
    return {
        "acc1": float(accuracy_score(truth, predicted)),
        "mean_per_class_recall": float(recall_score(truth, predicted, average="macro", zero_division=0.0)),
        "C": probe.best_params_["fit__C"],
        "standardised": probe.best_params_["scale"] != "passthrough",
    }


def _rates(controller: Any, recipe: Any) -> list[dict[str, Any]]:
    """Our own rates for the towers: what is compared is not who guessed a better one."""
    rates = {"image": recipe.image_learning_rate, "text": recipe.text_learning_rate, "scale": recipe.learning_rate}
    groups: dict[str, list[torch.nn.Parameter]] = {}
    for tower, _, parameter in controller.model.named_tower_parameters():
        groups.setdefault(tower, []).append(parameter)
    return [{"params": members, "lr": rates[tower]} for tower, members in groups.items()]


def _schedule(optimizer: torch.optim.Optimizer, steps: int) -> Any:
    from transformers import get_cosine_schedule_with_warmup

    return get_cosine_schedule_with_warmup(optimizer, math.ceil(steps / 10), steps)


def plain_loop(
    controller: Any, train: Sequence[Any], recipe: Any, steps: int, batch: int, seed: int, *, multi_positive: bool
) -> None:
    """A loop as one writes it with ``transformers``: its processor's images, shuffled batches, AdamW, the model's own
    contrastive loss, or (``multi_positive``) one whose targets are all texts of the same caption."""
    model, processor = controller.model.model, controller.model.processor
    pixels = controller.engine().pixels([pair.image_path for pair in train])
    spec = controller.engine().spec
    captions = [pair.caption for pair in train]
    tokens = processor.token_ids(captions, min(77, controller.model.text_length))
    distinct = {caption: index for index, caption in enumerate(dict.fromkeys(captions))}
    groups = torch.tensor([distinct[caption] for caption in captions])
    optimizer = torch.optim.AdamW(_rates(controller, recipe), weight_decay=recipe.weight_decay)
    schedule = _schedule(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model.train()
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < batch:
            order = torch.randperm(len(train), generator=generator)
        rows, order = order[:batch], order[batch:]
        ids, mask = processor.pad([list(tokens[row]) for row in rows], max(len(tokens[row]) for row in rows))
        found = model(
            input_ids=ids,
            attention_mask=mask,
            pixel_values=spec.normalise(pixels[rows]),
            return_loss=not multi_positive,
        )
        loss = found.loss
        if multi_positive:
            equal = (groups[rows][:, None] == groups[rows][None]).float()
            target = equal / equal.sum(1, keepdim=True)
            loss = (
                F.cross_entropy(found.logits_per_image, target) + F.cross_entropy(found.logits_per_text, target)
            ) / 2
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


def sentence_transformers_loop(
    controller: Any, train: Sequence[Any], recipe: Any, steps: int, batch: int, seed: int, folder: str
) -> dict[str, Any]:
    """``SentenceTransformerTrainer`` with the symmetric ranking loss and no text twice in a batch, as its documentation
    advises for pairs; as many images as ``steps`` of ``batch``."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers.base.modules.input_module import InputModule
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesSymmetricRankingLoss
    from sentence_transformers.sentence_transformer.training_args import (
        BatchSamplers,
        SentenceTransformerTrainingArguments,
    )

    encoder, processor = controller.model, controller.model.processor
    pixels, spec = controller.engine().pixels([pair.image_path for pair in train]), controller.engine().spec
    length = min(77, encoder.text_length)

    class DualEncoderModule(InputModule):
        """Texts are texts; an image is ``#`` and the number of its row."""

        def __init__(self) -> None:
            super().__init__()
            self.model = encoder.model

        def preprocess(self, inputs: Sequence[str], **_: Any) -> dict[str, torch.Tensor]:
            if str(inputs[0]).startswith("#"):
                return {"pixel_values": spec.normalise(pixels[torch.tensor([int(text[1:]) for text in inputs])])}
            ids, mask = processor.pad([list(row) for row in processor.token_ids(list(inputs), length)], length)
            return {"input_ids": ids, "attention_mask": mask}

        def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
            if "pixel_values" in features:
                embeds = encoder.encode_image(features["pixel_values"])
            else:
                embeds = encoder.encode_text(features["input_ids"], features["attention_mask"])
            features["sentence_embedding"] = embeds
            return features

        def save(self, output_path: str, *_: Any, **__: Any) -> None:
            """Nothing of it is kept."""

    captions = [pair.caption for pair in train]
    size = min(batch, len(set(captions)))  # no text twice
    total = max(1, round(steps * batch / size))
    model = SentenceTransformer(modules=[DualEncoderModule()], device="cpu")
    arguments = SentenceTransformerTrainingArguments(
        output_dir=folder,
        max_steps=total,
        per_device_train_batch_size=size,
        batch_sampler=BatchSamplers.NO_DUPLICATES,
        warmup_steps=math.ceil(total / 10),
        lr_scheduler_type="cosine",
        seed=seed,
        save_strategy="no",
        report_to=[],
        logging_strategy="no",
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        use_cpu=True,
        disable_tqdm=True,
    )
    optimizer = torch.optim.AdamW(_rates(controller, recipe), weight_decay=recipe.weight_decay)
    random.seed(seed)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments,
        loss=MultipleNegativesSymmetricRankingLoss(model),
        train_dataset=Dataset.from_dict({"anchor": [f"#{row}" for row in range(len(train))], "positive": captions}),
        optimizers=(optimizer, _schedule(optimizer, total)),
    )
    trainer.train()
    encoder.eval()
    return {"batch": size, "steps": total}
