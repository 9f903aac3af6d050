import json
from functools import cache

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from d3m_assets.datasets.labelled_images import LabelledImages
from d3m_assets.evaluation.metrics import recipe
from d3m_assets.evaluation.settings import StudentSettings


@cache
def _digits() -> tuple[LabelledImages, LabelledImages]:
    digits = load_digits()
    images = np.round(digits.images * 255 / 16).astype(np.uint8)[..., None]
    split = train_test_split(images, digits.target, test_size=500, stratify=digits.target, random_state=0)
    train_images, test_images, train_labels, test_labels = split
    return LabelledImages(train_images, train_labels), LabelledImages(test_images, test_labels, "test")


@pytest.fixture
def train_digits() -> LabelledImages:
    return _digits()[0]


@pytest.fixture
def test_digits() -> LabelledImages:
    return _digits()[1]


@pytest.fixture
def quick() -> StudentSettings:
    return StudentSettings(width=8, steps=60, batch_size=32, learning_rate=0.02, seeds=(0, 1))


def _counts(accuracy, images):
    right = round(accuracy * images)
    return [[0, 0, right], [0, 1, images - right], [1, 0, images - right], [1, 1, right]]


def student_rows(method, budget, accuracies, *, bytes_per_class=64.0, images=10, n_evaluated=500, **recipe_changes):
    settings = StudentSettings(**recipe_changes)
    return pd.DataFrame(
        {
            "method": method,
            "budget": budget,
            "labels": "hard",
            "architecture": settings.architecture,
            "augmentation": settings.augmentation,
            "distillation": 0,
            "seed": range(len(accuracies)),
            "accuracy": [float(a) for a in accuracies],
            "split": "test",
            "n_train_images": images,
            "images_per_class": images / 2,
            "bytes_per_class": float(bytes_per_class),
            "steps": settings.steps,
            "n_evaluated": n_evaluated,
            "class_accuracy": [[float(a), float(a)] for a in accuracies],
            "confusion": [_counts(float(a), n_evaluated // 2) for a in accuracies],
            "recipe": json.dumps(recipe(settings, image_size=16, channels=1), sort_keys=True),
        }
    )
