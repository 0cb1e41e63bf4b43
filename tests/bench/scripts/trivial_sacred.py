from sacred import Experiment
from sacred.observers import FileStorageObserver

experiment = Experiment("trivial")
experiment.observers.append(FileStorageObserver("experiments"))
experiment.add_config(epochs=3, lr=0.1)


@experiment.automain
def main(epochs, lr):
    for epoch in range(epochs):
        print("epoch", epoch, "loss", lr / (epoch + 1))
    return lr
