# Made by `cargo xtask python stubs`; not edited by hand.
"""
The engine behind the package.
"""

from _typeshed import SupportsGetItem
from typing import Any, SupportsFloat, SupportsIndex, final

@final
class Capture:
    """
    The state of one rank at one step, for `Run.save`. `overlapped`: it is copied after the call.
    """
    def __new__(cls, /, overlapped: bool = False) -> Capture: ...
    def blob(self, /, component: SupportsIndex, name: str, data: bytes, replicated: bool) -> None:
        """
        Bytes that are the same on every rank (`replicated`), or of this rank alone under `name@rankN`.
        """
    @property
    def bytes(self, /) -> int:
        """
        The bytes of this rank's tensors and values.
        """
    def check(self, /, check: Any) -> None:
        """
        Asks `check` once everything is copied: None if the copy can be trusted, else why the save must fail.
        """
    def component(self, /, name: str, owner: str, durability: str) -> int:
        """
        Declares a component and gives its number; `durability` is durable, derived or volatile.
        """
    def metadata(self, /, key: str, value: str) -> None:
        """
        Text that travels with the checkpoint.
        """
    def tensor(self, /, component: SupportsIndex, name: str, dtype: str, shape: SupportsGetItem[int, SupportsIndex], offsets: SupportsGetItem[int, SupportsIndex], sizes: SupportsGetItem[int, SupportsIndex], address: SupportsIndex, bytes: SupportsIndex, owner: Any, role: str) -> None:
        """
        The part at `offsets` of size `sizes` of a tensor of global shape `shape`: `bytes` bytes at `address`,
        row-major and little-endian, which `owner` keeps alive. `role`: every rank holds the `same` whole; a `shard`
        or its `own` is this rank's alone; other ranks hold the same part, `stored` by this or `witnessed`.
        """
    def tied(self, /, component: SupportsIndex, name: str, of: str) -> None:
        """
        Tensor `name` is the same memory as `of`, which was named before.
        """
    def updates(self, /, kind: str, numbers: SupportsGetItem[int, SupportsFloat | SupportsIndex], steps: SupportsIndex, weights: SupportsGetItem[int, tuple[str, str]], firsts: SupportsGetItem[int, tuple[str, str]], seconds: SupportsGetItem[int, tuple[str, str]]) -> None:
        """
        What an optimizer did in its last step, each row of the lists a tensor by its component and name, and what it
        keeps for that. `numbers` of adam: learning rate, both betas, epsilon, decay; of momentum and nesterov:
        learning rate, momentum; of lion: learning rate, both betas, decay. `seconds` is empty unless it is adam.
        """
    def wholes(self, /, component: SupportsIndex, names: SupportsGetItem[int, str], dtypes: SupportsGetItem[int, str], shapes: SupportsGetItem[int, SupportsGetItem[int, SupportsIndex]], addresses: SupportsGetItem[int, SupportsIndex], sizes: SupportsGetItem[int, SupportsIndex], owners: SupportsGetItem[int, Any], role: str, changes: bool) -> None:
        """
        As `tensor`, many whole ones of one role at once, each row of the lists one of them. `changes`: they may be
        changed as soon as the call of the save has returned, so that they are copied within it.
        """

@final
class Checkpoint:
    """
    What a checkpoint holds, by name; its tables are verified.
    """
    @property
    def bytes(self, /) -> int:
        """
        The bytes of all ranks' tensors and values.
        """
    def components(self, /) -> list[tuple[str, str, str]]:
        """
        The components: name, owner, durability.
        """
    @property
    def id(self, /) -> str:
        """
        The id: 64 hexadecimal digits.
        """
    def metadata(self, /) -> dict[str, str]:
        """
        The text that travels with it.
        """
    @property
    def notices(self, /) -> list[str]:
        """
        What a person should know of how it was chosen.
        """
    @property
    def step(self, /) -> int:
        """
        The step.
        """
    def tensors(self, /) -> list[tuple[str, str, str, list[int], str | None]]:
        """
        Tensors and values: component, name, dtype, global shape, the name that it is tied to.
        """
    @property
    def world_size(self, /) -> int:
        """
        The number of ranks that saved it.
        """

@final
class Reader:
    """
    The checkpoints of a run, for whoever is no rank of it.
    """
    def __new__(cls, /, url: str, options: dict[str, str], run: str, rank: SupportsIndex = 0, world_size: SupportsIndex = 1) -> Reader:
        """
        Run `run` in the store `url`, as rank `rank` of `world_size`; the run need not exist, and has no checkpoint
        then.
        """
    def find(self, /, selector: str) -> Checkpoint:
        """
        The checkpoint that `selector` names.
        """
    def history(self, /) -> list[dict[str, Any]]:
        """
        Every checkpoint, oldest first.
        """
    def look(self, /, checkpoint: Checkpoint, needs: tuple[SupportsIndex, SupportsIndex, SupportsGetItem[int, str]], environment: dict[str, str], mode: str, accept: str | None) -> Any:
        """
        As `preflight`, but nothing is refused and nothing recorded.
        """
    def mark(self, /, selector: str, standing: str, reason: str) -> str:
        """
        Gives the checkpoint that `selector` names a standing: good, bad or verified. Gives its id.
        """
    def preflight(self, /, checkpoint: Checkpoint, needs: tuple[SupportsIndex, SupportsIndex, SupportsGetItem[int, str]], environment: dict[str, str], mode: str, accept: str | None) -> Any:
        """
        Looks whether this process, which computes with `environment` and goes on from the checkpoint, may restore it,
        and raises what stands against it. Gives what it found; `mode`, `accept` and `needs` are as of `Run`.
        """
    def read(self, /, checkpoint: Checkpoint, targets: Targets) -> tuple[int, int]:
        """
        Reads into `targets`, and gives the bytes that were placed and those that were read.
        """
    def resolve(self, /, selector: str) -> str:
        """
        The id of the checkpoint that `selector` names now; the checkpoint itself is not read.
        """
    def verify(self, /, checkpoint: Checkpoint) -> int:
        """
        Reads and verifies every byte of a checkpoint, and gives their number.
        """

@final
class Replay:
    """
    A replay that this process is to do.
    """
    def __new__(cls, /, url: str, options: dict[str, str], run: str, begin: str | None, end: str, into: str, into_run: str, save: bool, seen: SupportsGetItem[int, str] | None = None) -> Replay:
        """
        Prepares a replay of run `run` of the store `url`: of the steps between two checkpoints, or with `seen` of a window
        chosen by chance whose end is none of these. It records into run `into_run` of the store `into`, and with `save` saves
        the state at the end there.
        """
    def judge(self, /) -> Any:
        """
        Compares what was recorded with what the replay has recorded.
        """
    @property
    def plan(self, /) -> str:
        """
        What the run is told.
        """
    @property
    def steps(self, /) -> tuple[int, int]:
        """
        The step that it begins after, and the last one.
        """

@final
class Run:
    """
    One rank of one attempt of a run. Every method that waits or copies releases the interpreter's lock.
    """
    def __new__(cls, /, url: str, options: dict[str, str], run: str, rank: SupportsIndex, world_size: SupportsIndex, incarnation: str | None, settings: dict[str, Any], journal: dict[str, Any] | None = None, environment: dict[str, str] | None = None, replay: str | None = None, preflight: str = "refuse", accept: str | None = None, resume: str = "live", policy: dict[str, Any] | None = None, memory: str | None = None) -> Run:
        """
        Opens run `run` in the store `url` as rank `rank` of `world_size`; `settings` are those of saves.
        """
    def abandon(self, /) -> None:
        """
        Lets go of the run without waiting: for one of several ranks after another one has failed, whose saves
        cannot be committed any more. The thread that looks after them ends with the process, or as soon as a
        newer attempt starts.
        """
    @property
    def attempt(self, /) -> int:
        """
        The number of the attempt.
        """
    def build_on(self, /, checkpoint: Checkpoint) -> None:
        """
        Lets the next save reuse the chunks of a checkpoint that was restored.
        """
    def candidate(self, /) -> Checkpoint | None:
        """
        The checkpoint to restore, or None for a fresh run. Damaged ones that it finds are marked bad.
        """
    def check_memory(self, /) -> None:
        """
        Waits until what was taken so is verified; raises Corrupt if it is damaged.
        """
    def check_objects(self, /, checkpoint: Checkpoint, depth: str, progress: Any | None = None) -> tuple[int, int, int, float]:
        """
        Looks whether every object of a checkpoint is there: of its `size`, or of a `sample` or the `full` bytes. Gives
        the number of packs, their bytes, the bytes that were read, and the seconds that took.
        """
    def close(self, /) -> None:
        """
        Waits for every save that is under way; raises what failed and nobody has asked for.
        """
    def digest(self, /, step: SupportsIndex, capture: Capture) -> None:
        """
        Digests what `capture` names, which is empty after: once it is copied, a thread finds and records its
        fingerprints.
        """
    def event(self, /, kind: str, data: Any) -> None:
        """
        Records an event of the caller's own kind.
        """
    def expire(self, /, selector: str, reason: str) -> str:
        """
        Takes the checkpoint that `selector` names off the list, for good. Gives its id.
        """
    def explain_policy(self, /) -> tuple[int, float, str, str] | None:
        """
        What the policy makes of what is measured: the steps between saves, the seconds, everything as JSON, and as text.
        """
    def external(self, /, key: str, value: Any) -> Any:
        """
        Records something that was read from outside of the run, and gives what to go on with.
        """
    def find(self, /, selector: str) -> Checkpoint:
        """
        The checkpoint that `selector` names.
        """
    def follow(self, /, settings: dict[str, Any]) -> None:
        """
        Follows another policy than that which the run was opened with.
        """
    def go_live(self, /) -> None:
        """
        Goes on from a state that is no checkpoint's: nothing is to be done again.
        """
    def goes_on(self, /) -> bool:
        """
        False once a replay has done its last step.
        """
    def history(self, /) -> list[dict[str, Any]]:
        """
        Every checkpoint of the run, oldest first.
        """
    def is_due(self, /, step: SupportsIndex) -> bool:
        """
        True if something is to be saved or digested after `step`, because the run is a replay.
        """
    def look(self, /, checkpoint: Checkpoint, needs: tuple[SupportsIndex, SupportsIndex, SupportsGetItem[int, str]]) -> Any:
        """
        As `preflight`, but nothing is refused and nothing recorded.
        """
    def mark(self, /, selector: str, standing: str, reason: str) -> str:
        """
        Gives the checkpoint that `selector` names a standing: good, bad or verified. Gives its id.
        """
    @property
    def memory_notice(self, /) -> str | None:
        """
        Why it captures in memory of its own and not in that which it was given; None if it was given none.
        """
    def notice(self, /) -> bool:
        """
        Tells that this process will be ended soon. False if the policy has no grace time.
        """
    def only_looks(self, /) -> bool:
        """
        True if the process ends once it has looked whether it could restore.
        """
    def predicts(self, /) -> bool:
        """
        True if saves are smaller where a capture tells what optimizers did.
        """
    def preflight(self, /, checkpoint: Checkpoint, needs: tuple[SupportsIndex, SupportsIndex, SupportsGetItem[int, str]], verifies: bool = False) -> Any:
        """
        Looks whether a checkpoint can be restored here, and raises what stands against it. Gives what it found;
        `needs` are the bytes that are read, those of memory, and what does not fit. `verifies`: the caller reads every
        byte, and goes on by itself from what is damaged.
        """
    def read(self, /, checkpoint: Checkpoint, targets: Targets) -> tuple[int, int]:
        """
        Reads into `targets`, and gives the bytes that were placed and those that were read.
        """
    def reject(self, /, checkpoint: Checkpoint, reason: str) -> list[str]:
        """
        Marks a damaged checkpoint bad, so that `candidate` goes back; raises Corrupt if several ranks must go
        back together. Gives what a person should know.
        """
    def resume_notice(self, /) -> str | None:
        """
        What is to be done again before the run is live, as a person is told it; None if nothing is.
        """
    def save(self, /, step: SupportsIndex, capture: Capture, overlapped: bool) -> SaveHandle:
        """
        Saves what `capture` names, which is empty after. `overlapped`: returns before the copy is done.
        """
    def step(self, /, step: SupportsIndex, shared: dict[str, Any], ranks: dict[SupportsIndex, dict[str, Any]]) -> None:
        """
        Records that a step is done: what all logical ranks of this process share, and what is of one alone.
        """
    def take(self, /, checkpoint: Checkpoint) -> Taking | None:
        """
        Begins a restore that takes tensors as a crash has left them in memory; None if there is no such memory.
        """
    def take_failures(self, /) -> list[Any]:
        """
        The failures of saves since they were last asked for, as exceptions.
        """
    def tell_end(self, /, how: str, reason: str) -> None:
        """
        Says in the ledger how the attempt ends, if its policy wants that known.
        """
    def todo(self, /) -> tuple[int, int, int] | None:
        """
        The attempt that recorded what is to be done again, the step before it, and its last step; None if nothing is.
        """
    def verify(self, /, checkpoint: Checkpoint, progress: Any | None = None) -> int:
        """
        Reads and verifies every byte of a checkpoint, and gives their number; `progress` is called with the
        bytes so far and in all.
        """
    def wait_last(self, /, step: SupportsIndex, save: SaveHandle | None) -> str:
        """
        Waits for the last save: done, late, or goes-on if all ranks end at a later step.
        """
    def wants(self, /, step: SupportsIndex) -> str:
        """
        Says that a step has ended, and gives what the policy wants then: nothing, save, save-and-end or end.
        """

@final
class SaveHandle:
    """
    A save on its way.
    """
    def status(self, /) -> str:
        """
        How far it is: capturing, captured, written, committed, superseded or failed.
        """
    @property
    def step(self, /) -> int:
        """
        The step that is saved.
        """
    def wait_captured(self, /, timeout: SupportsFloat | SupportsIndex | None = None) -> bool:
        """
        Waits at most `timeout` seconds (None: for ever) until the state is copied; False if it is not yet.
        """
    def wait_committed(self, /, timeout: SupportsFloat | SupportsIndex | None = None) -> str | None:
        """
        Waits at most `timeout` seconds until it is a checkpoint, and gives its id; None if it is not yet.
        """

@final
class Taken:
    """
    The memory of a tensor, which nobody else sees, as long as this object is there.
    """
    @property
    def address(self, /) -> int:
        """
        Where it begins.
        """
    @property
    def bytes(self, /) -> int:
        """
        Its length.
        """

@final
class Taking:
    """
    A restore that takes tensors as they lie in memory.
    """
    def tensor(self, /, component: str, name: str, offsets: SupportsGetItem[int, SupportsIndex], sizes: SupportsGetItem[int, SupportsIndex]) -> Taken | None:
        """
        The part at `offsets` of size `sizes` of a tensor, if it lies in memory in one piece.
        """
    def verify(self, /) -> None:
        """
        Verifies behind the call what was taken; nothing can be taken after.
        """

@final
class Targets:
    """
    The memory that a checkpoint is read into, for `Run.read`.
    """
    def __new__(cls, /) -> Targets: ...
    def blob(self, /, component: str, name: str) -> int:
        """
        Bytes, by the full name that they have in the checkpoint; gives the number for `take`.
        """
    def take(self, /, number: SupportsIndex) -> bytes:
        """
        The bytes of blob `number`, once they are read.
        """
    def tensor(self, /, component: str, name: str, dtype: str, shape: SupportsGetItem[int, SupportsIndex], offsets: SupportsGetItem[int, SupportsIndex], sizes: SupportsGetItem[int, SupportsIndex], address: SupportsIndex, bytes: SupportsIndex, owner: Any) -> None:
        """
        The part at `offsets` of size `sizes` of a tensor, into `bytes` bytes at `address`, which `owner` keeps
        alive and nobody else uses.
        """

def audit_journal(url: str, options: dict[str, str], run: str) -> tuple[int, int, list[str]]:
    """
    Reads every event of a run's journal: how many there are, how many cuts of checkpoints they agree with, and what is
    wrong.
    """

def check_policy(settings: dict[str, Any]) -> str:
    """
    What the settings of a policy come to, for a person; raises if there are no such settings, or one is wrong.
    """

def check_settings(settings: dict[str, Any]) -> None:
    """
    Raises if there are no such settings of saves, or one is out of its range.
    """

def effect_of(key: str) -> str:
    """
    What it means that two processes differ in `key`: safety, numerics or information.
    """

def effects() -> dict[str, str]:
    """
    What differences mean, by key or by family, which ends with a dot.
    """

def main(program: SupportsGetItem[int, str], args: SupportsGetItem[int, str]) -> int:
    """
    Runs the `lastgood` command with `args`, and gives its exit code. `program` is how it is started again.
    """

def resumed(url: str, options: dict[str, str], run: str, attempt: SupportsIndex) -> Any | None:
    """
    What came of the steps that `attempt` did again: `from_step`, `to`, `states`, `divergences`; None if it did none again.
    """

def runs(url: str, options: dict[str, str]) -> list[str]:
    """
    The names of the runs in the store `url`, sorted.
    """

__version__: str

class LastgoodError(Exception):
    code: str
    kind: str
    object: str | None
    remedy: str | None
    causes: list[LastgoodError]

class Invalid(LastgoodError): ...
class NotFound(LastgoodError): ...
class Conflict(LastgoodError): ...
class Fenced(LastgoodError): ...
class Unavailable(LastgoodError): ...
class Overloaded(LastgoodError): ...
class Corrupt(LastgoodError): ...
class Incompatible(LastgoodError): ...
class Diverged(LastgoodError): ...
class Denied(LastgoodError): ...
class Closed(LastgoodError): ...
class Internal(LastgoodError): ...
