for i in range(1000000):
    print("line", i, "of the log")
