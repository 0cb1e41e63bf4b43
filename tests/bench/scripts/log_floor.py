"""The least that a log can do: one line of JSON and one system call for each step."""

import json
import os
import time

from meticulous import Experiment

with Experiment() as experiment:
    descriptor = os.open(os.path.join(experiment.curexpdir, "metrics.jsonl"), os.O_WRONLY | os.O_CREAT)
    for step in range(100000):
        values = {"loss": 1 / (step + 1), "accuracy": step / 100000, "rate": 0.1}
        os.write(descriptor, (json.dumps({"step": step, "time": time.time(), **values}) + "\n").encode())
