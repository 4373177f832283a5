//! What stands below the options in each command's help.

pub(super) const ALL: &str = "\
Examples:
  lastgood demo                                     watch a training job survive kill -9
  lastgood run --store /data/ckpt --run llm --ranks 4 -- ./train --epochs 3
  lastgood ls --store s3://bucket/ckpt --run llm
  lastgood verify --store /data/ckpt --run llm
  lastgood export --store /data/ckpt --run llm --at last-good --to ./weights

Exit codes: 0 done, 1 failed, 2 usage, 3 damage found, 4 not found, 5 refused (fenced, conflict,
incompatible, denied), 6 diverged, 7 store unavailable or full, 75 a job that gave way to SIGTERM; 130 and 143 if Ctrl-C or SIGTERM ended it
(`run` and `demo` then end their ranks and exit with 1).

A checkpoint is named by --at: last-good is the one that recovery would take, latest the newest one that
is not bad, digits alone are a step, 8 or more digits of an id (or id:DIGITS) are an id.

S3, GCS and Azure take their credentials and endpoints from the usual variables (AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS,
AZURE_STORAGE_ACCOUNT_NAME, …).";

pub(super) const RUN: &str = "\
Examples:
  lastgood run --store /data/ckpt --run llm --ranks 4 -- python train.py
  lastgood run --store s3://bucket/ckpt --run llm --ranks 8 --stall-timeout 10m -- ./train
  lastgood run --store /data/ckpt --run llm --ranks 8 --shrink --min-ranks 4 -- python train.py

Each rank gets torchrun's variables (RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR,
MASTER_PORT, TORCHELASTIC_RESTART_COUNT, …) and lastgood's (LASTGOOD_STORE, LASTGOOD_RUN,
LASTGOOD_ATTEMPT, LASTGOOD_INCARNATION, LASTGOOD_PLACE, LASTGOOD_HEARTBEAT). SIGTERM and Ctrl-C are
passed on to the ranks as SIGTERM; a second one, or the end of the grace time, kills them.

With --shrink the next attempt has as many ranks fewer as were lost: ended by a signal, or with a
code that is not 0 before the others. They are numbered anew; LASTGOOD_PLACE keeps the number of a
rank's place, so that a job can leave the device of a lost one alone. Nobody is lost by a stall, nor
by the codes 2, 126 and 127 (the command cannot be run). A restart with fewer counts as any other.

It ends with 0 when every rank ended with 0, with 75 if it was stopped and a rank said, by that code, that
it gave way to the notice (a policy with a grace time), and with 1 when it was stopped otherwise, or
restarts do not help.";

pub(super) const LS: &str = "\
Examples:
  lastgood ls --store /data/ckpt
  lastgood ls --store /data/ckpt --run llm --last 20
  lastgood ls --store /data/ckpt --run llm --json | jq -r 'select(.last_good) | .id'";

pub(super) const SHOW: &str = "\
Examples:
  lastgood show --store /data/ckpt --run llm
  lastgood show --store /data/ckpt --run llm --at 4000 --tensors";

pub(super) const LOG: &str = "\
Examples:
  lastgood log --store /data/ckpt --run llm --last 50
  lastgood log --store /data/ckpt --run llm --json | jq 'select(.kind == \"checkpoint.bad\")'
  lastgood log --store /data/ckpt --run llm --journal --steps 4000..4010 --rank 3
  lastgood log --store /data/ckpt --run llm --journal --kind step --json | jq .event.loss
  lastgood log --store /data/ckpt --run llm --journal --count

The journal is what is sealed in the store: of a run that goes on, all but the last steps. Events are in the
order of attempt, step and rank.";

pub(super) const PREFLIGHT: &str = "\
Examples:
  lastgood preflight --store /data/ckpt --run llm
  lastgood preflight --store /data/ckpt --run llm --data full --ranks 8 -- python train.py
  lastgood preflight --store /data/ckpt --run llm --accept code. --reason 'the loader was mended'

With the command of the job, the job itself is asked: it starts, opens its run without starting an attempt,
builds its state, and where it would restore it compares its environment with that of the process that saved,
and its state with the checkpoint. Without, what the newest attempt found before its restore is told.

What is accepted is accepted for the two values that were found, and with --always for any. It exits with 0
if nothing stands against the restore, 3 if data is damaged or missing, and 5 if something differs that breaks
equal bytes or safety and was not accepted.";

pub(super) const POSTMORTEM: &str = "\
Examples:
  lastgood postmortem --store /data/ckpt --run llm --to incident.html
  lastgood postmortem --store /data/ckpt --run llm --attempt 3 --certificate llm.json --to incident.html

The page needs nothing beside it: what happened and when, which checkpoint was taken and why, which steps were
lost and done again and whether they came out equal, what the ranks found before they restored, and the
certificate.";

pub(super) const EVENTS: &str = "\
Examples:
  lastgood events --store /data/ckpt --run llm \\
      --sql 'select kind, count(*) from events group by kind'
  lastgood events --store /data/ckpt --run llm --kind step --steps 4000..5000 \\
      --sql 'select step, max(loss) - min(loss) as spread from events group by step
             order by spread desc limit 10'
  lastgood events --store /data/ckpt --run llm --kind event \\
      --sql \"select step, event ->> '$.data.accuracy' as accuracy from events\"
  lastgood events --store /data/ckpt --run llm --export ./llm.db
  lastgood events --schema

The table `events` has a row for each event of the history, in the canonical order. The options
that choose events do so before they are loaded, which is quicker than `where`. What is loaded goes
to a temporary file (SQLITE_TMPDIR, TMPDIR), not to memory, and only the columns that the query
names are loaded. Text stands in single quotes: \"step\" is the column, 'step' the kind.

Integers from 2^63 on, which SQLite lacks, are text in `event`; so are NaN and infinities. Bytes
are hexadecimal digits.";

pub(super) const WHY: &str = "\
Examples:
  lastgood why --store /data/ckpt --run llm --tensor layers.0.weight --at 4000
  lastgood why --store /data/ckpt --run llm --tensor optimizer/step --at 4013 --rank 3 --json

The state after a step is that of the checkpoint of the step, or of the last one before it and the
steps since. What led to it is told from the checkpoint before the step on: the steps, those that a
recovery has overtaken among them, what they read, and when the tensor's fingerprint last changed.
What is not recorded is said to be so.";

pub(super) const REPLAY: &str = "\
Examples:
  lastgood replay --store /data/ckpt --run llm -- python train.py
  lastgood replay --store /data/ckpt --run llm --from 4000 --to 5000 --ranks 2 -- python train.py
  lastgood replay --store /data/ckpt --run llm --mode shadow -- python train.py
  lastgood replay --store /data/ckpt --run llm --mode travel --to 4321 -- python train.py
  lastgood replay --store /data/ckpt --run llm --mode resume -- python train.py
  lastgood replay --store /data/ckpt --run llm --mode audit

The command is the job's own, unchanged. It restores the checkpoint, is ended after the last step, and records into a
repository of its own: the run is only read. Equal means that every step said the same, bit for bit, and that every
state that was digested, and the checkpoint at the end, has the same fingerprints.

It exits with 0 if both are equal and with 6 where they part.";

pub(super) const BISECT: &str = "\
Examples:
  lastgood bisect --store /data/ckpt --run llm -- python train.py
  lastgood bisect --store /data/ckpt --run llm --from 20000 --to 30000 -- python train.py
  lastgood bisect --store /data/ckpt --run llm --against llm-second-try
  lastgood bisect --store /data/ckpt --run llm --against llm --against-store s3://bucket/ckpt

First the record is read: events that are missing, edited or of another run are named. Then the
steps are run again from one checkpoint to the next, over four times as many of them each time,
until something differs. Each execution goes on from a checkpoint that was found equal, and none
does the steps of another. If one element alone differs, its step is run once more. All together
there are at most log2(steps) executions, rounded up (two, of four steps or fewer).

With --against nothing is run: the steps that both runs have recorded are compared, and the states
that both have digested.

It exits with 0 if nothing differs, with 3 if the record is damaged, and with 6 if it found where they part.";

pub(super) const PROVE: &str = "\
Examples:
  lastgood key new --to ./prover.pem
  lastgood prove --store /data/ckpt --run llm --certificate llm.json --key ./prover.pem -- python train.py
  lastgood prove --store /data/ckpt --run llm --ranks 2 --certificate llm.json --key ./prover.pem -- python train.py

It reads the record and the run's last good checkpoint, recovers the one before in processes of its own, runs the steps
between them again, and compares. The certificate names all that went in and the verdict: D2 proven on as many ranks, D3 on
others. It exits with 0 if it is proven, 1 if there was no state to compare, 3 if the record is damaged, 6 if it diverged.";

pub(super) const KEY: &str = "\
Examples:
  lastgood key new --to ./prover.pem

The files are PKCS#8 in PEM: `openssl pkey -in prover.pem -text` reads them.";

pub(super) const CERTIFICATE: &str = "\
Examples:
  lastgood certificate verify llm.json --key ./prover.pem.pub

It exits with 0 if the signature fits, with 3 if a byte was changed, and with 5 if another key signed it.";

pub(super) const VERIFY: &str = "\
Examples:
  lastgood verify --store /data/ckpt --run llm
  lastgood verify --store /data/ckpt --run llm --at latest --mark

It exits with 0 if every byte is right and with 3 if one is not. Ctrl-C harms nothing.";

pub(super) const MARK: &str = "\
Examples:
  lastgood mark good --store /data/ckpt --run llm --at 4000 --reason 'best evaluation'
  lastgood mark bad --store /data/ckpt --run llm --at latest --reason 'loss is nan'

Recovery takes the newest good checkpoint, else the newest verified one, else the newest one; never a bad
one. As soon as one is marked good, newer ones that are not are passed over.";

pub(super) const SAVE: &str = "\
Examples:
  lastgood save --store /data/ckpt --run llm
  lastgood save --store s3://bucket/ckpt --run llm --reason 'before the maintenance' --wait 30m

The request stands in the run's ledger, which every rank reads: rank 0 answers with a step that is far
enough ahead, and all save that one. It needs no signal and no access to the hosts. It ends with 7 if
no rank answers in time, and with 5 if the attempt ends before.";

pub(super) const POLICY_EXPLAIN: &str = "\
Examples:
  lastgood policy explain --store /data/ckpt --run llm
  lastgood policy explain --store /data/ckpt --run llm --json | jq .explanation.inputs

Of a run whose policy is auto: what was measured, the failures that are expected and seen, the formula,
the bounds that apply, and what would have to change for another interval to be chosen.";

pub(super) const DOCTOR: &str = "\
Examples:
  lastgood doctor ./output                          of a Hugging Face Trainer: checkpoint-500, checkpoint-1000, …
  lastgood doctor /ckpt --json | jq -r 'select(.last_trusted) | .last_trusted'
  lastgood doctor model.pt --allow mylib.config

It knows Hugging Face Trainer, DCP, Lightning, DeepSpeed, Megatron, Orbax, safetensors and torch.save, and needs
none of them. No pickle is run: what loading one would import is listed.

It exits with 0 if every checkpoint can be trusted and with 3 if one cannot. Nothing is changed.";

pub(super) const IMPORT: &str = "\
Examples:
  lastgood import model.safetensors --store /data/ckpt --run llm --step 0
  lastgood import adapter.safetensors --store s3://bucket/ckpt --run llm --step 10 --component adapter
  lastgood import ./checkpoint-500 --store /data/ckpt --run llm --step 500
  lastgood import ./dcp/step-100 --store /data/ckpt --run llm --step 100
  lastgood import last.ckpt --store /data/ckpt --run llm --step 800

Every dtype of safetensors, and its metadata, is kept. Of pickles, which are read and never run, tensors are
kept under the path that leads to them (state_dict.layer.weight), numbers and texts as values, bytes as blobs;
objects are left out, and named. Of a folder with weights only the weights are taken. What is damaged as far as
its format can show is refused, and what was written is read back.

An import is an attempt of its own: it fences a job of the same run that is still running. It needs the memory
of its tensors once.";

pub(super) const EXPORT: &str = "\
Examples:
  lastgood export --store /data/ckpt --run llm --to ./weights
  lastgood export --store s3://bucket/ckpt --run llm --at 4000 --component model --to ./step-4000

For each component it writes NAME.safetensors with the tensors, whole however many ranks saved them, and the
checkpoint's metadata; NAME.blobs.safetensors with values and blobs as tensors of U8; and
lastgood-export.json, which says what it is of. Tied tensors are written under each of their names.

When it is killed the folder is as it was before; what it had written beside it is removed by the next
export into the same place.";

pub(super) const DEMO: &str = "\
Examples:
  lastgood demo
  lastgood demo --kills 8 --seed 3
  lastgood demo --store s3://bucket/demo --steps 60 --kills 2
  lastgood demo --forget rng                        see that the comparison notices it

It exits with 0 if both trainings end with the same bytes, and with 6 if they do not.";

pub(super) const COMPLETIONS: &str = "\
Examples:
  lastgood completions bash > /etc/bash_completion.d/lastgood
  source <(lastgood completions zsh)";
