# says: answered Decision(clock_mhz=1410, |power_cap_w=10, allowed: None, or 100 to 400 W
from voltana.state import Decision


class Mine:
    def decide(self, load):
        return Decision(1410, power_cap_w=10 if load.batch_size else None)
