"""Three ways to classify the held-out digits: eager PyTorch, ONNX Runtime alone, and the service."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from checkpoints import load_checkpoint
from data import LabelledImages
from models import build_model
from numpy.typing import NDArray
from pixels import normalise
from timing import Contender

from fuseline import Client
from fuseline.serve.model_package import INPUT_NAME, OUTPUT_NAME, load_package

BATCH_ROWS = 32
IMAGES_IN_A_CALL = 640
"""Of the service: so many that the last ones, when fewer and fewer are under way, weigh little."""
LARGE_REQUESTS_UNDER_WAY = 4


def eager_contender(checkpoint_path: Path, data: LabelledImages) -> Contender:
    """The network that was trained, from its own definition, in FP32 and channels_last, its faster layout on a CPU."""
    checkpoint = load_checkpoint(checkpoint_path)
    recipe, mean, std = checkpoint["recipe"], checkpoint["mean"], checkpoint["std"]
    model = build_model(recipe["model"], width=recipe["width"], classes=len(checkpoint["labels"]))
    model.load_state_dict(checkpoint["state_dict"])
    model = model.eval().to(memory_format=torch.channels_last)

    def classify(positions: Sequence[int]) -> NDArray[np.int64]:
        images = normalise(data.held_out_images[list(positions)], mean, std)
        with torch.inference_mode():
            return model(images.contiguous(memory_format=torch.channels_last)).argmax(dim=1).numpy()

    return Contender("eager PyTorch FP32", classify, classify, BATCH_ROWS)


def onnx_contender(package_folder: Path, data: LabelledImages) -> Contender:
    """The exported FP32 graph in ONNX Runtime as it comes; fed uint8 pixels."""
    package = load_package(package_folder)
    artifact = package.find("onnx", "fp32")
    assert artifact is not None, "every package has an FP32 graph"
    session = onnxruntime.InferenceSession(package.read(artifact), providers=["CPUExecutionProvider"])
    pixels_nhwc = np.ascontiguousarray(data.held_out_images.permute(0, 2, 3, 1).numpy())

    def classify(positions: Sequence[int]) -> NDArray[np.int64]:
        (logits,) = session.run([OUTPUT_NAME], {INPUT_NAME: pixels_nhwc[list(positions)]})
        return np.argmax(logits, axis=1)

    return Contender("ONNX Runtime FP32", classify, classify, BATCH_ROWS)


def service_contenders(client: Client, pngs: Sequence[bytes], pool: ThreadPoolExecutor) -> tuple[Contender, Contender]:
    """The server fed PNG files: one in each request, and `BATCH_ROWS` in each.

    Of the first, as many requests are under way as `pool` has threads; of the second, `LARGE_REQUESTS_UNDER_WAY`.
    """

    def top1_of(position: int) -> int:
        return client.classify(pngs[position]).results[0].predictions[0].index

    def top1_of_several(positions: Sequence[int]) -> list[int]:
        answer = client.classify([pngs[position] for position in positions])
        return [result.predictions[0].index for result in answer.results]

    def classify_one(positions: Sequence[int]) -> NDArray[np.int64]:
        return np.array([top1_of(position) for position in positions])

    def classify_many(positions: Sequence[int]) -> NDArray[np.int64]:
        return np.array(list(pool.map(top1_of, positions)))

    def classify_in_large_requests(positions: Sequence[int]) -> NDArray[np.int64]:
        parts = [positions[start : start + BATCH_ROWS] for start in range(0, len(positions), BATCH_ROWS)]
        with ThreadPoolExecutor(LARGE_REQUESTS_UNDER_WAY) as few:
            return np.array([index for part in few.map(top1_of_several, parts) for index in part])

    return (
        Contender("Fuseline, 1 a request", classify_one, classify_many, IMAGES_IN_A_CALL),
        Contender(f"Fuseline, {BATCH_ROWS} a request", None, classify_in_large_requests, IMAGES_IN_A_CALL),
    )
