# built: yes
# says: reads_load is 'no', allowed: True, False
class Mine:
    reads_load = "no"

    def decide(self, load):
        return None
