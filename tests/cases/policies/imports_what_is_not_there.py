# built: yes
# says: found 'imports_what_is_not_there.Mine'|ModuleNotFoundError: No module named 'nunpy' (
# above: import nunpy
import nunpy


class Mine:
    def decide(self, load):
        return nunpy.argmin(load)
