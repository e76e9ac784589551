# built: yes
# says: found 7, a builtins.int without decide(), allowed: an object with decide()
class Mine:
    def __new__(cls):
        return 7

    def decide(self, load):
        return None
