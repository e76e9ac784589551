# built: yes
# says: policy.decode_controller: Mine asks for plant, offered: phase, slo, clocks_mhz,
class Mine:
    def __init__(self, plant):
        self.plant = plant

    def decide(self, load):
        return None
