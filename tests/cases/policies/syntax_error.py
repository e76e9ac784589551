# built: yes
# says: policy.decode_controller._target_: found 'syntax_error.Mine', allowed: the dotted path of a class (SyntaxError:
# above: SyntaxError
class Mine:
    def decide(self, load)
        return None
