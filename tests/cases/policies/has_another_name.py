# built: yes
# says: found 'has_another_name.Mine'|AttributeError: module 'has_another_name' has no attribute 'Mine'
class Yours:
    def decide(self, load):
        return None
