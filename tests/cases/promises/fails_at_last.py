# broken: answers
# says: raised ZeroDivisionError
# above: in decide
from voltana.state import Decision


class Mine:
    def decide(self, load):
        return Decision(1410 if load.batch_size < 12 else 1 // 0)
