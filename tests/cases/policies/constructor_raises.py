# built: yes
# says: policy.decode_controller: the constructor of constructor_raises.Mine raised IndexError: tuple index out of range
# above: in __init__
class Mine:
    def __init__(self, clocks_mhz):
        self.mhz = clocks_mhz[1000]

    def decide(self, load):
        return None
