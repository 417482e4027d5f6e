#!/usr/bin/env bash
# Starts a run of rgbd_reid_jax on this machine, a TPU slice, a SLURM cluster or a Kubernetes cluster (docs/scaling.md).
# What --dry-run prints is what runs: the remote modes write a script or manifest as text and hand that same text on.
set -euo pipefail

usage() {
  cat <<'EOF'
Usage: ./launch.sh COMMAND [OPTIONS] --config=... --workdir=... [--config.NAME=VALUE ...] [--stages=...] [--reuse=...]

Commands:
  local [N]   on this machine, as N processes that share its devices (default: one)
  slurm       write an sbatch script and submit it
  tpu         create a Cloud TPU slice as a queued resource, run on all its workers, delete it
  gke         apply a JobSet to the Kubernetes cluster that kubectl talks to

Options of all commands, before or after the others:
  --dry-run     print what would run, in a form that bash can run, and stop
  -h, --help    print this text
  --            what follows goes to rgbd_reid_jax.main as it is

local:  --devices=K      K CPU devices for each process, whatever the machine has
        --port=PORT      where the processes meet (default: a free one)
        --logs=DIR       logs of the processes 1, 2, ... (default: WORKDIR.logs); process 0 writes to the console
slurm:  --time=LIMIT     as sbatch takes it; the run stops 5 minutes before, saves, and is queued again
        --nodes=N        (default: 1)
        --gpus=G         GPUs of each node, one task for each (default: 0, one task for each node on its CPU)
        --cpus=C         CPU cores of each task
        --partition=P --account=A --name=NAME --logs=DIR
tpu:    --name=NAME --zone=ZONE --type=TYPE    such as --type=v5litepod-8: up to 8 are one worker
        --runtime=VERSION    of the TPU's software, such as v2-alpha-tpuv5-lite
        --project=PROJECT    (default: gcloud's)
        --spot               capacity that may be taken away, at a lower price
        --setup=SCRIPT       run on every worker before the installation, to mount shared storage, which several need
        --keep               do not delete the slice at the end: it goes on costing money
gke:    --name=NAME --image=IMAGE    the image has rgbd_reid_jax installed
        --claim=CLAIM        volume claim that all pods can write, mounted as /shared; the workdir lies below it
        --tpu=KIND --topology=AxB [--chips=4]    TPU node pool: its label, such as tpu-v5-lite-podslice; chips of a node
        --gpu=KIND --nodes=N [--gpus=8]          GPU node pool: its label, such as nvidia-h100-80gb; GPUs of a node
        --namespace=NAMESPACE --spot

PYTHON names the interpreter of local and slurm (default: python).
EOF
}

fail() {
  printf 'launch.sh: %s\n' "$1" >&2
  exit 2
}

quote() { # WORD...: as bash reads it
  local quoted
  printf -v quoted ' %q' "$@"
  printf '%s' "${quoted# }"
}

# ---- arguments ----

dry_run=false
run_args=()
workdir=
config_file=
# The options of all commands; empty where not given.
option_account='' option_chips='' option_claim='' option_cpus='' option_devices='' option_gpu='' option_gpus='' option_image=''
option_keep=false option_logs='' option_name='' option_namespace='' option_nodes='' option_partition='' option_port=''
option_project='' option_runtime='' option_setup='' option_spot=false option_time='' option_topology='' option_tpu=''
option_type='' option_zone=''

run_argument() { # ARGUMENT
  run_args+=("$1")
  if [[ $1 == --workdir=* ]]; then
    workdir=${1#*=}
    while [[ $workdir == ?*/ ]]; do workdir=${workdir%/}; done # logs lie beside it
  fi
}

parse() { # "OPTIONS WITH A VALUE" "SWITCHES" ARGUMENT...: sets option_NAME, run_args and workdir
  local values=" $1 " switches=" $2 " name
  shift 2
  while (($#)); do
    name=${1#--}
    name=${name%%=*}
    case $1 in
      --dry-run) dry_run=true ;;
      -h | --help) usage && exit 0 ;;
      --) shift && while (($#)); do run_argument "$1" && shift; done && break ;;
      --config=* | --workdir=* | --stages=* | --reuse=* | --config.*=*) run_argument "$1" ;;
      --config | --workdir | --stages | --reuse | --config.*)
        if (($# < 2)) || [[ $2 == --* ]]; then fail "$1 needs a value, as in $1=VALUE"; fi
        run_argument "$1=$2"
        shift
        ;;
      --?*)
        if [[ $switches == *" $name "* && $1 != *=* ]]; then
          printf -v "option_$name" true
        elif [[ $values == *" $name "* && $1 == *=?* ]]; then
          printf -v "option_$name" '%s' "${1#*=}"
        elif [[ $values == *" $name "* ]]; then
          fail "--$name needs a value, as in --$name=VALUE"
        else
          fail "unknown option '$1' of $command (valid: $(list "$values$switches"), and the run's --config, --workdir, --stages, --reuse)"
        fi
        ;;
      *) fail "argument '$1' is not an option; options look like --workdir=runs/distill" ;;
    esac
    shift
  done
}

list() { # "NAME NAME": "--NAME, --NAME"
  local name all=
  for name in $1; do all+=", --$name"; done
  printf '%s' "${all#, }"
}

need() { # NAME...: options that must be given
  local name variable
  for name in "$@"; do
    variable=option_$name
    if [[ -z ${!variable} ]]; then fail "$command needs --$name (see --help)"; fi
  done
}

number() { # NAME LEAST [MOST]: an option that is a number where it is given
  local variable=option_$1
  if [[ -n ${!variable} ]] && { [[ ! ${!variable} =~ ^[0-9]{1,6}$ ]] || ((10#${!variable} < $2 || 10#${!variable} > ${3:-999999})); }; then
    fail "--$1=${!variable} must be a number, at least $2${3:+ and at most $3}"
  fi
}

matching() { # NAME REGEX WORDS: an option of a certain form where it is given
  local variable=option_$1
  if [[ -n ${!variable} && ! ${!variable} =~ ^$2$ ]]; then fail "--$1='${!variable}' must be $3"; fi
}

need_run() { # a run that starts elsewhere or later is refused here and now
  local argument has_config=false
  for argument in ${run_args[@]+"${run_args[@]}"}; do
    if [[ $argument == --config=* ]]; then has_config=true config_file=${argument#*=}; fi
  done
  config_file=${config_file%%:*} # what follows the colon is the argument of get_config()
  if ! "$has_config"; then fail "$command needs --config=FILE, such as --config=configs/distill.py"; fi
  if [[ -z $workdir ]]; then fail "$command needs --workdir=DIR, such as --workdir=runs/distill"; fi
}

need_config_file() { # not for gke, whose file is in the image: a pod that lacks it says so, and its status 2 ends the JobSet
  if [[ ! -f $config_file ]]; then fail "config file $config_file does not exist; look in configs/"; fi
}

readonly NAME_FORM='[a-z]([-a-z0-9]{0,38}[a-z0-9])?'
readonly NAME_WORDS='lower-case letters, digits and dashes, from a letter on, at most 40'

# ---- local ----

local_mode() {
  local count=1
  if [[ ${1:-} == --dry-run ]]; then # N may follow it
    dry_run=true
    shift
  fi
  if (($#)) && [[ $1 != -* ]]; then
    if [[ ! $1 =~ ^[1-9][0-9]{0,2}$ ]]; then fail "'$1' is no number of processes; local takes one from 1 to 999"; fi
    count=$1
    shift
  fi
  parse "devices port logs" "" "$@"
  number devices 1
  number port 1 65535
  environment=()
  if [[ -n $option_devices ]]; then
    environment=(JAX_PLATFORMS=cpu "XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$option_devices")
  fi
  words=("${PYTHON:-python}" -m rgbd_reid_jax.main ${run_args[@]+"${run_args[@]}"})
  if ((count > 1)); then
    several "$count"
    return
  fi
  if ((${#environment[@]})); then words=(env "${environment[@]}" "${words[@]}"); fi
  if "$dry_run"; then
    quote "${words[@]}" && echo
  else
    exec "${words[@]}"
  fi
}

several() { # COUNT: starts the processes and watches them; uses environment and words of local_mode
  local count=$1 index logs=${option_logs:-${workdir/#\~\//$HOME/}.logs} port=$option_port gpus=() own line lines=()
  if [[ -z $option_logs && -z $workdir ]]; then fail "local $count needs --workdir=DIR, or --logs=DIR for the logs"; fi
  if [[ -z $option_devices ]]; then
    while read -r line; do gpus+=("$line"); done < <(visible_gpus)
    if ((${#gpus[@]} % count)); then
      fail "$count processes do not divide the ${#gpus[@]} GPUs; choose another number, or --devices=K for CPU devices"
    fi
  fi
  if [[ -z $port ]]; then
    port=$("${PYTHON:-python}" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  fi
  for ((index = 0; index < count; index++)); do
    own=(env ${environment[@]+"${environment[@]}"})
    if ((${#gpus[@]})); then
      line=$(IFS=, && echo "${gpus[*]:index * ${#gpus[@]} / count:${#gpus[@]} / count}")
      own+=("CUDA_VISIBLE_DEVICES=$line")
    fi
    own+=("RGBD_REID_COORDINATOR=127.0.0.1:$port" "RGBD_REID_PROCESSES=$count" "RGBD_REID_PROCESS=$index")
    line="$(quote "${own[@]}" "${words[@]}") --distributed=env"
    if ((index)); then line+=" >$(quote "$logs/process-$index.log") 2>&1"; fi
    lines+=("$line &")
  done
  if "$dry_run"; then
    printf '%s\n' "mkdir -p $(quote "$logs")" "${lines[@]}" wait
    return
  fi
  mkdir -p "$logs" || fail "folder $logs cannot be made; choose another --logs=DIR"
  pids=()
  trap 'interrupted TERM' TERM
  trap 'interrupted INT' INT
  for line in "${lines[@]}"; do
    eval "$line"
    pids+=($!)
  done
  watch_processes "$logs"
}

visible_gpus() { # one line for each GPU that a process started here would see
  if [[ ${JAX_PLATFORMS:-cuda} != *cuda* && $JAX_PLATFORMS != *gpu* ]]; then return; fi
  if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
    tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -v -e '^$' -e '^-1$' || true
  elif command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=index --format=csv,noheader || true
  fi
}

stops=0
interrupted() { # SIGNAL: the first lets a training stage save, the second ends all at once
  stops=$((stops + 1))
  if ((stops == 1)); then
    printf 'launch.sh: SIG%s is passed on; a second one ends all processes at once\n' "$1" >&2
    kill -TERM "${pids[@]}" 2>/dev/null || true
  else
    kill -KILL "${pids[@]}" 2>/dev/null || true
  fi
}

readonly GRACE_S=15 # for the others to end by themselves once one process failed, and then again after SIGTERM

watch_processes() { # LOGS: waits for all; ends with the status of process 0 if it failed, else of the first that did
  local index running status first='' statuses=() deadline=0 killing=false
  while :; do
    running=0
    for index in "${!pids[@]}"; do
      if [[ -n ${statuses[index]:-} ]]; then continue; fi
      if kill -0 "${pids[index]}" 2>/dev/null; then
        running=$((running + 1))
        continue
      fi
      status=0
      { wait "${pids[index]}" || status=$?; } 2>/dev/null # bash would tell of the signal, with the whole command
      statuses[index]=$status
      if ((status)) && [[ -z $first ]]; then
        first=$index
        deadline=$((SECONDS + GRACE_S))
      fi
    done
    if ((running == 0)); then break; fi
    if [[ -n $first ]] && ((SECONDS >= deadline && stops == 0)); then
      if "$killing"; then kill -KILL "${pids[@]}" 2>/dev/null || true; else kill -TERM "${pids[@]}" 2>/dev/null || true; fi
      killing=true
      deadline=$((SECONDS + GRACE_S))
    fi
    sleep 0.2 || true # Ctrl-C ends it, and the script otherwise
  done
  if [[ -z $first ]]; then exit 0; fi
  if ((first > 0 && stops == 0)); then
    printf 'launch.sh: process %d ended with status %d; the end of %s:\n' "$first" "${statuses[first]}" "$1/process-$first.log" >&2
    tail -n 5 "$1/process-$first.log" >&2
    exit "${statuses[first]}"
  fi
  if ((statuses[0])); then exit "${statuses[0]}"; fi
  exit "${statuses[first]}"
}

# ---- slurm ----

slurm_mode() {
  parse "time nodes gpus cpus partition account name logs" "" "$@"
  need time
  need_run
  need_config_file
  number nodes 1
  number gpus 0
  number cpus 1
  matching time '([0-9]+-)?[0-9]+(:[0-5]?[0-9]){0,2}' 'a time limit of sbatch, such as 12:00:00 or 2-00:00:00'
  matching name "$NAME_FORM" "$NAME_WORDS"
  matching partition '[A-Za-z0-9_.,-]+' 'names of partitions'
  matching account '[A-Za-z0-9_.-]+' 'the name of an account'
  local logs=${option_logs:-${workdir/#\~\//$HOME/}.logs} per_node=${option_gpus:-0} tasks=1
  if [[ $logs == *[[:space:]\"\'\\%]* ]]; then fail "--logs='$logs' must hold no spaces, quotes, backslashes and percent signs"; fi
  if ((per_node)); then tasks=$per_node; fi
  local script
  script="#!/usr/bin/env bash
#SBATCH --job-name=${option_name:-rgbd-reid}
#SBATCH --nodes=${option_nodes:-1}
#SBATCH --ntasks-per-node=$tasks
$(if ((per_node)); then echo "#SBATCH --gpus-per-node=$per_node"; fi)
$(if [[ -n $option_cpus ]]; then echo "#SBATCH --cpus-per-task=$option_cpus"; fi)
#SBATCH --time=$option_time
$(if [[ -n $option_partition ]]; then echo "#SBATCH --partition=$option_partition"; fi)
$(if [[ -n $option_account ]]; then echo "#SBATCH --account=$option_account"; fi)
#SBATCH --output=$logs/slurm-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
# Five minutes before the limit this shell gets USR1; the tasks then get TERM, save the step they are at and end.
requeue=false
trap 'requeue=true; scancel --signal=TERM \"\$SLURM_JOB_ID\"' USR1
srun --kill-on-bad-exit=1${option_cpus:+ --cpus-per-task=$option_cpus} $(quote "${PYTHON:-python}" -m rgbd_reid_jax.main "${run_args[@]}") --distributed=slurm &
step=\$!
wait \"\$step\"
status=\$?
while kill -0 \"\$step\" 2>/dev/null; do # USR1 ended the wait
  wait \"\$step\"
  status=\$?
done
if \"\$requeue\" && ((status != 0 && status != 2)); then
  scontrol requeue \"\$SLURM_JOB_ID\"
fi
exit \"\$status\""
  script=$(sed '/^$/d' <<<"$script")
  hand_over "mkdir -p $(quote "$logs")
cat >$(quote "$logs/job.sbatch") <<'END_OF_SCRIPT'
$script
END_OF_SCRIPT
sbatch $(quote "$logs/job.sbatch")" sbatch
}

# ---- tpu ----

tpu_mode() {
  parse "name zone type runtime project setup" "spot keep" "$@"
  need name zone type runtime
  need_run
  need_config_file
  matching name "$NAME_FORM" "$NAME_WORDS"
  matching zone '[a-z]+-[a-z]+[0-9]+-[a-z]' 'a zone, such as us-west4-a'
  matching type 'v[0-9][a-z0-9]*-[1-9][0-9]{0,4}' 'an accelerator type, such as v5litepod-16'
  matching runtime '[a-z0-9.-]+' 'a TPU software version, such as v2-alpha-tpuv5-lite'
  matching project '[a-z][-a-z0-9.:]+' 'a project id'
  if [[ -n $option_setup && ! -f $option_setup ]]; then fail "--setup=$option_setup is no file"; fi
  # Types of v5e and v6e count chips, those of other kinds cores, of which a chip has two: up to 8 of either are one worker.
  if [[ $workdir != /* ]] && ((${option_type##*-} > 8)); then
    fail "--workdir=$workdir would lie on each worker's own disk, and $option_type has several workers; give an absolute path on storage that all of them mount, such as --workdir=/mnt/reid/$workdir with --setup=mount.sh (docs/scaling.md)"
  fi
  if [[ $config_file == /* ]] || ! git ls-files --cached --others --exclude-standard --error-unmatch -- "$config_file" >/dev/null 2>&1; then
    fail "config file $config_file would not reach the workers, which get what git would see of this folder; give one of those files, by its path from here"
  fi
  local where="--zone=$option_zone${option_project:+ --project=$option_project}" name=$option_name main parent=
  local spot='' install run fetch=: bring=: teardown
  if "$option_spot"; then spot=" --spot"; fi
  # No name of a variable in single quotes is meant for this shell: the text runs on the workers.
  # shellcheck disable=SC2016
  install='set -e; rm -rf rgbd_reid_jax; mkdir rgbd_reid_jax; tar -xzf rgbd_reid_jax.tgz -C rgbd_reid_jax; cd rgbd_reid_jax; '
  if [[ -n $option_setup ]]; then install+='bash ../rgbd_reid_jax.setup; '; fi
  install+='python3 -m pip install --user --quiet uv; python3 -m uv venv --quiet --python 3.12 .venv; '
  install+="python3 -m uv pip install --quiet --python .venv -e '.[tpu]'"
  main=$(quote .venv/bin/python -m rgbd_reid_jax.main "${run_args[@]}")
  # shellcheck disable=SC2016
  run='cd rgbd_reid_jax && echo $$ >.pid && exec '"$main --distributed=tpu"
  if [[ $workdir != /* ]]; then # it lies on the worker's own disk, which is deleted with the slice
    parent=$(dirname -- "$workdir")
    install+="; mkdir -p $(quote "$parent")"
    bring="if [[ -e $(quote "$workdir") ]]; then gcloud compute tpus tpu-vm scp --recurse $(quote "$workdir") $(quote "$name:rgbd_reid_jax/$parent/") $where --worker=0; fi"
    fetch="mkdir -p $(quote "$parent") && gcloud compute tpus tpu-vm scp --recurse $(quote "$name:rgbd_reid_jax/$workdir") $(quote "$parent/") $where --worker=0"
  fi
  teardown="gcloud compute tpus queued-resources delete $name $where --force --quiet"
  if "$option_keep"; then
    teardown="echo 'the slice is kept; delete it with: $teardown' >&2"
  else
    teardown+=" || echo 'the slice may still be there; delete it with: $teardown' >&2"
  fi
  hand_over "set -euo pipefail
code=\$(mktemp)
running=false
leave() { # at the end, however it comes
  trap '' INT TERM
  rm -f \"\$code\"
  if \"\$running\"; then # interrupted: let training save its step
    gcloud compute tpus tpu-vm ssh $name $where --worker=all --command='kill -TERM \$(cat rgbd_reid_jax/.pid) && timeout 180 tail --pid=\$(cat rgbd_reid_jax/.pid) -f /dev/null' || true
  fi
  if \"\$installed\"; then $fetch || echo 'the workdir could not be copied from the slice' >&2; fi
  $teardown
}
git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
  if [[ -e \$file || -L \$file ]]; then printf '%s\\0' \"\$file\"; fi # not one that is tracked, but deleted
done | tar --null --files-from=- -czf \"\$code\"
trap '' INT TERM # until it is known whether there is something to delete
gcloud compute tpus queued-resources create $name --node-id=$name $where --accelerator-type=$option_type --runtime-version=$option_runtime$spot --async
installed=false
trap leave EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
while :; do
  state=\$(gcloud compute tpus queued-resources describe $name $where --format='value(state.state)')
  echo \"\$(date +%H:%M:%S) $name: \$state\" >&2
  case \$state in
    ACTIVE) break ;;
    FAILED | SUSPENDING | SUSPENDED) exit 1 ;;
  esac
  sleep 30
done
gcloud compute tpus tpu-vm scp \"\$code\" $name:rgbd_reid_jax.tgz $where --worker=all
$(if [[ -n $option_setup ]]; then echo "gcloud compute tpus tpu-vm scp $(quote "$option_setup") $name:rgbd_reid_jax.setup $where --worker=all"; fi)
gcloud compute tpus tpu-vm ssh $name $where --worker=all --command=$(quote "$install")
$bring
installed=true
running=true
status=0
gcloud compute tpus tpu-vm ssh $name $where --worker=all --command=$(quote "$run") </dev/null &
wait \$! || status=\$? # in the background, so that a signal is heard at once
running=false
exit \"\$status\"" gcloud
}

# ---- gke ----

json() { # TEXT: as a JSON string in which Kubernetes expands nothing
  local text=$1
  if [[ $text == *[[:cntrl:]]* ]]; then fail "argument $(quote "$text") holds a line break or another control character"; fi
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  text=${text//\$\(/\$\$\(}
  printf '"%s"' "$text"
}

gke_mode() {
  parse "name image claim tpu topology chips gpu nodes gpus namespace" "spot" "$@"
  need name image claim
  need_run
  matching name "$NAME_FORM" "$NAME_WORDS"
  matching claim "$NAME_FORM" "$NAME_WORDS"
  matching namespace "$NAME_FORM" "$NAME_WORDS"
  matching image '[A-Za-z0-9][A-Za-z0-9._/:@-]*' 'the name of a container image'
  matching tpu '[a-z0-9-]+' 'a TPU label of GKE, such as tpu-v5-lite-podslice'
  matching gpu '[a-z0-9-]+' 'a GPU label of GKE, such as nvidia-h100-80gb'
  matching topology '[1-9][0-9]*(x[1-9][0-9]*){1,2}' 'chips along each axis, such as 4x4'
  local option
  for option in chips nodes gpus; do number $option 1; done
  if [[ $workdir != /shared/?* ]]; then fail "--workdir=$workdir must lie below /shared, where --claim is mounted"; fi
  if [[ -n $option_tpu && -n $option_gpu || -z $option_tpu$option_gpu ]]; then fail "gke needs one of --tpu and --gpu"; fi
  local method=env pods=$option_nodes resource=nvidia.com/gpu amount=${option_gpus:-8} selector note='' variables=''
  if [[ -n $option_tpu ]]; then
    need topology
    amount=${option_chips:-4} resource=google.com/tpu method=tpu
    if ((${option_topology//x/*} % amount)); then fail "--topology=$option_topology has no multiple of --chips=$amount chips"; fi
    pods=$((${option_topology//x/*} / amount))
    selector="cloud.google.com/gke-tpu-accelerator: $option_tpu
                cloud.google.com/gke-tpu-topology: $option_topology"
    note="
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool # a slice is one node pool"
  else
    need nodes
    selector="cloud.google.com/gke-accelerator: $option_gpu"
    variables="
                - name: RGBD_REID_COORDINATOR
                  value: \"$option_name-workers-0-0.$option_name:12355\"
                - name: RGBD_REID_PROCESSES
                  value: \"$pods\"
                - name: RGBD_REID_PROCESS
                  valueFrom:
                    fieldRef:
                      fieldPath: metadata.annotations['batch.kubernetes.io/job-completion-index']"
  fi
  if "$option_spot"; then
    selector+="
                cloud.google.com/gke-spot: \"true\""
  fi
  local arguments='' argument
  for argument in python -m rgbd_reid_jax.main "${run_args[@]}" "--distributed=$method"; do
    arguments+="
                - $(json "$argument")" || exit 2
  done
  hand_over "kubectl${option_namespace:+ --namespace=$option_namespace} apply -f - <<'END_OF_MANIFEST'
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $option_name$note
spec:
  failurePolicy:
    maxRestarts: 20 # each goes on from the last checkpoint
    rules:
    - action: FailJobSet # the run refused its input: starting again would not help
      onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
  - name: workers
    replicas: 1
    template:
      spec:
        parallelism: $pods
        completions: $pods
        completionMode: Indexed
        backoffLimit: 0 # one pod that fails takes all down
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes:
              containerName: main
              operator: In
              values: [2]
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: 300 # for the checkpoint
            nodeSelector:
                $selector
            containers:
            - name: main
              image: $(json "$option_image")
              command:$arguments
              env:
                - name: TFDS_DATA_DIR
                  value: /shared/tensorflow_datasets$variables
              resources:
                limits:
                  $resource: $amount
              volumeMounts:
              - name: shared
                mountPath: /shared
              - name: memory
                mountPath: /dev/shm
            volumes:
            - name: shared
              persistentVolumeClaim:
                claimName: $option_claim
            - name: memory
              emptyDir:
                medium: Memory
END_OF_MANIFEST" kubectl
}

hand_over() { # SCRIPT PROGRAM: prints the script or runs it
  if "$dry_run"; then
    printf '%s\n' "$1"
    return
  fi
  command -v "$2" >/dev/null || fail "$2 is not installed here; --dry-run prints what it would be asked"
  exec bash -c "$1"
}

# ---- the command ----

if (($# == 0)); then
  usage >&2
  exit 2
fi
while [[ ${1:-} == --dry-run ]]; do
  dry_run=true
  shift
done
command=${1:-}
case $command in
  local | slurm | tpu | gke) shift && "${command}_mode" "$@" ;;
  -h | --help) usage ;;
  '') fail "no command given (valid commands: local, slurm, tpu, gke)" ;;
  -*) fail "unknown option '$command' (valid options before the command: --dry-run, --help)" ;;
  *) fail "unknown command '$command' (valid commands: local, slurm, tpu, gke)" ;;
esac
