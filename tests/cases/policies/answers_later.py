# says: answered Decision(clock_mhz=1000, |, clock_mhz=1000, allowed: whole MHz, 210 to 1410 MHz in steps of 15
from voltana.state import Decision


class Mine:
    def decide(self, load):
        return Decision(1000 if load.time_s > 1 else 1410)
