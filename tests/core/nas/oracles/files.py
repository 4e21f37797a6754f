"""Small files in the formats of the official benchmarks."""

import base64
import json
import struct
from collections import OrderedDict

import numpy as np

from core.data.tfrecord import masked_crc32c
from core.nas.spaces.nb101 import NB101, OPERATIONS, matrix_of
from core.nas.spaces.nb201 import NB201

CELLS_101 = ["1 ", "101 maxpool3x3", "110011 conv3x3-bn-relu,conv1x1-bn-relu", "111011 conv3x3-bn-relu,maxpool3x3"]


def frame(data: bytes) -> bytes:
    """One TFRecord."""
    head = struct.pack("<Q", len(data))
    return head + struct.pack("<I", masked_crc32c(head)) + data + struct.pack("<I", masked_crc32c(data))


def double(number: int, value: float) -> bytes:
    return bytes([number << 3 | 1]) + struct.pack("<d", value)


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def metrics(valid: float, test: float, seconds: float, params: int) -> bytes:
    """A ModelMetrics message with the evaluations at the start, half-way and at the end."""
    message = b""
    for share in (0.0, 0.5, 1.0):
        evaluation = double(1, 108 * share) + double(2, seconds * share) + double(3, 0.9 * share)
        evaluation += double(4, 0.1 + (valid - 0.1) * share) + double(5, 0.1 + (test - 0.1) * share)
        message += bytes([1 << 3 | 2]) + varint(len(evaluation)) + evaluation
    return message + bytes([2 << 3]) + varint(params) + double(3, seconds * 1.2)


def nb101_record(cell, run: int, epochs: int = 108) -> bytes:
    """As the official file has it: base64 with a line break after each 76 characters."""
    space = NB101()
    names = ["input", *(OPERATIONS[o] for o in cell.ops), "output"]
    bits = "".join(map(str, matrix_of(cell).flatten().tolist()))
    base = 0.8 + 0.01 * len(cell.ops)
    message = metrics(
        base + 0.002 * run, base - 0.01 + 0.002 * run, 1000.0 + run, int(space.size_features(cell)["params"])
    )
    row = [space.key(cell), epochs, bits, ",".join(names), base64.encodebytes(message).decode()]
    return frame(json.dumps(row).encode())


def nb101_file(path):
    """A TFRecord with four cells, three runs each."""
    space = NB101()
    cells = [space.parse(text) for text in CELLS_101]
    path.write_bytes(b"".join(nb101_record(cell, run) for run in range(3) for cell in cells))
    return path


def nb201_result(dataset: str, seed: int, arch: str, epochs: int, sets: list[str], accuracy: float) -> dict:
    last = range(epochs)
    keys = [f"{s}@{e}" for s in sets for e in last]
    return {
        "name": dataset,
        "net_state_dict": None,
        "train_acc1es": dict.fromkeys(last, 90.0),
        "train_acc5es": None,
        "train_losses": dict.fromkeys(last, 0.1),
        "train_times": OrderedDict((e, seed / 100) for e in last),
        "arch_config": {"channel": 16, "num_cells": 5, "arch_str": arch, "class_num": 10},
        "params": np.float64(0.802426),
        "flop": 113.95137,
        "seed": f"{seed:04d}",
        "epochs": epochs,
        "latency": [np.float64(0.0162)],
        "eval_names": sets,
        "eval_acc1es": {k: accuracy - epochs + 1 + int(k.split("@")[1]) for k in keys},
        "eval_times": dict.fromkeys(keys, 4.0),
        "eval_losses": dict.fromkeys(keys, 0.5),
    }


def nb201_file(path):
    """A file in the official .pth format: four cells, two seeds on each data set."""
    import torch

    space = NB201()
    cells = [space.parse(code) for code in ("421211", "334131", "000000", "111111")]
    sets = {"cifar10-valid": ["x-valid", "ori-test"], "cifar10": ["ori-test"]}
    sets |= {name: ["ori-test", "x-valid", "x-test"] for name in ("cifar100", "ImageNet16-120")}
    infos = {}
    for number, cell in enumerate(cells):
        record = {}
        for kind, epochs in (("less", 12), ("full", 200)):
            results = {
                (name, seed): nb201_result(name, seed, space.format(cell), epochs, names, 60 + number + seed / 1000)
                for name, names in sets.items()
                for seed in (777, 888)
            }
            record[kind] = {
                "arch_index": number,
                "arch_str": space.format(cell),
                "all_results": results,
                "dataset_seed": {name: [777, 888] for name in sets},
                "clear_net_done": True,
            }
        infos[number] = record
    data = {"meta_archs": [space.format(c) for c in cells], "arch2infos": infos, "evaluated_indexes": [0, 1, 2, 3]}
    torch.save(data, path)
    return path


def tiny_student(folder, rows=240) -> dict:
    """Arguments of a student oracle over a tiny encoder and a tiny sentiment task, both written to ``folder``."""
    import torch

    from tests import tiny_models

    model, task = folder / "tiny-encoder", folder / "tiny_task.yaml"
    if not task.exists():
        encoder = tiny_models.encoder()
        with torch.no_grad():  # fresh weights are so small that layers hardly matter
            for weight in encoder.backbone.encoder.parameters():
                weight.mul_(15 if weight.ndim == 2 else 1)
        encoder.backbone.save_pretrained(model)
        encoder.tokenizer.save_pretrained(model)
        rng = np.random.default_rng(0)
        good, bad = ("good", "great", "fine", "lovely", "fun"), ("bad", "terrible", "awful", "dull", "boring")
        lines = ["text,label"]
        for i in range(rows):
            words = list(rng.choice(tiny_models.WORDS[:2] + tiny_models.WORDS[4:6] + ["story", "music"], 6))
            words[int(rng.integers(6))] = str(rng.choice((bad, good)[i % 2]))
            lines.append(f"{' '.join(words)} {tiny_models.WORDS[i % 30].replace(',', '.')},{'np'[i % 2]}")
        (folder / "tiny.csv").write_text("\n".join(dict.fromkeys(lines)) + "\n")
        task.write_text(
            f"version: 1\nkind: single\nsource: {{path: {folder / 'tiny.csv'}}}\nlabels: ['n', 'p']\nmetric: accuracy\n"
            "splits: {validation: 0.2, test: 0.2}\n"
        )
    quick = {"unlabelled": 40, "labelled": 30, "epochs": 1, "max_length": 16, "head_shares": (0.5, 1.0)}
    return {"model": str(model), "task": str(task), "settings": quick}
