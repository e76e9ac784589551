# part: prefill_controller
# says: clock_mhz=1410.0, allowed: whole MHz, 210 to 1410 MHz in steps of 15
from voltana.state import Decision


class Mine:
    def decide(self, load):
        return Decision(1410.0)
