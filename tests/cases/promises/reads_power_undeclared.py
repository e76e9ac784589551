# broken: undeclared reads
# says: but shown power and requests, which it does not declare, Decision(clock_mhz=1005
from voltana.state import Decision


class Mine:
    def decide(self, load):
        return Decision(1410 if load.power_w is None else 1005)
