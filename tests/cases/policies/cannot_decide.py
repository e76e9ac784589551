# built: yes
# says: without decide(), allowed: an object with decide()
class Mine:
    def choose(self, load):
        return None
