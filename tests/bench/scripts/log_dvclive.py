from dvclive import Live

with Live("experiments") as live:
    for step in range(100000):
        live.step = step
        live.log_metric("loss", 1 / (step + 1))
        live.log_metric("accuracy", step / 100000)
        live.log_metric("rate", 0.1)
