# part: prefill_controller
# broken: undeclared reads
# says: but shown power and requests, which it does not declare, Decision(clock_mhz=1005
from voltana.state import Decision


class Mine:
    def decide(self, load):
        return Decision(1410 if len(load.running) < 1 else 1005)
