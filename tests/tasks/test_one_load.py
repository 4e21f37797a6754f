"""Two threads that load models do so one after the other, and leave transformers as it was."""

import threading
import time

from transformers import PreTrainedModel

from tasks.one_load import load_one_at_a_time


def test_loads_wait_for_each_other_and_may_nest(monkeypatch):
    inside, most = [], []

    def load(cls, name, deeper=False):
        inside.append(name)
        most.append(len(inside))
        time.sleep(0.02)
        if deeper:
            PreTrainedModel.from_pretrained("a part")  # as a model of several models does
        inside.remove(name)
        return name

    def alone(name):
        def work():
            assert PreTrainedModel.from_pretrained(name) == name

        return work

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(load))
    load_one_at_a_time()
    load_one_at_a_time()  # the second time changes nothing
    threads = [threading.Thread(target=alone(i)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 4
    assert PreTrainedModel.from_pretrained("whole", deeper=True) == "whole"
