"""Learn to tell three species of iris apart: softmax regression in plain Python."""

import argparse
import csv
import json
import math
import random
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # where this repository keeps meticulous.py
from meticulous import Experiment


def read_flowers(path):
    with open(str(path), newline="") as file:
        rows = list(csv.DictReader(file))
    species = sorted({row["species"] for row in rows})
    flowers = []
    for row in rows:
        label = species.index(row.pop("species"))
        flowers.append(([1.0] + [float(value) for value in row.values()], label))
    return flowers, species


def predict(weights, features):
    scores = [sum(w * x for w, x in zip(row, features)) for row in weights]
    exponentials = [math.exp(score - max(scores)) for score in scores]
    return [value / sum(exponentials) for value in exponentials]


def train_epoch(weights, flowers, lr):
    loss = 0.0
    for features, label in random.sample(flowers, len(flowers)):
        probabilities = predict(weights, features)
        loss -= math.log(max(probabilities[label], 1e-300))
        for k, row in enumerate(weights):
            slope = probabilities[k] - (k == label)
            for i, x in enumerate(features):
                row[i] -= lr * slope * x
    return loss / len(flowers)


def measure_accuracy(weights, flowers):
    guesses = [predict(weights, features) for features, _ in flowers]
    return sum(guess.index(max(guess)) == label for guess, (_, label) in zip(guesses, flowers)) / len(flowers)


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=50)
parser.add_argument("--lr", type=float, default=0.01, help="learning rate")
parser.add_argument("--seed", type=int, default=0)
Experiment.add_argument_group(parser)
experiment = Experiment.from_parser(parser)
args = parser.parse_args()

random.seed(args.seed)
flowers, species = read_flowers(Path(__file__).with_name("iris.csv"))
random.shuffle(flowers)
train, test = flowers[50:], flowers[:50]
weights = [[0.0] * len(train[0][0]) for _ in species]
for epoch in range(1, args.epochs + 1):
    loss = train_epoch(weights, train, args.lr)
    print(f"epoch {epoch}: loss {loss:.4f}")

accuracy = measure_accuracy(weights, test)
print(f"test accuracy {accuracy:.2f}")
experiment.summary(loss=loss, test_accuracy=accuracy)
with experiment.open("model.json", "w") as file:
    json.dump({"species": species, "weights": weights}, file)
