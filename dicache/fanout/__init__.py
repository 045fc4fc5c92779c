"""Work of many runs, handed to workers: threads, processes or machines, each with a pipeline of its own."""
