# says: decode-0 at |raised ZeroDivisionError: division by zero (|raises_at_once.py:11), allowed: a
# above: in load_of
from voltana.state import Decision


class Mine:
    def decide(self, load):
        return Decision(1410 if self.load_of(load) > 3 else 1005)

    def load_of(self, load):
        return load.batch_tokens / load.batch_size
