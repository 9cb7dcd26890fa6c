"""The one exception family of the plugin."""


class KDPluginError(RuntimeError):
    """A refusal: the message names the file or flag, what is wrong with it, and what to do.

    It derives from RuntimeError because fairseq's trainer answers any other exception raised in an update by
    writing a `crash.pt` beside the good checkpoints.
    """
