import os
import sys

from engine import Engine

if sys.argv[1] != "--address":  # mosec reads the command line when it is imported, and its workers are started with it again
    os.environ["PEER_FOLDER"] = sys.argv[2]
    sys.argv = [sys.argv[0], "--address", "127.0.0.1", "--port", sys.argv[1], "--log-level", "warning"]

from mosec import Server, Worker


class Model(Worker):
    def __init__(self):
        super().__init__()
        self.engine = Engine(os.environ["PEER_FOLDER"])

    def forward(self, data):
        return [{"predictions": [row]} for row in self.engine([one["instances"][0] for one in data])]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Model, num=1, max_batch_size=16, max_wait_time=1)
    server.run()
