"""A worker that lives on and answers, or dies, as it is told to."""

from __future__ import annotations

import os
import signal
import time

from leanear.benchmarks.peers.lasting_worker import answer_requests

if __name__ == "__main__":
    asked: list[str] = []

    def count(request: dict) -> dict:
        asked.append(request["word"])
        print("a library prints this to stdout", flush=True)
        os.system("echo and so does a program that it starts")
        return {"process": os.getpid(), "asked": asked}

    answer_requests(
        {
            "count": count,
            "crash": lambda request: {"never": 1 / 0},
            "nan": lambda request: {"value": float("nan")},
            "list": lambda request: [1, 2],
            "die": lambda request: os.kill(os.getpid(), signal.SIGKILL),
            "hang": lambda request: time.sleep(60),
        }
    )
