"""Measure a run's best checkpoint on the test split, which no training looks at.

    python -m ml_project.evaluate                       # the newest run
    python -m ml_project.evaluate runs/topics/...       # this one

The result goes into the run's folder and into its MLflow run.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import runengine

ORDERS = {"unigram": 1, "5-gram": 5}  # the baselines: how long the runs of characters are that they count
PRIOR = 5.0  # characters
MOST_COUNTED = 5_000_000  # characters of the training, the last ones: a larger text would fill the memory
SAMPLES, PROMPT_LENGTH, LENGTH = 3, 40, 300  # of samples.txt: how many; in characters


def evaluate(run: runengine.Run) -> dict[str, float]:
    """`test/loss` of the run's best checkpoint in nats, `test/bits` a character, and those of two baselines.

    Writes `test_metrics.json`, `test_predictions.csv`, `bits_by_place.png` and `samples.txt`, which the model wrote.
    """
    import pandas as pd
    import torch

    from .plots import bits_by_place
    from .predict import generate, load
    from .prepare import to_text

    _, task, data = runengine.load(run)
    tested = runengine.evaluation_trainer().test(task, data, verbose=False)[0]
    metrics = {name: float(value) for name, value in tested.items()}

    vocabulary = runengine.read_data(run)["vocabulary"]
    train_text, test_text = (to_text(data.tokens(name).tolist(), vocabulary) for name in ("train", "test"))
    baselines = {name: ngram_bits(train_text, test_text, len(vocabulary), order) for name, order in ORDERS.items()}
    metrics["test/bits"] = metrics["test/loss"] / math.log(2)
    metrics |= {f"test/bits_{name}": bits for name, bits in baselines.items()}
    bits_T = torch.cat(task.test_losses_BT).nanmean(dim=0).numpy() / math.log(2)
    run.save_table("test_predictions.csv", pd.DataFrame({"characters_seen": range(1, len(bits_T) + 1), "bits": bits_T}))
    run.save_figure("bits_by_place.png", bits_by_place(bits_T, baselines))
    model = load(str(run.folder))
    starts = [test_text[place:][:PROMPT_LENGTH] for place in range(0, len(test_text), len(test_text) // SAMPLES + 1)]
    samples = [f"{start} | {''.join(generate(model, start, LENGTH))}\n" for start in starts]
    runengine.atomic_write(run.folder / "samples.txt", "\n".join(samples))
    runengine.save_test_metrics(run, metrics)
    return metrics


def look(run: runengine.Run) -> None:
    """The page of `make look`: each window of the test text, with the bits a character that it took."""
    import pandas as pd
    import torch

    from .prepare import to_text

    _, task, data = runengine.load(run)
    runengine.evaluation_trainer().test(task, data, verbose=False)
    bits_NT = torch.cat(task.test_losses_BT) / math.log(2)
    vocabulary = runengine.read_data(run)["vocabulary"]
    tokens_NT = data.split("test").tensors[1]
    texts = [to_text(tokens_T[tokens_T >= 0].tolist(), vocabulary) for tokens_T in tokens_NT]
    place_N = bits_NT.nan_to_num(-1).argmax(dim=1)
    table = {
        "window": range(len(texts)),
        "text": texts,
        "most surprising": [repr(text[place]) for text, place in zip(texts, place_N, strict=True)],
        "its bits": bits_NT.gather(1, place_N[:, None])[:, 0].numpy(),
        "bits": bits_NT.nanmean(dim=1).numpy(),
    }
    runengine.write_look(run, pd.DataFrame(table), sort="bits")


def ngram_bits(train_text: str, test_text: str, num_tokens: int, order: int) -> float:
    """Bits a character of the test, of whoever has counted the runs of up to `order` characters in the training.

    After a run, the next character is as probable as it was counted, together with `PRIOR` characters that are spread
    as after the run without its first (MacKay and Peto 1995, with one prior for all); after none, all are alike.
    """
    train_text = train_text[-MOST_COUNTED:]
    probabilities = [1 / num_tokens] * len(test_text)
    for length in range(1, order + 1):
        places = range(len(train_text) - length + 1)
        runs = Counter(train_text[place : place + length] for place in places)
        before = Counter(train_text[place : place + length - 1] for place in places)
        for place in range(length - 1, len(test_text)):
            run = test_text[place - length + 1 : place + 1]
            shorter = PRIOR * probabilities[place]
            probabilities[place] = (runs[run] + shorter) / (before[run[:-1]] + PRIOR)
    return -sum(map(math.log2, probabilities[1:])) / (len(test_text) - 1)  # the first is not to be predicted


def in_words(metrics: Mapping[str, float]) -> str:
    baselines = ", ".join(f"{name} {metrics[f'test/bits_{name}']:.3f}" for name in ORDERS)
    return f"test           {metrics['test/bits']:.3f} bits a character ({baselines}); it writes: samples.txt"


if __name__ == "__main__":
    runengine.measure(evaluate, in_words)
