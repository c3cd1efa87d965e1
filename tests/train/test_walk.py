"""From a folder of videos to a network in use, as docs/training.md tells it."""

import os
import signal
import threading
import time

from tests.support.walk import CLASSES, walk
from train.__main__ import main


def test_the_walk(tmp_path, capfd):
    said = ""

    def run(*command, interrupt=None):
        nonlocal said

        def interrupt_when_it_learns():
            while not (interrupt.exists() and '"step"' in interrupt.read_text()):
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGINT)

        if interrupt is not None:
            threading.Thread(target=interrupt_when_it_learns, daemon=True).start()
        small = {
            "fit": ("--threads", "1", "--device", "cpu", "--loading.workers", "0", "--log-every", "1"),
            "test": ("--threads", "1", "--device", "cpu", "--loading.workers", "0"),
            "predict": ("--device", "cpu"),
        }
        status = main([*command, *small.get(command[0], ())])
        said += capfd.readouterr().out
        return status

    walk(tmp_path, run, per_class=4, epochs=4)
    for text in (
        f"next: python -m train fit own --data.train '{tmp_path}/meine Videos/train.index.jsonl'",
        "data: 12 videos of 3 classes to train on, 3 to validate on",
        "network: tanet on small",
        "--resume goes on from there",
        "lengthened from 4 to 6 epochs",
        "done: the best of 6 epochs is number",
        "tested 3 of 3 videos of the index",
        "ensemble of 2, logits averaged",
        *(f"%  {name}" for name in CLASSES),
    ):
        assert text in said, text
