"""Log steps of three values: `log_steps.py WHO COUNT`, WHO is ours or hand."""

import json
import os
import sys
import time

from meticulous import Experiment

who, count = sys.argv[1], int(sys.argv[2])
experiment = Experiment(experiments_directory="experiments")
if who == "ours":
    for step in range(count):
        experiment.log({"loss": 1 / (step + 1), "accuracy": step / count, "lr": 1e-4}, step=step)
else:
    descriptor = os.open(f"{experiment.curexpdir}/by-hand", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for step in range(count):
        values = {"loss": 1 / (step + 1), "accuracy": step / count, "lr": 1e-4}
        line = json.dumps({"step": step, "time": time.time(), **values}) + "\n"
        os.write(descriptor, line.encode())
