# SPDX-License-Identifier: Apache-2.0
"""Small tables of texts, and recipes about them, for tests of recipes."""

import random

import yaml

GOOD, BAD = ("good", "fine", "great"), ("bad", "poor", "dull")
FILLERS = ("the", "film", "was", "and", "it", "had", "a", "plot")
TINY = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}


def reviews(rows, seed=0):
    """Return rows with an ID, a text, a label that two of its words give away, and their number of words."""
    draw = random.Random(seed)
    made = []
    for number in range(rows):
        is_good = draw.random() < 0.5
        words = draw.choices(FILLERS, k=draw.randint(4, 10)) + draw.choices(GOOD if is_good else BAD, k=2)
        draw.shuffle(words)
        made.append((f"r{number}", " ".join(words), "pos" if is_good else "neg", len(words)))
    return made


def write_table(path, rows, header=("ID", "text", "label", "words")):
    lines = [",".join(header), *(",".join(f'"{value}"' for value in row) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def recipe(tmp_path, rows=24, **blocks):
    """Return what a recipe says about a table of reviews; blocks are changed by name, and left out with None."""
    table = write_table(tmp_path / "reviews.csv", reviews(rows))
    said = {
        "input_info": {"input_name": "text", "input_type": "sequence"},
        "input_type_info": {"max_length": 8, "min_freq": 1},
        "model_config": {"model_type": "bert", "pool": "avg", "model_init_config": dict(TINY)},
        "output_info": {"output_name": "review"},
        "output_type_info": {"target_cat_columns": ["label"]},
        "data": {"source": str(table), "eval_size": 8},
        "ipu_config": {"layers_per_ipu": [1, 1]},
        "training": {
            "output_dir": str(tmp_path / "out"),
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "disable_tqdm": True,
        },
    }
    return {name: value for name, value in {**said, **blocks}.items() if value is not None}


def write(tmp_path, said, name="run.yaml"):
    path = tmp_path / name
    path.write_text(yaml.safe_dump(said, sort_keys=False), encoding="utf-8")
    return path
