from meticulous import Experiment

with Experiment() as experiment:
    for step in range(100000):
        experiment.log({"loss": 1 / (step + 1), "accuracy": step / 100000, "rate": 0.1}, step=step)
