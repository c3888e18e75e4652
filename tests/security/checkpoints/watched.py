"""Open checkpoints under an audit hook, and say what Python was made to do.

Run as a program: arguments are the folder that holds everything hostile, then the
checkpoints in it. What happened is printed as JSON: for each checkpoint the error, and
the events that touch a file in the folder, a process or the network.
"""

import json
import sys

ROOT = sys.argv[1]
WATCHED = {
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "pty.spawn",
    "socket.connect",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "input",
    "builtins.input",
}
events: list[list[str]] = []
watching = False


def hook(event: str, args: tuple) -> None:
    """Note processes, the network, prompts, and code or files of the folder."""
    if not watching:
        return
    if event in WATCHED:
        events.append([event, repr(args)[:200]])
    elif event == "open" and ROOT in str(args[0]):
        events.append([event, str(args[0])])
    elif event == "import" and ROOT in repr(args):
        events.append([event, repr(args)[:200]])
    elif event in ("compile", "exec"):
        name = getattr(args[0], "co_filename", args[-1])
        if ROOT in str(name):
            events.append([event, str(name)])


sys.addaudithook(hook)


def main() -> None:
    """Open and load every checkpoint, and print what happened."""
    global watching
    import warnings

    # Libraries are imported before anything is watched: they start processes of theirs.
    import peft  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401

    from capture.checkpoints.open import open_checkpoint
    from evidence.errors import InputError

    warnings.simplefilter("ignore")
    found = {}
    for place in sys.argv[2:]:
        events.clear()
        watching = True
        trouble = "none"
        try:
            open_checkpoint(place).load()
        except InputError as error:
            trouble = str(error)
        except BaseException as error:
            trouble = f"RAISED {type(error).__name__}: {error}"
        watching = False
        found[place] = {"error": trouble, "events": list(events)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
