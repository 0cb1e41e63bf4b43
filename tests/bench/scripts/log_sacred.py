from sacred import Experiment
from sacred.observers import FileStorageObserver

experiment = Experiment("log")
experiment.observers.append(FileStorageObserver("experiments"))


@experiment.automain
def main(_run):
    for step in range(100000):
        _run.log_scalar("loss", 1 / (step + 1), step)
        _run.log_scalar("accuracy", step / 100000, step)
        _run.log_scalar("rate", 0.1, step)
