from tensorboardX import SummaryWriter

with SummaryWriter("experiments") as writer:
    for step in range(100000):
        writer.add_scalar("loss", 1 / (step + 1), step)
        writer.add_scalar("accuracy", step / 100000, step)
        writer.add_scalar("rate", 0.1, step)
